"""What a LoRA's maker or owner says of its use: the recommended scale and the trigger words.

The web UI's card, `<name>.json` beside the file, is what its owner may have edited, so it goes before the file's own
metadata (`scribble_scale`, written by our trainer, and ModelSpec's `modelspec.trigger_phrase`).
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..convert.container import open_container
from ..convert.errors import JobError
from .stamps import Stamp, stamp

CARD_LIMIT = 1 << 20
"""Bytes of a card that are read; the web UI's are some hundred."""


@dataclass(frozen=True)
class Advice:
    """What to start with; None and "" where nobody said anything."""

    scale: float | None = None
    trigger_words: str = ""


def of_file(path: Path) -> Advice:
    """The advice for a LoRA file, read anew only when it or its card has changed. A broken one has none.

    Raises OSError where the host may not look at the file at all.
    """
    return _of_file(path, fingerprint(path))


def fingerprint(path: Path) -> Stamp:
    """Changes when the file or its card does."""
    return stamp(path, card_path(path))


@lru_cache(maxsize=64)
def _of_file(path: Path, _: Stamp) -> Advice:
    card, metadata = _card(card_path(path)), _metadata(path)
    scale = _positive(card.get("preferred weight"))  # the web UI writes 0 for "not set"
    words = card.get("activation text")
    if not isinstance(words, str) or not words.strip():
        words = metadata.get("modelspec.trigger_phrase", "")
    return Advice(scale if scale is not None else _positive(metadata.get("scribble_scale")), " ".join(words.split()))


def card_path(path: Path) -> Path:
    """Where the web UI keeps what its user wrote about a LoRA."""
    return path.with_suffix(".json")


def _card(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            card = json.loads(file.read(CARD_LIMIT).decode("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        logging.warning("Scribble LoRA: %s cannot be read, so its scale and trigger words are not known: %s", path, error)
        return {}
    return card if isinstance(card, dict) else {}


def _metadata(path: Path) -> dict[str, str]:
    try:
        return dict(open_container(path).metadata)
    except JobError:
        return {}  # whoever loads the file says what is wrong with it


def _positive(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
