"""The scale to use, and putting it where hosts look: the LoRA's metadata and the web UI's card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convert import set_metadata
from convert.errors import JobError, UsageError
from convert.files.card import read_card, write_card
from trainer.evaluate.curves import peak


def recommend(similarity: np.ndarray, scales: list[float], seed: int) -> dict[str, Any]:
    """The peak of the mean similarity, float (pictures, scales), as plain data.

    scale, low, high: the peak and its 95 % interval. verdict: "peak" inside the range; "end" at its last scale, where more
    might be better still; "none" where the base alone, scale 0, does best: then nothing is recommended.
    """
    found = peak(similarity, scales, seed)
    verdict = "none" if found.scale == 0 else "end" if found.scale == scales[-1] else "peak"
    return {"scale": found.scale, "low": found.low, "high": found.high, "verdict": verdict}


def in_words(recommended: dict[str, Any]) -> str:
    """One sentence for people."""
    scale, low, high = (f"{recommended[key]:g}" for key in ("scale", "low", "high"))
    interval = f"95 % interval {low} to {high}" if low != high else f"in 95 % of resamples exactly {low}"
    return {"peak": f"Use scale {scale} ({interval}): there the pictures are most like real drawings.",
            "end": f"Use scale {scale} ({interval}): the similarity still rises at the end of the range.",
            "none": "No scale brings the pictures nearer to real drawings than the base alone: nothing is recommended.",
            }[recommended["verdict"]]  # fmt: skip


def check_writable(lora: Path) -> None:
    """Before any work: can `write` do its part? UsageError or JobError where not."""
    if lora.is_dir() or lora.suffix != ".safetensors":
        raise UsageError(f"--write: {lora} is no .safetensors file, which is what has metadata and a card")
    read_card(lora)


def write(lora: Path, recommended: dict[str, Any], trigger: str) -> list[Path]:
    """Put the scale into the file's metadata and its card's `preferred weight`; all else in both stays. The files written.

    Raises:
        JobError: nothing is recommended, or a file cannot be written.
    """
    if recommended["verdict"] == "none":
        raise JobError(f"--write: {lora} is left as it is: no scale brings the pictures nearer to real drawings than the base")
    read_card(lora)  # a damaged one ends the command before the file is touched
    scale = recommended["scale"]
    set_metadata(lora, {"scribble_scale": scale, "scribble_scale_interval": [recommended["low"], recommended["high"]]})
    return [lora, write_card(lora, {"preferred weight": scale}, defaults={"activation text": trigger})]
