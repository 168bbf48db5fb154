"""The miniature's judge replaces a CLIP in the evaluation, and reports unknown words."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.errors import JobError
from trainer.data.records import process
from trainer.evaluate import small_judge
from trainer.evaluate.judge import clip_score, similarity
from trainer.evaluate.small_judge import SmallJudge, find_judge
from trainer.miniature import drawings
from trainer.miniature.shipped import JUDGE

CPU = torch.device("cpu")


def shown(word: str) -> list[np.ndarray]:
    return [process(drawing, 128) for drawing in drawings.drawings(word)[:6]]


def test_miniature_is_the_judge_that_ships_and_any_other_name_a_clip(clip: Path) -> None:
    found = find_judge("miniature", "--clip", CPU, print)
    assert isinstance(found, SmallJudge) and found.name == "miniature"
    assert found.identity == hashlib.sha256(JUDGE.read_bytes()).hexdigest()
    assert not isinstance(find_judge(str(clip), "--clip", CPU, print), SmallJudge)


def test_both_scores_tell_words_apart() -> None:
    judge = find_judge("miniature", "--clip", CPU, print)
    apples, ladders = judge.images(shown("apple")), judge.images(shown("ladder"))
    texts = judge.texts(["a scribble of apple"]).expand_as(apples)
    assert clip_score(apples, texts).mean() > clip_score(ladders, texts).mean() + 20
    assert similarity(apples[:3], apples[3:]).mean() > similarity(apples[:3], ladders).mean() + 0.2
    assert judge.images([np.full((side, side, 3), 255, np.uint8) for side in (64, 96, 128)]).shape == (3, 128)


def test_unknown_words_are_reported_once() -> None:
    said: list[str] = []
    judge = find_judge("miniature", "--clip", CPU, said.append)
    judge.texts(["a scribble of apple", "a gloomy apple in a wild storm"])
    judge.texts(["a gloomy star"])
    assert said == ["--clip miniature: does not know gloomy, wild, storm; it judges by the other words"]


def test_a_damaged_judge_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "judge.safetensors").write_bytes(b"not a judge")
    monkeypatch.setattr(small_judge, "JUDGE", tmp_path / "judge.safetensors")
    with pytest.raises(JobError, match="is not the miniature's judge") as error:
        find_judge("miniature", "--clip", CPU, print)
    assert "\n" not in str(error.value)
