"""What a LoRA's maker or owner says of its use: the recommended scale and the trigger words. Broken cards are logged."""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..convert.card import LIMIT, Advice, advice, card_path
from ..convert.container import open_container
from ..convert.errors import JobError
from .stamps import Stamp, stamp


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
    return advice(_card(card_path(path)), _metadata(path))


def _card(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            card = json.loads(file.read(LIMIT).decode("utf-8"))
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
