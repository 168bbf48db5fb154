"""Shared by all steps of the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.page.commands import Places
from trainer.page.folders import Folders
from trainer.page.queue import Queue


@dataclass(frozen=True)
class Context:
    """One page's folders, queue and places."""

    folders: Folders
    queue: Queue
    places: Places
    cache: Path
