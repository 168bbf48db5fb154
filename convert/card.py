"""The web UI's card of a LoRA, `<name>.json` beside the file: where it lies, and what it and the metadata advise.

What the owner wrote into the card goes before the file's own metadata (`scribble_scale`, written by our trainer, and
ModelSpec's `modelspec.trigger_phrase`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 1 << 20
"""Bytes of a card that are read; the web UI's are some hundred."""


@dataclass(frozen=True)
class Advice:
    """What to start with; None and "" where nobody said anything."""

    scale: float | None = None
    trigger_words: str = ""


def card_path(lora: Path) -> Path:
    """Where the web UI keeps what its user wrote about a LoRA."""
    return lora.with_suffix(".json")


def advice(fields: Mapping[str, Any], metadata: Mapping[str, str]) -> Advice:
    """The recommended scale and the trigger words, from a card's fields and a file's metadata."""
    scale = _positive(fields.get("preferred weight"))  # the web UI writes 0 for "not set"
    words = fields.get("activation text")
    if not isinstance(words, str) or not words.strip():
        words = metadata.get("modelspec.trigger_phrase", "")
    return Advice(scale if scale is not None else _positive(metadata.get("scribble_scale")), " ".join(words.split()))


def _positive(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
