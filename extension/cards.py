"""How to use a LoRA: trigger words, scale and description from its card or its metadata; and its preview picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..convert.errors import BadCard
from ..convert.files.card import advice, card_path, read_card, write_card

PICTURES = (".png", ".preview.png", ".jpg", ".preview.jpg", ".jpeg", ".preview.jpeg", ".webp", ".preview.webp",
            ".gif", ".preview.gif")  # fmt: skip
"""File name endings of preview pictures, in the web UI's order of preference."""


VERSIONS = ("SD1", "SD2", "SDXL")
"""Choices for "sd version" in the web UI's own card editor, besides "Unknown"."""


@dataclass(frozen=True)
class Card:
    """How to use a LoRA; None or "" for an unknown field."""

    trigger_words: str = ""
    scale: float | None = None
    """the recommended scale"""
    description: str = ""
    problem: str = ""
    """why the card could not be read"""


def read(lora: Path, metadata: Mapping[str, str]) -> Card:
    """The card beside `lora`, completed from its metadata. For an unreadable card `problem` is set; nothing is raised."""
    fields, problem = {}, ""
    try:
        fields = read_card(lora)
    except BadCard as error:
        problem = f"{card_path(lora).name} {error.problem}"
    advised = advice(fields, metadata)
    description = fields.get("description")
    return Card(advised.trigger_words, advised.scale, description if isinstance(description, str) else "", problem)


def write(lora: Path, *, base: str, trigger_words: str, scale: float, description: str) -> Path:
    """Write the card beside `lora`; all other fields of an existing card are kept. Raises `JobError`.

    Args:
        base: the kind of model the file is for, written if the card does not name one.
        scale: the recommended scale; 0 for no recommendation.
    """
    fields = {"activation text": trigger_words.strip(), "preferred weight": scale, "description": description.strip()}
    return write_card(lora, fields, defaults={"sd version": base if base in VERSIONS else "Unknown"})


def picture(lora: Path) -> Path | None:
    """The preview picture that the web UI shows for `lora`."""
    places = (lora.with_name(lora.stem + ending) for ending in PICTURES)
    return next((place for place in places if place.is_file()), None)
