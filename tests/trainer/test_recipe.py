"""The recipe agrees with the paper, and the command line with the recipe."""

from __future__ import annotations

import dataclasses
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from convert.errors import JobError, UsageError
from trainer import cli, plan
from trainer.layers import TARGETS
from trainer.miniature.shipped import NETWORKS
from trainer.recipe import Recipe, flag, option


def test_the_papers_arithmetic() -> None:
    recipe = Recipe()
    assert recipe.steps_per_epoch(2000) == 63  # ceil(250 / 4)
    assert recipe.total_steps(2000) == 4410
    counted = plan.plan(recipe, 2000)
    assert counted.samples == 140_000
    assert counted.latent_bytes == 2000 * 2 * 131072 // 2  # mean and std, fp16, of a picture and its mirror image


def test_the_miniature_costs_the_same_under_any_name(tmp_path: Path) -> None:
    packed = tmp_path / "mine.safetensors"
    packed.write_bytes(gzip.decompress(NETWORKS.read_bytes()))
    named, renamed, sd15 = (Recipe(base=base) for base in ("miniature", str(packed), Recipe().base))
    assert plan.plan(renamed, 20) == plan.plan(named, 20)
    assert plan.plan(sd15, 20).latent_bytes == 16 * plan.plan(named, 20).latent_bytes
    seconds = [plan.seconds(recipe, 300, "cpu", 1e11) for recipe in (named, renamed, sd15)]
    assert seconds[0] == seconds[1] < seconds[2] / 100


def test_a_partial_epoch_counts_what_it_has() -> None:
    recipe = Recipe(epochs=1, batch=8, accumulation=4)
    assert recipe.steps_per_epoch(33) == 2
    assert plan.plan(recipe, 33).samples == 33


@pytest.mark.parametrize(("values", "named"), [
    ({"rank": 0}, "--rank"), ({"held_out": 1.0}, "--held-out"), ({"learning_rate": float("nan")}, "--learning-rate"),
    ({"resolution": 100}, "--resolution"), ({"noise_schedule": "cosine"}, "--noise-schedule"), ({"targets": "("}, "--targets"),
    ({"dtype": "fp8"}, "--dtype"), ({"scale": 0.0}, "--scale"), ({"steps": -1}, "--steps"),
])
def test_invalid_values_are_refused_by_flag(values: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Recipe(**values)


def test_every_field_is_a_flag_with_its_default_in_the_help() -> None:
    text = " ".join(cli.parser().format_help().split())
    for f in dataclasses.fields(Recipe):
        if f.metadata["hidden"]:
            continue
        assert flag(f.name) in text
        if isinstance(f.default, bool):
            assert f"(default: {'yes' if f.default else 'no'})" in text.replace("- ", "-")
        elif f.default != "" and len(str(f.default)) < 30:
            assert f"(default {f.default!r})" in text.replace("- ", "-")


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    code = "import sys; from trainer.cli import parser; parser().format_help(); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("'torch'", "'numpy'", "'diffusers'", "'transformers'", "'PIL'"):
        assert heavy not in loaded


def test_flags_change_presets_and_recipes(tmp_path: Path) -> None:
    _, job = cli.parse(["--demo"])
    assert (job.out, job.run) == (Path("demo/scribble.safetensors"), Path("demo/run"))  # apart from the next command's
    assert cli.parse(["--out", "scribble.safetensors"])[1].run == Path("runs/scribble")
    assert cli.parse(["--demo", "--dry-run"])[1].out is None
    demo, _ = cli.parse(["--demo", "--out", "x.safetensors", "--rank", "2"])
    assert (demo.base, demo.rank) == ("miniature", 2)
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": demo.as_dict()}))
    again, job = cli.parse(["--recipe", str(tmp_path / "recipe.json"), "--out", "x.safetensors", "--no-flip"])
    assert again == dataclasses.replace(demo, flip=False)
    assert job.run == Path("runs/x")


@pytest.mark.parametrize("argv", [
    [], ["--out", "a.safetensors", "--micro-batch", "-1"], ["--out", "a.safetensors", "--track", "x"],
    ["--out", "a.safetensors", "--rnk", "3"], ["--out", "a.safetensors", "--rank", "three"],
])
def test_bad_usage_is_one_line_and_exit_2(argv: list[str], capsys: pytest.CaptureFixture) -> None:
    from trainer.__main__ import main

    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("trainer: ") and said.count("\n") == 1


def test_a_file_without_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[")
    (tmp_path / "b.json").write_text('{"recipe": {"ranks": 3}}')
    for name in ("a.json", "b.json", "c.json"):
        with pytest.raises(JobError, match=name):
            cli.read_recipe(tmp_path / name)
    for content in ("[]", '"x"', '{"recipe": 5}', '{"recipe": {"rank": "4"}}', '{"rank": 2.5}', '{"flip": "no"}'):
        (tmp_path / "d.json").write_text(content)
        with pytest.raises(JobError, match="d.json"):
            cli.read_recipe(tmp_path / "d.json")
    (tmp_path / "d.json").write_text('{"alpha": 2, "flip": false}')
    assert cli.read_recipe(tmp_path / "d.json") == {"alpha": 2, "flip": False}


def test_a_slash_at_the_end_and_own_data_for_the_demo() -> None:
    with_slash, _ = cli.parse(["--out", "a.safetensors", "--data", "my_pictures/"])
    assert with_slash == cli.parse(["--out", "a.safetensors", "--data", "my_pictures"])[0]
    for root in ("/", "C:\\"):
        assert cli.parse(["--out", "a.safetensors", "--data", root])[0].data == root
    several, _ = cli.parse(["--out", "a.safetensors", "--data", "a/", "--data", "b, repeats=3"])
    assert (several.data, several.more_data) == ("a", ("b, repeats=3",))
    assert Recipe(**json.loads(json.dumps(several.as_dict()))) == several
    demo, _ = cli.parse(["--out", "a.safetensors", "--demo", "--data", "my_pictures"])
    assert (demo.categories, demo.rank) == ("100", 16)  # the demo's categories are the doodles'


def test_targets_choose_the_modules_they_name() -> None:
    import re

    from diffusers import UNet2DConditionModel
    from torch import nn

    unet = UNet2DConditionModel(block_out_channels=(8, 8, 8, 8), norm_num_groups=2, cross_attention_dim=8, attention_head_dim=2)
    names = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear)]
    hits = {target: sum(bool(re.fullmatch(pattern, name)) for name in names) for target, pattern in TARGETS.items()}
    assert {name: hits[name] for name in ("attention", "attention+ff", "cross-attention", "decoder-cross-attention")} == {
        "attention": 128, "attention+ff": 160, "cross-attention": 64, "decoder-cross-attention": 36}


def test_durations_in_words() -> None:
    assert [plan.in_words(s) for s in (30, 600, 30000, 86400 * 9)] == ["30 seconds", "10 minutes", "8 hours", "9 days"]
    assert "4410" in plan.report(Recipe(), plan.plan(Recipe(), 2000), "cuda", 8e14)


def test_the_stored_form_is_the_old_one_until_a_later_field_is_used() -> None:
    """A field that was added after recipes were first stored appears in the stored form only when it is used."""
    from trainer.recipe import Recipe as Now

    later = [f for f in dataclasses.fields(Now) if f.metadata["later"]]
    assert set(Now().values()) - set(Now().as_dict()) == {f.name for f in later}
    assert json.loads(json.dumps(Now().values())) == Now().values()  # JSON values only

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Newer(Now):
        words: tuple[str, ...] = option((), "words", later=True)

    assert Newer().as_dict() == Now().as_dict()
    assert Newer(words=("a", "b")).as_dict() == Now().as_dict() | {"words": ["a", "b"]}
