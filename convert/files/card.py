"""The web UI's card of a LoRA, `<name>.json` beside the file: read, write, set aside; the scale and trigger words to use.

The card, written by the user, takes precedence over the file's metadata (`scribble_scale`, written by our trainer, and
ModelSpec's `modelspec.trigger_phrase`). A card that cannot be read still contains the user's text, so it is set aside and
never replaced.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import keys
from ..errors import BadCard
from . import write_json
from .json_file import read_object

LIMIT = 1 << 20
"""Largest card in bytes; the web UI writes a few hundred."""

EMPTY = {"description": "", "notes": "", "negative text": ""}
"""Fields of a new card; the web UI's own editor always writes them."""


@dataclass(frozen=True)
class Advice:
    """The recommended settings; None or "" without a recommendation."""

    scale: float | None = None
    trigger_words: str = ""


def card_path(lora: Path) -> Path:
    """The path of a LoRA's card."""
    return lora.with_suffix(".json")


def read_card(lora: Path) -> dict[str, Any]:
    """The fields of the card beside `lora`, {} if there is none. UTF-8, with or without a byte order mark.

    Raises `BadCard` if it cannot be read; a caller that continues must inform the user.
    """
    try:
        return read_object(card_path(lora), limit=LIMIT, error=BadCard)
    except FileNotFoundError:
        return {}


def write_card(lora: Path, fields: Mapping[str, Any], *, defaults: Mapping[str, Any] | None = None) -> Path:
    """Write `fields` into the card beside `lora` and return its path. All other fields are kept.

    Args:
        fields: replace the card's values.
        defaults: written only if the card lacks them.

    Raises:
        BadCard: there is a card that cannot be read; it is not changed (see `set_aside`).
        JobError: it cannot be written.
    """
    path, present = card_path(lora), read_card(lora)
    write_json(path, {**({} if present else EMPTY), **(defaults or {}), **present, **fields})
    return path


def set_aside(lora: Path) -> Path:
    """Rename the card beside `lora` to an unused name, `<name>.json.bak` or `.bak-2` …, and return it, to inform the user.

    Raises OSError if the card cannot be renamed.
    """
    path = card_path(lora)
    names = (path.with_name(f"{path.name}.bak{f'-{n}' if n > 1 else ''}") for n in range(1, 1000))
    kept = next(name for name in names if not os.path.lexists(name))
    path.rename(kept)
    return kept


def advice(fields: Mapping[str, Any], metadata: Mapping[str, str]) -> Advice:
    """The recommended scale and the trigger words, from a card's fields and a file's metadata."""
    scale = _positive(fields.get("preferred weight"))  # the web UI writes 0 for "not set"
    words = fields.get("activation text")
    if not isinstance(words, str) or not words.strip():
        words = metadata.get(keys.TRIGGER, "")
    return Advice(scale if scale is not None else _positive(metadata.get(keys.SCALE)), " ".join(words.split()))


def _positive(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
