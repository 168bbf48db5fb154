"""The recommended scale and the trigger words of a LoRA, from the web UI's card beside it or its own metadata."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

from ..convert import BadCard, JobError
from ..convert.container import open_container
from ..convert.files.card import Advice, advice, card_path, read_card
from .stamps import Stamp, stamp


def of_file(path: Path) -> Advice:
    """The advice for a LoRA file, reread only if it or its card has changed. Empty for a broken file.

    Raises OSError if the file does not exist or cannot be accessed.
    """
    return _of_file(path, fingerprint(path))


def fingerprint(path: Path) -> Stamp:
    """Changes if the file or its card does."""
    return stamp(path, card_path(path))


@lru_cache(maxsize=64)
def _of_file(path: Path, _: Stamp) -> Advice:
    return advice(_card(path), _metadata(path))


def _card(path: Path) -> dict[str, object]:
    try:
        return dict(read_card(path))
    except BadCard as error:
        logging.warning("Scribble LoRA: %s: %s; its scale and trigger words are ignored", error.path, error.problem)
        return {}


def _metadata(path: Path) -> dict[str, str]:
    try:
        return dict(open_container(path).metadata)
    except JobError:
        return {}  # loading the file will report the error
