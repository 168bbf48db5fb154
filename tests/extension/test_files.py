"""Files in the extension: adapters, cards, pictures, conversions, and how they are shown."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file


def pair(name: str, width: int = 320, inner: int = 320) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_down.weight": torch.ones(4, inner), f"{name}.lora_up.weight": torch.ones(width, 4)}


Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(("tensors", "metadata", "use", "said"), [
    (pair(Q), {}, "READY", ""),
    (pair(Q), {"ss_base_model_version": "sdxl_base_v1-0"}, "OTHER_BASE", "a LoRA of SDXL"),
    (pair(Q.replace("attn1_to_q", "attn2_to_k"), inner=1024), {}, "OTHER_BASE", "a LoRA of SD2"),
    (pair(Q, 64, 64), {"ss_base_model_version": "scribble_miniature"}, "OTHER_BASE", "train it again with python -m trainer"),
    (pair(Q), {"scribble_base": "miniature"}, "READY", ""),
    ({**pair(Q), "bundle_emb.word.string_to_param.*": torch.ones(1, 768)}, {}, "READY", ""),
    ({f"{Q}.hada_w1_a": torch.ones(320, 4)}, {}, "UNCHECKED", "LoHa"),
    ({"some.layer": torch.ones(4)}, {}, "BROKEN", "1 unknown tensor names, such as some.layer"),
    ({**pair(Q), "lora_unet_no_such_layer.alpha": torch.tensor(1.0)}, {}, "UNCHECKED", "may be applied only in part"),
    ({"motion_modules.0.x": torch.ones(4)}, {}, "BROKEN", "AnimateDiff"),
], ids=["kohya", "sdxl", "sd2", "earlier", "miniature", "embedding", "loha", "no LoRA", "more", "motion"])  # fmt: skip
def test_the_kind_of_a_file(core, tmp_path, tensors, metadata, use, said) -> None:
    path = tmp_path / "file.safetensors"
    save_file(tensors, path, metadata=metadata)
    adapter = core.inspection.inspect(path)
    assert adapter.use.name == use and said in adapter.why and str(tmp_path) not in adapter.why and "\n" not in adapter.why


def test_a_bundled_embedding_is_a1111s_alone(core, tmp_path) -> None:
    path, web_uis = tmp_path / "file.safetensors", core.web_uis.WebUI
    save_file({**pair(Q), "bundle_emb.word.clip_l": torch.ones(1, 768)}, path)
    assert core.inspection.inspect(path, web_uis.A1111).why == ""
    found = core.inspection.inspect(path, web_uis.FORGE)
    assert found.use is core.inspection.Use.READY and "includes an embedding, which Forge does not read" in found.why


def test_numbers_are_checked_on_request_and_remembered(core, tmp_path, monkeypatch) -> None:
    path, bad = tmp_path / "file.safetensors", pair(Q)
    bad[f"{Q}.lora_up.weight"][0, 0] = float("nan")
    save_file(bad, path)
    assert core.inspection.inspect(path).use is core.inspection.Use.READY, "only the header is read"
    found = core.inspection.inspect_numbers(path)
    assert found.use is core.inspection.Use.BROKEN and "NaN or infinite" in found.why and str(tmp_path) not in found.why
    assert core.inspection.inspect(path) == found and "NaN" in core.generation.why_not(core.inspection.inspect(path), "SD1")
    save_file(pair(Q, 320, 320) | {f"{Q}.alpha": torch.tensor(4.0)}, path)
    found = core.inspection.inspect_numbers(path)
    assert found.use is core.inspection.Use.READY
    monkeypatch.setattr(core.inspection, "check", lambda path: pytest.fail("read twice"))
    assert core.inspection.inspect_numbers(path) is found


def test_advice_names_the_page_and_not_the_command_line(core, folder) -> None:
    cut = folder / "cut.safetensors"
    cut.write_bytes((folder / "scribble.safetensors").read_bytes()[:-100])
    for path in (cut, folder / "broken.safetensors"):
        why = core.inspection.inspect(path).why
        assert "python -m" not in why and "--" not in why
    assert "download or copy it again" in core.inspection.inspect(cut).why


def test_a_file_that_forge_renamed_is_explained(core, folder) -> None:
    path = folder / "cut.safetensors"
    path.with_name("cut.safetensors.corrupted").write_bytes(b"")
    assert "Forge could not read it and has renamed it cut.safetensors.corrupted" in core.inspection.inspect(path).why
    files = core.lora_files.LoraFiles({}, folders=(folder,))
    for name in ("cut", "cut.safetensors"):
        assert "has renamed it cut.safetensors.corrupted" in files.why_missing(name)


def test_folders_pickles_and_missing_files_raise_nothing(core, tmp_path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    assert core.inspection.inspect(tmp_path / "folder.safetensors").use is core.inspection.Use.BROKEN
    assert core.inspection.inspect(tmp_path / "gone.safetensors").use is core.inspection.Use.BROKEN
    assert core.inspection.inspect(tmp_path / "old.pt").use is core.inspection.Use.UNCHECKED


def test_a_preferred_weight_of_0_is_unset(core, folder) -> None:
    card = folder / "scribble.json"
    card.write_text(json.dumps({"preferred weight": 0, "activation text": " in  mystyle "}))
    adapter = core.inspection.inspect(folder / "scribble.safetensors")
    assert adapter.card.scale == 0.7 and adapter.card.trigger_words == "in mystyle"
    card.write_text(json.dumps({"preferred weight": 9}))
    assert core.generation.recommended(core.inspection.inspect(folder / "scribble.safetensors")) == 1.5


def test_a_card_keeps_unknown_fields(core, folder) -> None:
    lora, card = folder / "scribble.safetensors", folder / "scribble.json"
    card.write_text(json.dumps({"notes": "mine", "sd version": "Unknown", "description": "old"}))
    core.cards.write(lora, base="SD1", trigger_words=" words ", scale=0.5, description="new")
    assert json.loads(card.read_text()) == {
        "notes": "mine", "sd version": "Unknown", "description": "new", "activation text": "words",
        "preferred weight": 0.5,
    }  # fmt: skip
    card.write_text("{")
    with pytest.raises(Exception, match=r"scribble\.json: is not valid JSON"):
        core.cards.write(lora, base="SD1", trigger_words="", scale=0, description="")
    assert card.read_text() == "{" and "scribble.json is not valid JSON" in core.inspection.inspect(lora).card.problem


@pytest.mark.parametrize(("base", "version"), [("SD1", "SD1"), ("SDXL", "SDXL"), ("scribble_miniature", "Unknown")])
def test_a_new_card_names_the_files_own_base(core, folder, base, version) -> None:
    core.cards.write(folder / "theirs.safetensors", base=base, trigger_words="", scale=0, description="")
    assert json.loads((folder / "theirs.json").read_text())["sd version"] == version


def test_a_conversion_stands_beside_the_original_with_card_and_picture(core, folder) -> None:
    theirs, before = folder / "theirs.safetensors", (folder / "theirs.safetensors").read_bytes()
    theirs.with_suffix(".json").write_text("{}")
    Image.new("RGB", (8, 8)).save(folder / "theirs.preview.jpg")
    report = core.import_files.convert_beside(theirs, ["theirs"])
    assert report.target == folder / "theirs.kohya.safetensors" and theirs.read_bytes() == before
    made = core.inspection.inspect(report.target)
    assert made.use is core.inspection.Use.READY and core.cards.picture(report.target) == folder / "theirs.kohya.jpg"
    assert (folder / "theirs.kohya.json").read_text() == "{}"
    with safe_open(report.target, "pt") as file:
        assert file.metadata()["ss_output_name"] == "theirs.kohya", "the web UI switches an alias of two files off"


def test_a_peft_folder_gives_its_name(core, folder) -> None:
    style = folder / "my style"
    style.mkdir()
    assert core.import_files.conversion_of(style / "adapter_model.safetensors", ["other"]).name == "my style.safetensors"
    taken = core.import_files.conversion_of(style / "adapter_model.safetensors", ["my style"])
    assert taken.name == "adapter_model.kohya.safetensors"


def test_only_lora_files_below_the_folders_are_listed(core, folder) -> None:
    (folder / "sub").mkdir()
    (folder / ".hidden").mkdir()
    (folder / "sub/back").symlink_to(folder, target_is_directory=True)
    for name in ("sub/deep.PT", ".hidden/a.pt", ".part.safetensors", "notes.txt"):
        (folder / name).write_bytes(b"")
    found = core.lora_files.below([folder, folder / "not there"])
    assert list(found) == ["broken.safetensors", "scribble.safetensors", "sub/deep.PT", "theirs.safetensors"]


@pytest.mark.parametrize("ending", [".png", ".jpg", ".preview.webp"])
def test_a_picture_is_replaced_in_its_own_format(core, folder, ending) -> None:
    lora, present = folder / "scribble.safetensors", folder / f"scribble{ending}"
    Image.new("RGB", (8, 8)).save(present)
    assert core.import_files.write_picture(lora, Image.new("RGBA", (3000, 1000)), overwrite=True) == present
    with Image.open(present) as image:
        assert image.size == (1024, 341) and image.format == {".png": "PNG", ".jpg": "JPEG"}.get(ending, "WEBP")


def test_an_animation_is_not_replaced(core, folder) -> None:
    (folder / "scribble.gif").write_bytes(b"GIF89a")
    with pytest.raises(Exception, match="delete it first"):
        core.import_files.write_picture(folder / "scribble.safetensors", Image.new("RGB", (8, 8)), overwrite=True)


def test_text_from_a_file_is_escaped(core, folder) -> None:
    (folder / "scribble.json").write_text(json.dumps({"description": "<script>", "activation text": "<b>"}))
    html = core.panel.facts(core.inspection.inspect(folder / "scribble.safetensors"), "SD1", '"><u')
    assert "&lt;script&gt;" in html and "&lt;b&gt;" in html and "<script>" not in html and '"><u' not in html
    assert "&lt;lora:scribble:0.7&gt;" in html and "1 modules of the UNet" in html
    assert "&lt;pre&gt;" in core.panel.preformatted("<pre>", sound=True)


def test_the_infotext_of_one_plot_cell_does_not_reach_the_next(core) -> None:
    params = {"Scribble LoRA adapter": "a", "Scribble LoRA error": "b", "Scribble LoRA trigger words": "True", "Steps": 2}
    core.infotext.clear(params)
    assert params == {"Steps": 2}
    core.infotext.write(params, "scribble", 0.5, False)
    assert params == {"Steps": 2, "Scribble LoRA adapter": "scribble", "Scribble LoRA scale": "0.5"}


def test_several_errors_are_all_reported_without_the_infotext_of_a_success(core) -> None:
    params = {"Scribble LoRA adapter": "a", "Scribble LoRA scale": "1", "Steps": 2}
    for text in ("one", "two", "one"):
        core.infotext.fail(params, text)
    assert params == {"Steps": 2, "Scribble LoRA error": "one; two"}


def test_a_renamed_file_is_found_by_its_hash(core) -> None:
    params = {"Scribble LoRA adapter": "a:b", "Prompt": "x <lora:a:1>", "Hires prompt": "y <lora:new:0.5>",
              "Lora hashes": "other: 11, ab: 22"}  # fmt: skip
    resolve = {"new": "new"}.get
    assert core.infotext.pasted(params, resolve, {"22": "new"}) is None
    assert params["Scribble LoRA adapter"] == "new" and params["Hires prompt"] == "y"
    gone = {"Scribble LoRA adapter": "gone", "Scribble LoRA scale": "1", "Prompt": "x <lora:gone:1>"}
    assert core.infotext.pasted(gone, resolve, {}) == "gone" and gone == {"Prompt": "x <lora:gone:1>"}
