"""Files and samples that a run writes on its way; continuing a finished run or a LoRA file."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import convert
from convert.errors import JobError, UsageError
from tests.drawings import write_drawings
from trainer import cli
from trainer.__main__ import main
from trainer.lora.start import recipe_of
from trainer.miniature.shipped import NETWORKS
from trainer.presets import ON_MINIATURE, PRESETS
from trainer.recipe import Recipe
from trainer.sample.prompts import SamplePrompt, read_prompts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory, small_base: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("common")
    write_drawings(folder / "drawings", per_category=8, seed=1)
    return ["--base", str(small_base), "--data", str(folder / "drawings"), "--categories", "apple,star", "--per-category",
            "4", "--batch", "4", "--accumulation", "1", "--learning-rate", "1e-2", "--device", "cpu", "--no-preview",
            "--cache", str(folder / "cache")]


def trained(folder: Path, common: list[str], name: str, *more: str) -> Path:
    out = folder / f"{name}.safetensors"
    assert main([*common, "--out", str(out), "--run", str(folder / f"run-{name}"), *more]) == 0
    return out


def test_files_and_samples_during_a_run(tmp_path: Path, common: list[str], capsys: pytest.CaptureFixture) -> None:
    """The file of step 4 equals that of a run of 4 steps with the same schedule; the sheet gets a row each time."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# mine\na scribble of apple --n blurry --w 64 --h 128 --d 3 --s 2\na scribble of star --am 0.5 --s 2\n")
    more = ["--lr-schedule", "constant", "--targets", "kohya", "--save-to", str(tmp_path / "saves"), "--save-every", "2"]
    out = trained(tmp_path, common, "mystyle", *more, "--steps", "6", "--sample-every", "3", "--sample-prompts", str(prompts))
    saves = sorted(path.name for path in (tmp_path / "saves").iterdir())
    assert saves == ["mystyle-000002.safetensors", "mystyle-000004.safetensors"]
    four = trained(tmp_path, common, "four", *more[:4], "--steps", "4")
    mine, theirs = load_file(tmp_path / "saves" / saves[1]), load_file(four)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    said, final = convert.read(tmp_path / "saves" / saves[1]).metadata, convert.read(out).metadata
    assert said["ss_steps"] == "4" and said["ss_max_train_steps"] == final["ss_steps"] == "6"
    assert said["scribble_recipe"] == final["scribble_recipe"]
    samples = tmp_path / "run-mystyle/samples"
    assert Image.open(samples / "prompt-000003-00.png").size == (64, 128)
    sheet = Image.open(samples / "sheet.png")
    assert len(list(samples.glob("prompt-*.png"))) == 4 and sheet.height > 2 * 256 and sheet.width > 2 * 256
    other = ["--out", str(tmp_path / "mystyle.safetensors"), "--run", str(tmp_path / "other"), "--seed", "9", *more[:-2]]
    (tmp_path / "mystyle.safetensors").unlink()
    (tmp_path / "mystyle.json").unlink()
    assert main([*common, *other, "--save-every", "2"]) == 2
    assert "mystyle-000002.safetensors is not from this run" in capsys.readouterr().err


def test_a_finished_run_continues_to_more_steps(tmp_path: Path, common: list[str], capsys: pytest.CaptureFixture) -> None:
    """With a constant rate it equals, bit for bit, the run that was longer from the start."""
    more = ["--lr-schedule", "constant", "--save-every", "2"]
    out = trained(tmp_path, common, "a", *more, "--steps", "4")
    first = out.read_bytes()
    assert trained(tmp_path, common, "a", *more, "--steps", "4").read_bytes() == first  # nothing to do
    capsys.readouterr()
    trained(tmp_path, common, "a", *more, "--steps", "7")
    said = capsys.readouterr().out
    assert "continues with another length (--steps was 4, now 7)" in said and "continuing after step 4" in said
    straight = trained(tmp_path, common, "b", *more, "--steps", "7")
    digests = [convert.read(path).metadata["sshs_model_hash"] for path in (out, straight)]
    assert digests[0] == digests[1] and out.read_bytes() != first
    for step in (2, 4, 6):  # the first run ended with step 4 and wrote only --out
        ours, theirs = (load_file(tmp_path / f"run-{name}/loras/{name}-00000{step}.safetensors") for name in "ab")
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert main([*common, *more, "--out", str(out), "--run", str(tmp_path / "run-a"), "--steps", "5"]) == 2
    assert "has 7 steps, more than the 5" in capsys.readouterr().err


def test_a_run_continues_from_any_form_of_a_lora(tmp_path: Path, common: list[str], capsys: pytest.CaptureFixture) -> None:
    more = ["--targets", "locon", "--rank", "3", "--alpha", "1.5", "--conv-rank", "2", "--conv-alpha", "1", "--text-encoder"]
    first = trained(tmp_path, common, "first", *more, "--steps", "2")
    for form in ("diffusers", "peft"):
        other = tmp_path / ("other" if form == "peft" else "other.safetensors")
        convert.convert_file(first, other, to=form)
        recipe, _ = cli.parse([*common, "--out", "x.safetensors", "--init", str(other)])
        assert (recipe.rank, recipe.alpha, recipe.conv_rank, recipe.conv_alpha, recipe.targets, recipe.text_encoder) == (
            3, 1.5, 2, 1.0, "locon", True)
        second = trained(tmp_path, common, form, "--init", str(other), "--steps", "1", "--learning-rate", "1e-12",
                         "--weight-decay", "0")
        before, after = load_file(first), load_file(second)
        assert before.keys() == after.keys()
        assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)
    with pytest.raises(UsageError, match="--rank 8: the LoRA of --init has 3"):
        recipe_of(first, {"rank": 8})
    narrower = replace(Recipe(), targets=".*attn2.to_q|.*conv1")
    names = {m.module.name for m in convert.read(first).modules.values() if m.module.name.endswith(("attn2.to_q", "conv1"))}
    kept = {key: value for key, value in before.items()
            if any(key.startswith(f"lora_unet_{name.replace('.', '_')}.") for name in names)}
    from safetensors.torch import save_file

    save_file(kept, tmp_path / "some.safetensors", {"ss_base_model_version": "like_sd_v1"})
    import re

    pattern = recipe_of(tmp_path / "some.safetensors", {})["targets"]
    assert {name for name in names if re.fullmatch(pattern, name)} == names and narrower.targets != pattern
    key = next(key for key in kept if key.endswith("to_q.alpha"))
    save_file(kept | {key: torch.tensor(7.0)}, tmp_path / "mixed.safetensors", {"ss_base_model_version": "like_sd_v1"})
    with pytest.raises(JobError, match="differ in rank/alpha"):
        recipe_of(tmp_path / "mixed.safetensors", {})


def test_prompts_in_kohyas_words(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("a cat, sitting --n bad hands, --w 512 --h 768 --d 42 --l 6.5 --s 20 --am 0.8\n\n# note\na dog -- old\n")
    assert read_prompts(file) == [
        SamplePrompt("a cat, sitting", "bad hands,", 512, 768, 42, 20, 6.5, 0.8), SamplePrompt("a dog -- old")]
    for wrong, said in (("a --w 100", "100 pixels"), ("a --q 1", "--q is not known"), ("a --d x", "--d x: expected a number"),
                        ("#", "has no prompts"), ("a --am 9", "a scale from 0 to 2")):
        file.write_text(wrong)
        with pytest.raises(UsageError, match=said):
            read_prompts(file)


def test_presets(tmp_path: Path) -> None:
    """The user's own pictures get `style`; given options win; each kind of length replaces a preset's."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    style, job = cli.parse(["--out", "x.safetensors", "--data", str(tmp_path)])
    assert style == Recipe(data=str(tmp_path), **PRESETS["style"]) and "--preset style" in job.note
    assert [style.total_steps(n) * style.batch for n in (10, 20, 50, 1000)] == [3600, 3150, 3060, 10020]
    given, _ = cli.parse(["--out", "x.safetensors", "--data", str(tmp_path), "--preset", "character", "--epochs", "3"])
    assert given.text_encoder and not given.flip and given.total_steps(20) == 21
    small, job = cli.parse(["--out", "x.safetensors", "--data", str(tmp_path), "--preset", "style", "--base", "miniature",
                            "--batch", "2"])  # fmt: skip
    assert small == Recipe(data=str(tmp_path), base="miniature", **PRESETS["style"] | ON_MINIATURE | {"batch": 2})
    assert "miniature" in job.note
    packed = tmp_path / "mine.safetensors"
    packed.write_bytes(gzip.decompress(NETWORKS.read_bytes()))
    renamed, job = cli.parse(["--out", "x.safetensors", "--data", str(tmp_path), "--base", str(packed), "--batch", "2"])
    assert renamed == replace(small, base=str(packed)) and "miniature" in job.note
    drawings, job = cli.parse(["--out", "x.safetensors"])
    assert drawings == Recipe() and not job.note
    prodigy, _ = cli.parse(["--out", "x.safetensors", "--preset", "character", "--optimizer", "prodigy"])
    assert (prodigy.learning_rate, prodigy.true_text_encoder_rate) == (1.0, 1.0)
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": style.as_dict()}))
    assert cli.parse(["--out", "x.safetensors", "--recipe", str(tmp_path / "recipe.json")])[0] == style
    for wrong in (["--demo", "--preset", "style"], ["--recipe", str(tmp_path / "recipe.json"), "--preset", "style"]):
        with pytest.raises(UsageError, match="give one of them"):
            cli.parse(["--out", "x.safetensors", *wrong])
