"""The extension's pure part, loaded as the web UI loads it: by path, as `scribble_lora`, with no host installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(core, folder):
    return core.lora_files.LoraFiles({path.stem: path for path in folder.glob("*.safetensors")}, {"Alias": "scribble"})


def processing(*prompts: str, **more) -> SimpleNamespace:
    negative = [""] * len(prompts)
    return SimpleNamespace(all_prompts=list(prompts), all_negative_prompts=negative, main_prompt=prompts[0],
                           extra_generation_params={}, **({"width": 128, "height": 128} | more))  # fmt: skip


def run(core, p: SimpleNamespace, arguments, files, model: str = "SD1") -> tuple[object, list[str]]:
    """Run one batch of all pictures; returns the applied adapter and the messages."""
    said: list[str] = []
    this = core.generation.begin(p, arguments, lambda name: files, model, said.append)
    now = list(p.all_prompts)
    core.generation.add_tag(p, this, range(len(now)), now)
    assert now == p.all_prompts
    return this.applied, said


def test_every_prompt_of_a_generation_is_rewritten(core, files) -> None:
    p = processing("cat", "cat", all_hr_prompts=["cat", "dog"])
    applied, said = run(core, p, [True, "scribble", 0.5, True], files)
    assert (applied.name, applied.scale, said) == ("scribble", 0.5, [])
    assert p.all_prompts == [p.main_prompt] * 2 == ["a scribble of cat <lora:scribble:0.5>"] * 2
    assert p.all_hr_prompts[1] == "a scribble of dog <lora:scribble:0.5>"
    assert p.extra_generation_params == {
        "Scribble LoRA adapter": "scribble", "Scribble LoRA scale": "0.5", "Scribble LoRA trigger words": "True"
    }  # fmt: skip


def test_cells_of_a_plot_are_independent(core, files) -> None:
    """The cells of one plot share their parameters."""
    p = processing("cat")
    run(core, p, [True, "scribbel", 0.5, False], files)
    run(core, p, [True, "scribble", 0.5, False], files)
    assert p.extra_generation_params == {"Scribble LoRA adapter": "scribble", "Scribble LoRA scale": "0.5"}
    run(core, p, [False], files)
    assert p.extra_generation_params == {}


def test_without_a_scale_the_files_own_is_used(core, files) -> None:
    p = processing("cat")
    run(core, p, [True, "scribble", None, False], files)
    assert p.main_prompt == "cat <lora:scribble:0.7>"


@pytest.mark.parametrize("arguments", [
    [True, "scribble", 0.5, False], [{"enabled": True, "adapter": "scribble", "scale": 0.5}],
    [{"enabled": True, "adapter": "scribble.safetensors", "scale": 0.5, "use_trigger_words": False}, "None", 9, "x"],
    [True, "Scribble.safetensors".lower(), 0.5],
])  # fmt: skip
def test_arguments_by_position_and_by_name_are_the_same(core, files, arguments) -> None:
    p = processing("cat")
    assert run(core, p, arguments, files)[1] == [] and p.all_prompts == ["cat <lora:scribble:0.5>"]


@pytest.mark.parametrize(("arguments", "named"), [
    (["yes", "scribble", 0.8, False], "enabled must be true or false"), ([True, "scribble", "0.8", False], "scale must be"),
    ([True, "scribble", 9, False], "from 0 to 1.5"), ([True, "scribble", float("nan"), False], "scale must be"),
    ([True, "scribbel", 0.8, False], "did you mean scribble"), ([True, 7, 0.8, False], "adapter must be"),
    ([True], "no adapter"), ([{"enabled": True}], "no adapter"), ([{"enabled": 1}], "enabled must be true or false"),
    ([{"enabled": True, "Adapter": "scribble"}], "did you mean adapter?"), ([{"x": 1}], "the arguments are enabled, adapter"),
    ([{"enabled": True, "adapter": "scribble", "scale": "1"}], "scale must be"),
    ([True, "theirs", 0.8, False], "convert it first"), ([True, "broken", 0.8, False], "broken"),
])  # fmt: skip
def test_bad_requests_have_no_effect_and_one_line(core, files, arguments, named) -> None:
    p = processing("cat", "cat")
    applied, said = run(core, p, arguments, files)
    assert applied is None and p.main_prompt == "cat" and p.all_prompts == ["cat", "cat"]
    assert named in said[0] and "\n" not in said[0] and p.extra_generation_params == {"Scribble LoRA error": said[0]}


def test_the_schema_agrees_with_the_validation(core, files) -> None:
    """Each default is accepted, each bound equals the validation's, and other names are refused."""
    schema = core.arguments.json_schema()
    given = {name: one["default"] for name, one in schema["properties"].items()} | {"enabled": True, "adapter": "scribble"}
    for bound in ("minimum", "maximum"):
        given["scale"] = schema["properties"]["scale"][bound]
        assert run(core, processing("cat"), [dict(given)], files)[0].scale == given["scale"]
    assert schema["additionalProperties"] is False


def test_a_hand_written_tag_without_effect_is_reported(core, files) -> None:
    p = processing("cat <lora:theirs:1>")
    applied, said = run(core, p, [False], files)
    assert applied is None and len(said) == 1 and "<lora:theirs:1> has no effect" in said[0] and not p.extra_generation_params


def test_another_kind_of_model_is_refused(core, files) -> None:
    _, said = run(core, processing("cat"), [True, "scribble", 0.8, False], files, "SDXL")
    assert "is a LoRA of Stable Diffusion 1.5 and the loaded model is SDXL" in said[0]


def test_a_lora_of_the_earlier_miniature_is_refused_with_what_to_do(core, folder) -> None:
    found = core.inspection.Inspected(folder / "old.safetensors", core.inspection.Use.OTHER_BASE, "was trained long ago",
                                      base="scribble_miniature")
    assert all(core.generation.why_not(found, model) == found.why for model in ("", "SD1", "miniature", "SDXL", "other"))
    assert core.lora_files.mark(found) == "for an earlier miniature"


@pytest.mark.parametrize(("metadata", "model", "said"), [
    ({"scribble_base": "miniature"}, "SD1", "was trained on Scribble LoRA's miniature, but another checkpoint is loaded"),
    ({"scribble_base": "miniature"}, "miniature", ""),
    ({"scribble_base": "miniature"}, "", ""),
    ({}, "miniature", "was not trained on Scribble LoRA's miniature, which is the loaded checkpoint"),
    ({}, "SD1", ""),
])  # fmt: skip
def test_a_lora_on_the_other_checkpoint_is_applied_with_a_notice(core, folder, metadata, model, said) -> None:
    path = folder / "a.safetensors"
    save_file(load_file(folder / "scribble.safetensors"), path, metadata)
    files = core.lora_files.LoraFiles({"a": path})
    for prompt, arguments in (("cat", [True, "a", 0.5, False]), ("cat <lora:a:0.5>", [False])):
        p = processing(prompt)
        _, told = run(core, p, arguments, files, model)
        assert p.all_prompts == ["cat <lora:a:0.5>"] and "Scribble LoRA error" not in p.extra_generation_params
        assert len(told) == bool(said) and all(said in text for text in told)
        assert [p.extra_generation_params.get("Scribble LoRA notice")] == (told or [None]), "API clients see the infotext alone"
    shown = core.panel.facts(files.find("a"), model)
    assert "ready" not in shown if said else "ready" in shown
    assert said.replace("'", "&#x27;") in shown and ("<td>Scribble LoRA&#x27;s miniature</td>" in shown) is bool(metadata)


@pytest.mark.parametrize(("size", "model", "noted"), [((512, 512), "miniature", True), ((256, 128), "miniature", False),
                                                      ((128, 384), "miniature", True), ((512, 512), "SD1", False)])  # fmt: skip
def test_pictures_too_large_for_the_miniature_are_noted_with_any_prompt(core, files, size, model, noted) -> None:
    p = processing("cat", width=size[0], height=size[1])
    _, told = run(core, p, [False], files, model)
    assert [p.extra_generation_params.get("Scribble LoRA notice")] == (told or [None]) and len(told) == noted
    assert all(f"which draws pictures of 128 x 128: at {size[0]} x {size[1]}" in text for text in told)


def test_on_the_miniature_a_lora_of_sdxl_is_still_refused(core, folder) -> None:
    path = folder / "xl.safetensors"
    save_file(load_file(folder / "scribble.safetensors"), path, {"ss_base_model_version": "sdxl_base_v1-0"})
    _, told = run(core, processing("cat"), [True, "xl", 1, False], core.lora_files.LoraFiles({"xl": path}), "miniature")
    assert len(told) == 1 and "a LoRA of SDXL and the loaded model is Scribble LoRA's miniature" in told[0]


def test_the_list_marks_what_cannot_be_used(core, files, folder) -> None:
    """The entries are plain strings, and each leads back to its file."""
    shown = files.choices()
    assert shown[0] == "None" and [files.name_of(entry) for entry in shown[1:]] == ["broken", "scribble", "theirs"]
    assert "damaged" in shown[1] and shown[2] == "scribble" and "convert first" in shown[3]


@pytest.mark.parametrize("name", ["None", "warn  ⚠ sign", "a.safetensors", " lead", "new\nline"])
def test_a_file_of_any_name_survives_the_infotext(core, folder, name) -> None:
    path = folder / f"{name}.safetensors"
    path.write_bytes((folder / "scribble.safetensors").read_bytes())
    files = core.lora_files.LoraFiles({name: path})
    nothing, entry = files.choices()
    assert nothing == "None" != entry and files.chosen(entry).path == path and files.chosen("None") is None
    p = processing("cat")
    applied, said = run(core, p, [True, entry, 1, False], files)
    assert (applied.name, said) == (name, []) and p.all_prompts == [f"cat <lora:{name}:1>"]
    assert files.name_of(p.extra_generation_params["Scribble LoRA adapter"]) == name


def test_a_replaced_file_is_read_again(core, folder) -> None:
    path = folder / "theirs.safetensors"
    assert core.inspection.inspect(path).use is core.inspection.Use.CONVERT
    path.write_bytes((folder / "scribble.safetensors").read_bytes())
    assert core.inspection.inspect(path).use is core.inspection.Use.READY


@pytest.mark.parametrize("left", [None, "", "(", "raise ValueError('two\\nlines')", "\0"], ids=lambda left: repr(left)[:9])
def test_the_entry_script_uses_no_general_module_name_and_survives_damage(tmp_path, left) -> None:
    """In a separate process: another extension owns `convert` and `trainer`, and our folder is damaged."""
    if left is not None:
        (tmp_path / "extension").mkdir()
        (tmp_path / "extension/register.py").write_text(left)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/scribble_lora.py").write_bytes((ROOT / "scripts/scribble_lora.py").read_bytes())
    code = (
        "import runpy, sys, types\n"
        "decoy = types.ModuleType('convert'); sys.modules['convert'] = sys.modules['trainer'] = decoy\n"
        "scripts = types.ModuleType('modules.scripts'); scripts.scripts_data = []\n"
        "modules = types.ModuleType('modules'); modules.scripts = scripts\n"
        "sys.modules.update({'modules': modules, 'modules.scripts': scripts})\n"
        "path = list(sys.path)\n"
        f"runpy.run_path({str(tmp_path / 'scripts/scribble_lora.py')!r})\n"
        "assert sys.modules['convert'] is decoy and sys.modules['trainer'] is decoy and 'extension' not in sys.modules\n"
        "assert sys.path == path and 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("\n") == 1 and "Scribble LoRA: is off, because its folder is damaged" in result.stderr
