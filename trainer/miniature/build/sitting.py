"""A long training in several sittings: saves its state, and a copy, every ten minutes and on SIGTERM."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch

EVERY = 600  # seconds


class Sitting:
    """Saves a training's state to `path`, and a copy to the folder `mirror`; `over` becomes true on SIGTERM or SIGINT."""

    def __init__(self, path: Path, mirror: Path | None) -> None:
        self.path, self.mirror, self.over, self.saved = path, mirror, False, time.monotonic()
        self.handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}

    def _stop(self, *_: object) -> None:
        self.over = True

    def end(self) -> None:
        """Restore the signal handlers once there is nothing left to save."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    @property
    def due(self) -> bool:
        """Whether the state should be saved now."""
        return self.over or time.monotonic() - self.saved > EVERY

    def load(self) -> dict[str, Any] | None:
        """The last saved state, from the copy if `path` is missing; None at the very start."""
        for path in (self.path, self.mirror / self.path.name if self.mirror else self.path):
            if path.exists():
                return torch.load(path, weights_only=True)
        return None

    def save(self, state: dict[str, Any]) -> None:
        """Write beside, flush, rename; then the copy, the same way."""
        part = self.path.with_name(self.path.name + ".part")
        torch.save(state, part)
        _replace(part, self.path)
        if self.mirror:
            copy = self.mirror / part.name
            shutil.copyfile(self.path, copy)
            _replace(copy, self.mirror / self.path.name)
        self.saved = time.monotonic()


def _replace(part: Path, path: Path) -> None:
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
