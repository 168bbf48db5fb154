"""The four fields of a LoRA's card that the page edits; all others in the card stay."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from convert.errors import UsageError
from convert.files import card


class Card(NamedTuple):
    """As the page shows it."""

    words: str
    weight: float
    """0: none is preferred"""
    description: str
    notes: str


KEYS = ("activation text", "preferred weight", "description", "notes")


def read_card(lora: Path) -> Card:
    """BadCard where it cannot be read: it is the user's, and stays as it is."""
    fields = card.read_card(lora)
    advice = card.advice(fields, {})
    return Card(advice.trigger_words, advice.scale or 0.0, *(str(fields.get(key) or "") for key in KEYS[2:]))


def write_card(lora: Path, new: Card) -> Path:
    """UsageError where the weight makes no sense; BadCard as above."""
    if not 0 <= new.weight <= 2:
        raise UsageError(f"the preferred weight {new.weight:g}: expected 0, for none, to 2")
    return card.write_card(lora, dict(zip(KEYS, new._replace(words=new.words.strip()), strict=True)))
