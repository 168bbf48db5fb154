"""The judge's numbers are transformers' own, by hand, on the same pictures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from convert.errors import JobError, UsageError
from trainer.evaluate import judge
from trainer.evaluate.judge import ImageJudge, Judge, clip_score, similarity

CPU = torch.device("cpu")
PROMPTS = ["a scribble of apple", "house", "a photo of a red car on a blue background and some more words than it can read"]


def pictures(count: int, side: int = 48) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def test_clip_score_is_a_hundred_times_transformers_cosine(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "BATCH", 2)  # three pictures are two batches
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    shown = pictures(3)
    with torch.no_grad():
        found = model(pixel_values=CLIPImageProcessor.from_pretrained(clip)(
            [Image.fromarray(p) for p in shown], return_tensors="pt")["pixel_values"],
            **tokenizer(PROMPTS, padding=True, truncation=True, max_length=16, return_tensors="pt"))  # fmt: skip
    cosines = found.logits_per_image / model.logit_scale.exp()
    ours = Judge(str(clip), "--clip", CPU, print)
    images, texts = ours.images(shown), ours.texts(PROMPTS)
    torch.testing.assert_close(clip_score(images, texts), 100 * cosines.diagonal().clamp(min=0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(images, torch.nn.functional.normalize(found.image_embeds), atol=1e-5, rtol=1e-4)
    assert (clip_score(images, -images) == 0).all()  # never below 0


def test_similarity_is_the_mean_cosine_with_the_references() -> None:
    a, b = torch.randn(4, 6), torch.randn(3, 6)
    unit = torch.nn.functional.normalize
    expected = torch.stack([torch.nn.functional.cosine_similarity(row[None], b).mean() for row in a])
    torch.testing.assert_close(similarity(unit(a), unit(b)), expected)


def test_folders_without_a_clip_are_one_line(clip: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--clip /no/where: there is no such folder"):
        Judge("/no/where", "--clip", CPU, print)
    with pytest.raises(JobError, match="model_type 'clip_text_model', not 'clip'"):
        Judge(str(base / "text_encoder"), "--image-clip", CPU, print)
    cut = tmp_path / "cut"
    shutil.copytree(clip, cut)
    from safetensors.torch import load_file, save_file

    weights = load_file(cut / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, cut / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobError, match="1 weights are missing, first visual_projection.weight"):
        Judge(str(cut), "--clip", CPU, print)
    (cut / "config.json").write_text(json.dumps({}))
    with pytest.raises(JobError) as error:
        Judge(str(cut), "--clip", CPU, print)
    assert "\n" not in str(error.value)
    with open(cut / "model.safetensors", "rb+") as file:
        file.truncate(1000)
    with pytest.raises(JobError, match="is not a complete CLIP"):
        Judge(str(cut), "--clip", CPU, print)


def test_a_pickle_is_never_loaded(clip: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(clip, pickled)
    from safetensors.torch import load_file

    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"^--clip .*pickled: has no model.safetensors, only a pickle, which is never loaded"):
        Judge(str(pickled), "--clip", CPU, print)


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    """A DINOv2 of random weights."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(3)
    folder = tmp_path / "dino"
    Dinov2Model(Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
                ).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def test_the_second_judge_gives_dinos_own_features(dino: Path, clip: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Model

    shown = pictures(3)
    pixels = BitImageProcessor.from_pretrained(dino)([Image.fromarray(p) for p in shown], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = Dinov2Model.from_pretrained(dino)(pixel_values=pixels).pooler_output
    judge = ImageJudge(str(dino), "--dino", CPU, print)
    torch.testing.assert_close(judge.images(shown), torch.nn.functional.normalize(theirs), atol=1e-5, rtol=1e-4)
    with pytest.raises(JobError, match="model_type 'clip', not 'dinov2'"):
        ImageJudge(str(clip), "--dino", CPU, print)


HUB = """
import sys, torch
from convert.errors import JobError, UsageError
from trainer.evaluate.judge import Judge
for name in sys.argv[1:]:
    try:
        print(Judge(name, "--clip", torch.device("cpu"), print).identity)
    except (JobError, UsageError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


def test_the_hubs_cache_is_enough_and_without_it_there_is_one_line(clip: Path, tmp_path: Path) -> None:
    """In a subprocess, with an unreachable hub."""
    model = tmp_path / "hub" / "models--someone--a-clip"
    shutil.copytree(clip, model / "snapshots" / "c0ffee")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("c0ffee")
    command = [sys.executable, "-c", HUB, "someone/a-clip", "someone/another"]
    failed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True,
                            env=os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert failed.stdout == "c0ffee\n"
    assert failed.stderr.startswith("JobError: --clip someone/another: cannot be downloaded from the hub (")
    assert failed.stderr.endswith("go online, or give a folder of a CLIP in transformers form\n")
    assert failed.stderr.count("\n") == 1
