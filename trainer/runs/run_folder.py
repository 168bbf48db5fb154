"""The run folder: one training run's recipe, checkpoints, metrics and results; and what may not be mixed in it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.container import open_container
from convert.errors import JobError, UsageError
from convert.files import write_json
from trainer.base.load import Base
from trainer.data.ours import METRICS, RECIPE
from trainer.data.records import Dataset, fingerprint
from trainer.recipe import Recipe, flag

EXPORT, FINISHED, LOCK = "export.json", "finished.json", ".lock"
OURS = ("checkpoints", METRICS, "pytorch_lora_weights.safetensors", "loss.png", FINISHED, "samples")
"""Names that somebody else may have used in a folder that is given as a run's."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

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
            UsageError: it is a file, holds files that are not from a run, or a run of another recipe; the message lists
                the differing flags.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--run {self.path}: is a file: give a folder")
        stored = _read(self.path / RECIPE)
        if stored is None or not isinstance(stored.get("recipe"), dict):
            strange = [name for name in (RECIPE, *OURS) if (self.path / name).exists()]
            if strange:
                raise UsageError(f"--run {self.path}: holds {', '.join(strange)} and no run of this program: they would be "
                                 "overwritten: give another folder")
            return
        if not self.begun:
            return
        mine, theirs = json.loads(json.dumps(recipe.values())), Recipe().values() | stored["recipe"]
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
                anew = ", or give --overwrite to train anew in this one" if key == "data" else ""
                raise JobError(f"{self.path}: the {what} changed since this run began: put them back to go on with it, or give "
                               f"--run another folder for a new one{anew}")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / RECIPE, {"recipe": recipe.as_dict(), **now})

    def learnt_from(self, dataset: Dataset) -> bool:
        """Whether the run, if it has begun, is of these pictures and captions."""
        stored = (_read(self.path / RECIPE) or {}).get("data") if self.begun else None
        return stored is None or stored == fingerprint(dataset)

    def start_anew(self) -> None:
        """Remove what a run of other pictures has left; a LoRA that it wrote elsewhere stays until it is replaced."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        for name in (FINISHED, METRICS, EXPORT, "micro_batch.json"):
            (self.path / name).unlink(missing_ok=True)

    def finished(self, out: Path) -> bool:
        """Whether the run is finished and `out` still holds its LoRA."""
        digest = self._digest()
        return digest is not None and digest == _header(out).get("sshs_model_hash")

    def owns(self, out: Path) -> bool:
        """Whether `out`, its card and its picture are of this run, finished or cut short, and may be written again."""
        claimed = (_read(self.path / EXPORT) or {}).get("out") == str(out.resolve())
        if not out.exists():
            return claimed
        header, mine = _header(out), (_read(self.path / RECIPE) or {}).get("recipe")
        # as convert writes a mapping into a header
        if mine is None or header.get("scribble_recipe") not in _written(mine):
            return False
        return claimed or self._digest() == header.get("sshs_model_hash")

    def claim(self, out: Path) -> None:
        """Note that `out` is about to be written, so that a command that is cut short then can be run again."""
        write_json(self.path / EXPORT, {"out": str(out.resolve())})

    def finish(self, digest: str) -> None:
        write_json(self.path / FINISHED, {"sshs_model_hash": digest})

    def _digest(self) -> str | None:
        return (_read(self.path / FINISHED) or {}).get("sshs_model_hash")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other commands out of the folder. A process that dies gives it free.

        Raises:
            JobError: another command is at work in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / LOCK, "w", encoding="utf-8") as file:
            try:
                if sys.platform == "win32":
                    import msvcrt

                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise JobError(f"{self.path}: another command is at work in this run folder: wait for it, or give --run "
                               "another one") from error
            yield


def _written(stored: dict[str, Any]) -> tuple[str, ...]:
    """A stored recipe as `convert` writes it into a header: with its paths, as before they were shortened, and without."""
    try:
        forms = [stored, Recipe(**stored).published()]
    except (TypeError, UsageError):  # of another version
        forms = [stored]
    return tuple(json.dumps(form, ensure_ascii=False, sort_keys=True) for form in forms)


def _header(lora: Path) -> dict[str, str]:
    """A LoRA's metadata; empty where there is none to read."""
    try:
        return dict(open_container(lora).metadata)
    except JobError:
        return {}


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("no fields")
        return stored
    except (OSError, ValueError) as error:
        raise JobError(f"{path}: cannot be read ({error}): delete the folder {path.parent} to start anew") from error
