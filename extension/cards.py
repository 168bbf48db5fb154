"""The web UI's card of a LoRA, `<name>.json` beside the file, and its picture: read, written, found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.card import LIMIT, advice, card_path
from ..convert.errors import JobError
from ..convert.files import write_json

PICTURES = (".png", ".preview.png", ".jpg", ".preview.jpg", ".jpeg", ".preview.jpeg", ".webp", ".preview.webp",
            ".gif", ".preview.gif")  # fmt: skip
"""Endings under which the web UI finds the picture of a file."""


VERSIONS = ("SD1", "SD2", "SDXL")
"""What the web UI's own editor of cards offers as "sd version", beside "Unknown"."""


@dataclass(frozen=True)
class Card:
    """What is known of a LoRA's use; None and "" where nobody said anything."""

    trigger_words: str = ""
    scale: float | None = None
    """the recommended one"""
    description: str = ""
    problem: str = ""
    """why the card could not be read"""


def read(lora: Path, metadata: Mapping[str, str]) -> Card:
    """The card beside `lora`, completed from the file's metadata. A broken card is described, not raised."""
    fields, problem = {}, ""
    try:
        fields = load(card_path(lora))
    except JobError as error:
        problem = str(error)
    advised = advice(fields, metadata)
    description = fields.get("description")
    return Card(advised.trigger_words, advised.scale, description if isinstance(description, str) else "", problem)


def load(path: Path) -> dict[str, Any]:
    """A card's fields, {} where there is none. `JobError` for one that cannot be read, so that nobody replaces it."""
    try:
        with open(path, "rb") as file:
            fields = json.loads(file.read(LIMIT).decode("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise JobError(f"{path.name}: the card cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise JobError(f"{path.name}: the card is no JSON object")
    return fields


def write(lora: Path, *, base: str, trigger_words: str, scale: float, description: str) -> Path:
    """Write the card beside `lora`, keeping every field that is not named here.

    Args:
        base: the kind of model the file is for, written where the card names none.
        scale: the recommended one; 0 means none is.
    """
    path = card_path(lora)
    version = base if base in VERSIONS else "Unknown"
    fields: dict[str, Any] = {"sd version": version, "negative text": "", "notes": "", **load(path)}
    fields |= {"activation text": trigger_words.strip(), "preferred weight": scale, "description": description.strip()}
    write_json(path, fields)
    return path


def picture(lora: Path) -> Path | None:
    """The picture that the web UI shows for `lora`."""
    places = (lora.with_suffix("").with_name(lora.stem + ending) for ending in PICTURES)
    return next((place for place in places if place.is_file()), None)
