"""What is known of a LoRA's use: the web UI's card beside the file and the file's metadata; and its picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..convert.errors import BadCard
from ..convert.files.card import advice, card_path, read_card, write_card

PICTURES = (".png", ".preview.png", ".jpg", ".preview.jpg", ".jpeg", ".preview.jpeg", ".webp", ".preview.webp",
            ".gif", ".preview.gif")  # fmt: skip
"""Endings under which the web UI finds the picture of a file."""


VERSIONS = ("SD1", "SD2", "SDXL")
"""What the web UI's own editor of cards offers as "sd version", beside "Unknown"."""


@dataclass(frozen=True)
class Card:
    """What is known of a LoRA's use; None and "" if nothing is."""

    trigger_words: str = ""
    scale: float | None = None
    """the recommended one"""
    description: str = ""
    problem: str = ""
    """why the card could not be read"""


def read(lora: Path, metadata: Mapping[str, str]) -> Card:
    """The card beside `lora`, completed from the file's metadata. An unreadable card is described, not raised."""
    fields, problem = {}, ""
    try:
        fields = read_card(lora)
    except BadCard as error:
        problem = f"{card_path(lora).name} {error.problem}"
    advised = advice(fields, metadata)
    description = fields.get("description")
    return Card(advised.trigger_words, advised.scale, description if isinstance(description, str) else "", problem)


def write(lora: Path, *, base: str, trigger_words: str, scale: float, description: str) -> Path:
    """Write the card beside `lora`, keeping every field that is not named here. Raises `JobError`.

    Args:
        base: the kind of model the file is for, written if the card names none.
        scale: the recommended one; 0 means none is.
    """
    fields = {"activation text": trigger_words.strip(), "preferred weight": scale, "description": description.strip()}
    return write_card(lora, fields, defaults={"sd version": base if base in VERSIONS else "Unknown"})


def picture(lora: Path) -> Path | None:
    """The picture that the web UI shows for `lora`."""
    places = (lora.with_name(lora.stem + ending) for ending in PICTURES)
    return next((place for place in places if place.is_file()), None)
