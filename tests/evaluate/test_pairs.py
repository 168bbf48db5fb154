"""Step and scale together, and two reports side by side: rules on known numbers, and a complete run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from convert import convert_file, read
from convert.errors import UsageError
from trainer.evaluate.__main__ import main
from trainer.evaluate.against import compare
from trainer.evaluate.checkpoints import in_words, pair
from trainer.recipe import Recipe
from trainer.training import checkpoints

SCALES = [0.0, 0.5, 1.0]


def report(means: list[float], *, seed: int = 0, prompt: float = 0.0, copies: bool = False, name: str = "a") -> dict[str, Any]:
    """Ten categories, two pictures each, whose similarities have these means; each category has its own level."""
    rng = np.random.default_rng(7)
    level, jitter = rng.normal(0, 0.1, 10), np.random.default_rng(seed)
    subjects = [{"name": f"c{k // 2}", "prompt": f"a scribble of c{k // 2}", "seed": k,
                 "similarity": (np.array(means) + level[k // 2] + jitter.normal(0, 0.005, 3)).tolist(),
                 "prompt_score": (25 + np.array([0, prompt, prompt]) + jitter.normal(0, 0.05, 3)).tolist(),
                 "clip_score": [25.0] * 3, "ink_distance": [2.0] * 3} for k in range(20)]  # fmt: skip
    return {"scales": SCALES, "settings": {"seed": 0, "per_scale": 20}, "lora": {"name": name},
            "recommended": {"scale": 0.5, "best": 0.5},
            "groups": {"seen": {"subjects": subjects, "own_prompt_score": {f"c{k}": 25.0 for k in range(10)},
                                "nearest_training": {"copies": [False, copies, copies]}}}}  # fmt: skip


def test_the_pair_is_the_smallest_scale_then_the_earliest_step_of_the_best() -> None:
    found = pair({100: report([0.4, 0.5, 0.6]), 200: report([0.4, 0.8, 0.6], seed=1), 300: report([0.4, 0.6, 0.7], seed=2)})
    assert (found["step"], found["scale"], found["verdict"]) == (200, 0.5, "best")
    assert "step 200 at scale 0.5" in in_words(found)
    early = pair({100: report([0.4, 0.8, 0.6]), 200: report([0.4, 0.8, 0.6])})  # equal numbers
    assert (early["step"], early["scale"]) == (100, 0.5)


def test_pairs_that_copy_or_lose_the_prompt_do_not_count_and_noise_gets_none() -> None:
    copied = pair({100: report([0.4, 0.6, 0.5]), 200: report([0.4, 0.9, 0.95], seed=1, copies=True)})
    assert (copied["step"], copied["scale"]) == (100, 0.5)
    lost = pair({100: report([0.4, 0.9, 0.9], prompt=-3)})
    assert (lost["scale"], lost["verdict"]) == (None, "prompt lost")
    noise = pair({100: report([0.4, 0.4, 0.4]), 200: report([0.4, 0.4, 0.4], seed=1)})
    assert (noise["scale"], noise["verdict"]) == (None, "noise") and in_words(noise).startswith("Nothing is recommended")


def test_two_reports_are_compared_by_category(tmp_path: Path) -> None:
    ours, theirs = report([0.4, 0.8, 0.6], name="new"), report([0.4, 0.7, 0.6], seed=1, name="old")
    other = tmp_path / "old"
    other.mkdir()
    (other / "report.json").write_text(json.dumps(theirs))
    (other / "index.html").write_text("")
    sentence = compare(ours, tmp_path, other)
    assert sentence.startswith("new at 0.5 against old at 0.5: +0.1") and sentence.endswith("more like real pictures.")
    low, high = (float(word) for word in sentence.split("interval ")[1].split(":")[0].split(" to "))
    assert 0.09 < low < 0.1 < high < 0.11  # though categories differ by 0.1
    rows = (tmp_path / "against.csv").read_text().splitlines()
    assert len(rows) == 4 and rows[0].startswith("scale,similarity_mean,similarity_low")
    assert "old" in (tmp_path / "against.html").read_text()
    theirs["groups"]["seen"]["subjects"][0]["seed"] = 99
    (other / "report.json").write_text(json.dumps(theirs))
    with pytest.raises(UsageError, match="has other prompts or seeds"):
        compare(ours, tmp_path, other)
    (other / "report.json").write_text(json.dumps(theirs | {"settings": {"seed": 3, "per_scale": 20}}))
    with pytest.raises(UsageError, match="was measured with another seed"):
        compare(ours, tmp_path, other)
    with pytest.raises(UsageError, match="has no finished report"):
        compare(ours, tmp_path, tmp_path / "nowhere")


@pytest.fixture
def run(lora: Path, recipe: Recipe, tmp_path: Path) -> Path:
    """A run's folder with two checkpoints: half the LoRA's effect, and the LoRA."""
    folder, recipe = tmp_path / "run", replace(recipe, rank=2)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({"recipe": recipe.as_dict()}))
    (folder / "export.json").write_text(json.dumps({"out": str(lora)}))
    finished = {"sshs_model_hash": "the last step's", "run": {"recipe": recipe.as_dict()}}
    (folder / "finished.json").write_text(json.dumps(finished))
    convert_file(lora, folder / "pytorch_lora_weights.safetensors", to="diffusers")
    convert_file(lora, tmp_path / "as-peft", to="peft")
    factors = load_file(tmp_path / "as-peft" / "adapter_model.safetensors")
    names = {key: key.removeprefix("base_model.model.").replace(".weight", ".default.weight") for key in factors}
    for step, share in ((3, 0.5), (6, 1.0)):
        named = [(names[key], torch.nn.Parameter(value * (share if ".lora_B." in key else 1)))
                 for key, value in factors.items()]
        state = SimpleNamespace(step=step, micro_batch=1, factors=named, optimizer=torch.optim.AdamW([p for _, p in named]),
                                scaler=torch.amp.GradScaler("cpu", enabled=False))
        checkpoints.save(folder / "checkpoints", state, {}, "cpu")
    return folder


def test_a_run_is_measured_and_its_best_checkpoint_put_in_place(
    run: Path, lora: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(run), "--out", str(tmp_path / "out"), "--clip", str(clip), "--image-clip", str(clip), "--scales", "1",
                 "--per-scale", "2", "--prompts", "1", "--seeds", "1", "--rows", "1", "--drawings", "2", "--noises", "1",
                 "--sampling-steps", "1", "--device", "cpu", "--cache", str(tmp_path / "cache")]  # fmt: skip
    assert main(arguments) == 0
    joint = json.loads((tmp_path / "out" / "report.json").read_text())
    assert joint["steps"] == [3, 6] and joint["similarity"]["3"][0] == joint["similarity"]["6"][0]  # the base, drawn once
    assert joint["similarity"]["3"][1] != joint["similarity"]["6"][1]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "href='step-000003/index.html'" in page and (tmp_path / "out" / "steps-and-scales.png").stat().st_size > 5000
    final = read(lora).metadata
    joint["recommended"] = {"scale": 1.0, "low": 1.0, "high": 1.0, "best": 1.0, "step": 3, "verdict": "best", "categories": 4,
                            "gain": {"mean": 0.1, "low": 0.05, "high": 0.15}}
    monkeypatch.setattr("trainer.evaluate.checkpoints.pair", lambda reports: joint["recommended"])
    before = shutil.copy(lora, tmp_path / "before.safetensors")
    assert main([*arguments, "--write"]) == 0
    now = read(lora).metadata
    assert (now["ss_steps"], now["scribble_scale"]) == ("3", "1.0") and now["sshs_model_hash"] != final["sshs_model_hash"]
    kept = lora.with_name("tiny.before-evaluation.safetensors")
    assert kept.read_bytes() == Path(before).read_bytes()
    assert json.loads(lora.with_suffix(".json").read_text())["preferred weight"] == 1.0
    assert json.loads((run / "finished.json").read_text())["sshs_model_hash"] == now["sshs_model_hash"]
    capsys.readouterr()
    assert main([str(lora), *arguments[1:]]) in (1, 2)  # the folder is a run's report
