"""The four fields of a LoRA's card that the page edits; other fields are kept."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from convert.errors import UsageError
from convert.files import card


class Card(NamedTuple):
    """The fields shown on the page."""

    words: str
    weight: float
    """0 for none"""
    description: str
    notes: str


KEYS = ("activation text", "preferred weight", "description", "notes")


def read_card(lora: Path) -> Card:
    """Raises BadCard if it cannot be read; it is never changed then, because it is the user's."""
    fields = card.read_card(lora)
    advice = card.advice(fields, {})
    return Card(advice.trigger_words, advice.scale or 0.0, *(str(fields.get(key) or "") for key in KEYS[2:]))


def write_card(lora: Path, new: Card) -> Path:
    """Raises UsageError for an invalid weight; BadCard as above."""
    if not 0 <= new.weight <= 2:
        raise UsageError(f"the preferred weight {new.weight:g}: expected 0, for none, to 2")
    return card.write_card(lora, dict(zip(KEYS, new._replace(words=new.words.strip()), strict=True)))
