"""The run folder: a training run's recipe, checkpoints, metrics and results, protected against mixing two runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convert import keys
from convert.container import open_container
from convert.errors import Damaged, JobError, UsageError
from convert.files.json_file import read_object
from trainer.base.load import Base
from trainer.data.ours import METRICS, RECIPE
from trainer.data.records import Dataset, fingerprint
from trainer.recipe import LENGTH, Fields, Recipe, flag
from trainer.runs.lock import LOCK, lock
from trainer.runs.outputs import Contents, is_sound_card, is_sound_png, outputs
from trainer.runs.record import NO_CHECKSUM, Record, file_sha256, read_record, write_record
from trainer.terminal import Say, say_nothing

EXPORT, FINISHED = "export.json", "finished.json"
DIFFUSERS, CURVE = "pytorch_lora_weights.safetensors", "loss.png"
OURS = ("checkpoints", METRICS, DIFFUSERS, CURVE, FINISHED, "samples")
"""Our files in a run folder. Another program's files in the user's folder may have these names too."""


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
    def curve(self) -> Path:
        return self.path / CURVE

    @property
    def begun(self) -> bool:
        """Whether it holds work that another recipe would spoil: not after a command that failed before its first
        checkpoint."""
        return (self.path / FINISHED).exists() or any(self.checkpoints.glob("*"))

    def stored(self) -> Record | None:
        """The recipe, data and base that the folder is bound to; {} if its recipe.json is damaged; None if it has no run.

        Read from the newest sound checkpoint, where a run continues; finished.json and recipe.json hold the same.
        """
        records = sorted(self.checkpoints.glob("step-*/step.json"), reverse=True)
        for path in (*records, self.path / FINISHED):
            record = _sound(path)
            if record and isinstance(record.get("run"), dict):
                return record["run"]
        written = _sound(self.path / RECIPE)
        if written and isinstance(written.get("recipe"), dict):
            return written
        ours = written is None and (self.path / RECIPE).exists() and (self.path / LOCK).exists()
        return {} if ours else None

    def check(self, recipe: Recipe, say: Say) -> None:
        """Check that the folder is free or has a run of this recipe: a changed recipe would mix two runs.

        say: gets a line for every damaged file that will be rewritten.

        Raises:
            UsageError: it is a file, holds another program's files, or a run of another recipe; the message lists the
                differing flags.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--run {self.path}: is a file: give a folder")
        stored = self.stored()
        if stored is None:
            strange = [name for name in (RECIPE, *OURS) if (self.path / name).exists()]
            if strange:
                raise UsageError(f"--run {self.path}: holds {', '.join(strange)} of another program, which would be "
                                 "overwritten: give another folder")
            return
        for name in (RECIPE, EXPORT, FINISHED):
            _sound(self.path / name, say)
        if not self.begun or not stored:
            return
        mine, theirs = json.loads(json.dumps(recipe.values())), Recipe().values() | stored["recipe"]
        changed = {k: f"{flag(k)} was {theirs.get(k)!r}, now {mine.get(k)!r}"
                   for k in sorted(mine.keys() | theirs.keys()) if mine.get(k) != theirs.get(k)}
        what = "; ".join(changed.values())
        if changed and changed.keys() <= set(LENGTH):
            say(f"{self.path}: continues with another length ({what}); from here on its learning rate is that of a run of this "
                "length")
        elif changed:
            raise UsageError(f"{self.path} holds a run with another recipe ({what}): give the same flags to continue it, or "
                             "--run another folder for a new one")

    def bind(self, identity: Record) -> None:
        """Bind the folder to a run of this `identity`, or check that data and base are still those it began with.

        Raises:
            JobError: the pictures, captions or the base's weights have changed since the run began.
        """
        stored = (self.stored() or {}) if self.begun else {}
        for key in ("data", "base"):
            if stored.get(key, identity[key]) != identity[key]:
                what = "pictures or captions" if key == "data" else "base's weights"
                anew = " --overwrite to train anew in this one, or" if key == "data" else ""
                raise JobError(f"{self.path}: the {what} changed since this run began: put them back to continue it, or give"
                               f"{anew} --run another folder for a new one")
        write_record(self.path / RECIPE, identity)

    def trained_on(self, dataset: Dataset) -> bool:
        """Whether the run has these pictures and captions, or has not begun."""
        stored = (self.stored() or {}).get("data") if self.begun else None
        return stored is None or stored == fingerprint(dataset)

    def start_anew(self) -> None:
        """Remove the results of a run on other pictures; a LoRA that it wrote elsewhere stays until it is replaced."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        for name in (FINISHED, METRICS, EXPORT):
            (self.path / name).unlink(missing_ok=True)

    def finished(self, recipe: Recipe, out: Path, say: Say) -> bool:
        """Whether a run of this recipe is finished and its outputs are unchanged; `say` gets a line for each that is not."""
        record = _sound(self.path / FINISHED)
        if not record or not out.exists():
            return False
        mine = json.loads(json.dumps(recipe.as_dict()))
        if record.get("run", {}).get("recipe", mine) != mine:  # it continues, see `check`
            return False
        if not self._is_whole(out, record):
            say(f"{out}: its tensors are not those that this run wrote: writing it again")
            return False
        if "file" not in record:  # by an earlier version
            return True
        damaged = [path for path, sound in self._beside(out, record) if not sound]
        if damaged and any(self.checkpoints.glob("step-*")):  # otherwise there is nothing to make them from
            say(f"{', '.join(map(str, damaged))}: missing or damaged: making them again")
            return False
        if record["file"] != file_sha256(out):
            say(f"{out}: its metadata was changed since this run wrote it: delete it, and the same command writes it again")
        for name, fields in ((RECIPE, record["run"]), (EXPORT, {"out": str(out.resolve())})):
            if _sound(self.path / name) is None:
                write_record(self.path / name, fields)
        return True

    def was_finished(self, out: Path) -> bool:
        """Whether this run has finished writing `out` before."""
        return _sound(self.path / FINISHED) is not None and self._claimed(out)

    def owns(self, out: Path) -> bool:
        """Whether `out`, its card and its picture are from this run, finished or interrupted, and may be written again."""
        claimed = self._claimed(out)
        if not out.exists():
            return claimed
        record, stored = _sound(self.path / FINISHED) or {}, self.stored() or {}
        mine = stored.get("recipe")
        if self._is_whole(out, record):
            return True
        try:
            header = open_container(out).metadata
        except Damaged:
            return claimed
        except JobError:  # another kind of file
            return False
        # as convert writes a mapping into a header
        if mine is None or header.get(keys.RECIPE) not in _written(mine):
            return False
        if any(header.get(f"scribble_{key}_hash", stored.get(key)) != stored.get(key) for key in ("data", "base")):
            return False  # another run's with the same recipe: paths in it are shortened to names
        return claimed or record.get(keys.MODEL_HASH) == header.get(keys.MODEL_HASH)

    def claim(self, out: Path) -> None:
        """Record that `out` is about to be written, so that a command interrupted there can be run again."""
        write_record(self.path / EXPORT, {"out": str(out.resolve())})

    def finish(self, out: Path, identity: Record) -> None:
        """Record that everything is written, with digests to check later that it is unchanged."""
        contents, diffusers = Contents.of(out), self.path / DIFFUSERS
        write_record(self.path / FINISHED, {
            keys.MODEL_HASH: contents.data, "tensors": contents.tensors, "file": file_sha256(out),
            "diffusers": file_sha256(diffusers) if diffusers.exists() else "", "run": dict(identity)})

    def _claimed(self, out: Path) -> bool:
        return (_sound(self.path / EXPORT) or {}).get("out") == str(out.resolve())

    def _is_whole(self, out: Path, record: Record) -> bool:
        """Whether `out` has the tensors recorded in `record`, of finished.json."""
        if not record:
            return False
        try:
            found = Contents.of(out)
        except JobError:
            return False
        return record.get(keys.MODEL_HASH) == found.data and record.get("tensors", found.tensors) == found.tensors

    def _beside(self, out: Path, record: Record) -> Iterator[tuple[Path, bool]]:
        """The run's other outputs, and whether they are sound. A card or picture that the user removed counts as sound."""
        diffusers = self.path / DIFFUSERS
        if record["diffusers"]:  # a DoRA has none
            yield diffusers, diffusers.exists() and file_sha256(diffusers) == record["diffusers"]
        yield self.curve, is_sound_png(self.curve)
        _, card, picture = outputs(out)
        yield card, is_sound_card(out)
        yield picture, not picture.exists() or is_sound_png(picture)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other commands out of the folder. JobError if one is using it."""
        with lock(self.path, "give --run another one"):
            yield


def identity_of(recipe: Recipe, base: Base, dataset: Dataset) -> Record:
    """What identifies a run, as stored in recipe.json and every checkpoint: its recipe, data and base."""
    return {"recipe": recipe.as_dict(), "data": fingerprint(dataset), "base": base.identity}


def _written(stored: Fields) -> tuple[str, ...]:
    """A stored recipe as `convert` writes it into a header: with full paths, as earlier versions did, and with short ones."""
    try:
        forms = [stored, Recipe(**stored).published()]
    except (TypeError, UsageError):  # of another version
        forms = [stored]
    return tuple(json.dumps(form, ensure_ascii=False, sort_keys=True) for form in forms)


def _sound(path: Path, say: Say = say_nothing) -> Record | None:
    """A record's fields; None if it is missing or damaged, of which `say` gets a line. It can be derived and written again."""
    try:
        return read_record(path)
    except Damaged as error:
        if error.problem == NO_CHECKSUM:  # by an earlier version: its fields are compared with the files
            return read_object(path)
        say(f"{error}: writing it again")
        return None
