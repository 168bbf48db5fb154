"""The run folder: one training run's recipe, checkpoints, metrics and results; and what may not be mixed in it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import JobError, UsageError
from convert.files import write_json
from trainer.base import Base
from trainer.data.records import Dataset
from trainer.recipe import Recipe, flag

RECIPE, FINISHED = "recipe.json", "finished.json"


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def begun(self) -> bool:
        """Whether it holds work that another recipe would spoil; a command that failed before its first checkpoint left
        none."""
        return (self.path / FINISHED).exists() or any(self.checkpoints.glob("*"))

    def check(self, recipe: Recipe) -> None:
        """Make sure that the folder is free or this recipe's: a changed recipe would mix two runs.

        Raises:
            UsageError: the folder holds a run of another recipe; the message lists the differing flags.
        """
        stored = _read(self.path / RECIPE) if self.begun else None
        if stored is None:
            return
        mine, theirs = json.loads(json.dumps(recipe.as_dict())), Recipe().as_dict() | stored.get("recipe", {})
        changed = [f"{flag(k)} was {theirs.get(k)!r}, now {mine.get(k)!r}"
                   for k in sorted(mine.keys() | theirs.keys()) if mine.get(k) != theirs.get(k)]
        if changed:
            raise UsageError(f"{self.path} holds a run with another recipe ({'; '.join(changed)}): give the same flags to "
                             "go on with it, or --run another folder for a new one")

    def bind(self, recipe: Recipe, base: Base, dataset: Dataset) -> None:
        """Make the folder this recipe's, with the data and base that it meant, or make sure that they are still the same.

        Raises:
            JobError: the pictures, captions or the base's weights have changed since the run began.
        """
        now = {"data": fingerprint(dataset), "base": base.identity}
        stored = (_read(self.path / RECIPE) or {}) if self.begun else {}
        for key, value in now.items():
            if stored.get(key, value) != value:
                what = "pictures or captions" if key == "data" else "base's weights"
                raise JobError(f"{self.path}: the {what} changed since this run began: put them back to go on with it, or "
                               "give --run another folder for a new one")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / RECIPE, {"recipe": recipe.as_dict(), **now})

    def finished(self) -> dict[str, Any] | None:
        """What `finish` wrote: the output and its hash; None while the run is not finished."""
        return _read(self.path / FINISHED)

    def finish(self, out: Path, digest: str) -> None:
        write_json(self.path / FINISHED, {"out": str(out.resolve()), "sshs_model_hash": digest})


def fingerprint(dataset: Dataset) -> str:
    """sha256 over every picture's digest and caption, training and held out, in order."""
    digest = hashlib.sha256()
    for part in (dataset.train, dataset.held_out):
        for example in part:
            digest.update(f"{example.digest}\0{example.caption}\0".encode())
        digest.update(b"\1")
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{path}: cannot be read ({error}): delete the folder {path.parent} to start anew") from error
