"""The recommended scale: four rules over the measured curves, a sentence about it, and writing it for the hosts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convert import keys, set_metadata
from convert.errors import JobError, UsageError
from convert.files.card import read_card, write_card
from trainer.evaluate.results import Gain, Verdict
from trainer.evaluate.statistics import FEWEST, equals, interval

UNITS = "categories or captions"


def recommend(style: np.ndarray, prompt: np.ndarray, own: np.ndarray, copies: np.ndarray, scales: list[float],
              seed: int) -> Verdict:  # fmt: skip
    """The scale to use, as plain data.

    1. A scale counts only if it beats the base: the interval of (scale - base), over all scales at once, is above 0.
    2. Scales whose pictures are copies of training pictures do not count.
    3. Of those left, the smallest as good as the best, by the one-standard-error rule, is taken: it leaves the base the
       most room (section 4.3.2 of the paper argues for that).
    4. If the prompt is followed less there than by the base *and* less than by the real pictures, both beyond their paired
       intervals, the largest smaller scale that keeps the prompt is taken. Comparing only with the base would reject every
       LoRA of scribbles: "even images drawn by humans get a low CLIP score" (section 4.3.1).

    Args:
        style: similarity to real pictures, float (categories, scales); column 0 is the base, scale 0.
        prompt: how well the prompt without its trigger words is followed, the same shape.
        own: the same of the held-out real pictures, (categories,).
        copies: bool (scales,).
        scales: ascending, 0 first.

    Returns:
        scale: None if nothing is recommended. low, high: the range of scales as good as the best. best: the scale of the
        highest mean. gain: mean, low, high of (scale - base), null without an interval. verdict: "best"; "end", the best is
        the last scale and no other is as good; "only", one scale was measured; "prompt", rule 4 decided. Without a scale:
        "noise", none beats the base; "worse", none does and some are worse; "few", fewer than four categories; "copies";
        "prompt lost", each of them loses the prompt by rule 4.
    """
    mean = style.mean(axis=0)
    low, high = interval(style[:, 1:] - style[:, :1], seed, together=True)
    best = int(mean[1:].argmax()) + 1
    found: Verdict = {"scale": None, "low": None, "high": None, "best": scales[best], "gain": None, "categories": len(style),
                      "verdict": ""}
    if len(style) < FEWEST:
        return found | {"verdict": "few"}
    beats = np.concatenate([[False], low > 0])
    if not beats.any():
        return found | {"verdict": "worse" if (high < 0).any() else "noise", "gain": _gain(style, low, high, best)}
    if not (beats & ~copies).any():
        return found | {"verdict": "copies", "gain": _gain(style, low, high, best)}
    allowed = beats & ~copies
    alike = np.flatnonzero(equals(style, allowed))
    chosen, verdict = int(alike[0]), "best"
    if len(scales) == 2:
        verdict = "only"
    elif chosen == len(scales) - 1:
        verdict = "end"
    lost = (interval(prompt - prompt[:, :1], seed)[1] < 0) & (interval(prompt - own[:, None], seed)[1] < 0)
    if lost[chosen]:
        kept = [k for k in np.flatnonzero(allowed & ~lost) if k < chosen]
        if not kept:
            return found | {"verdict": "prompt lost", "gain": _gain(style, low, high, chosen)}
        chosen, verdict = int(kept[-1]), "prompt"
    return found | {"scale": scales[chosen], "low": scales[alike[0]], "high": scales[alike[-1]], "verdict": verdict,
                    "gain": _gain(style, low, high, chosen)}


def _gain(style: np.ndarray, low: np.ndarray, high: np.ndarray, k: int) -> Gain:
    return {"mean": round(float((style[:, k] - style[:, 0]).mean()), 6), "low": round(float(low[k - 1]), 6),
            "high": round(float(high[k - 1]), 6)}


def in_words(found: Verdict) -> str:
    """The verdict in a sentence or two."""
    gain = found["gain"]
    measured = "no interval"
    if gain:
        measured = f"{gain['mean']:+.3f} similarity against the base, 95 % interval {gain['low']:+.3f} to {gain['high']:+.3f}"
    if found["scale"] is None:
        return "Nothing is recommended: " + {
            "few": f"only {found['categories']} {UNITS} were measured, and intervals need at least {FEWEST}.",
            "noise": f"no scale brings the pictures measurably nearer to real ones (at best {found['best']:g}: {measured}).",
            "worse": f"no scale beats the base, and some are worse ({found['best']:g}: {measured}).",
            "copies": "at every scale that beats the base, the pictures are copies of training pictures.",
            "prompt lost": "at each scale that beats the base, pictures show their prompt less than the base's and real ones.",
        }[found["verdict"]]
    text = f"Use scale {found['scale']:g} ({measured}). "
    if found["verdict"] == "prompt":
        return text + (f"The style is strongest at {found['low']:g}, but there pictures show their prompt less than the base's "
                       "and real ones: this is the largest scale that keeps the prompt.")
    if found["verdict"] == "only":
        return text + "It is the only scale that was measured."
    if found["verdict"] == "end":
        return text + "The similarity still rises at the end of the range."
    if found["low"] == found["high"]:
        return text + "No other scale is as good."
    return text + (f"From {found['low']:g} to {found['high']:g} the pictures are equally like real ones, within one standard "
                   "error of the best; the smallest of these leaves the base the most room.")


def check_writable(lora: Path) -> None:
    """Check before any work that `write` will succeed. Raises UsageError or JobError."""
    if lora.is_dir() or lora.suffix != ".safetensors":
        raise UsageError(f"--write: {lora} is not a .safetensors file, so it has no metadata and no card")
    read_card(lora)


def write(lora: Path, found: Verdict, trigger: str) -> list[Path]:
    """Write the scale into the file's metadata and its card's `preferred weight`, and nothing else. Returns the files written.

    Raises:
        JobError: nothing is recommended, or a file cannot be written.
    """
    if found["scale"] is None:
        raise JobError(f"--write: {lora} was not changed. {in_words(found)}")
    read_card(lora)  # an unreadable card is an error before anything is written
    set_metadata(lora, {keys.SCALE: found["scale"], keys.SCALE_INTERVAL: [found["low"], found["high"]]})
    card = write_card(lora, {"preferred weight": found["scale"]}, defaults={"activation text": trigger})
    return [lora, card]
