"""A queued command as a folder on disk: the command, its state, and its output.

`job.json` is written once; the keeper (keeper.py) holds `.lock` while the command runs and writes `exit.json` at its end;
`turn.json` exists if it was put at the end of the queue again; `started` and `stop` are empty. So the state depends only on the
files, for every process, and after any kill.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from convert.errors import JobError
from convert.files import write_json
from convert.files.json_file import read_object
from trainer.runs.lock import lock

JOB, EXIT, TURN, STARTED, STOP, LOG = "job.json", "exit.json", "turn.json", "started", "stop", "log.txt"
STOPPED = 130
TAIL = 16_384  # bytes of the log that are shown


class State(Enum):
    """A job's state; the value is shown on the page."""

    WAITING = "waiting"
    RUNNING = "running"
    STOPPING = "stopping after this step"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


RESUMABLE = (State.STOPPED, State.FAILED, State.INTERRUPTED)
UNDER_WAY = (State.RUNNING, State.STOPPING)


@dataclass(frozen=True)
class Job:
    """One command in the queue."""

    folder: Path
    kind: str
    """train, sample or evaluate"""
    name: str
    """of the LoRA"""
    module: str
    argv: tuple[str, ...]
    out: Path
    run: Path
    total: int
    """optimizer steps of a training, else 0"""
    per_step: int
    """pictures of an optimizer step"""
    wish: Mapping[str, Any] = field(default_factory=dict)
    """the values of the page's controls"""

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def turn(self) -> int:
        """When it was queued, in nanoseconds since 1970."""
        try:
            return int(read_object(self.folder / TURN)["turn"])
        except (FileNotFoundError, KeyError, TypeError, ValueError, JobError):
            return int(self.id.partition("-")[0])

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @property
    def title(self) -> str:
        return f"{self.name}: {self.kind}" if self.kind != "train" else self.name

    @property
    def command(self) -> str:
        """The equivalent command line."""
        words = ["python", "-m", self.module, *self.argv]
        return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)

    def state(self) -> State:
        """Probes the lock, so it must not be called for a job that another process is just starting."""
        status = self.status()
        if status is not None:
            return State.DONE if status == 0 else State.STOPPED if self.stopped(status) else State.FAILED
        if not (self.folder / STARTED).exists():
            return State.WAITING
        if not is_locked(self.folder):
            return State.INTERRUPTED if self.status() is None else self.state()  # it may have ended in between
        return State.STOPPING if (self.folder / STOP).exists() else State.RUNNING

    def status(self) -> int | None:
        """The command's exit status; None if it has not ended by itself."""
        try:
            return int(read_object(self.folder / EXIT)["status"])
        except (FileNotFoundError, KeyError, TypeError, ValueError, JobError):
            return None

    def stopped(self, status: int) -> bool:
        return status == STOPPED or (status < 0 and (self.folder / STOP).exists())

    def said(self, *, whole: bool = False) -> str:
        """The end of the command's output, or all of it."""
        try:
            with open(self.log, "rb") as file:
                file.seek(0 if whole else max(0, os.path.getsize(self.log) - TAIL))
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def last_line(self) -> str:
        lines = self.said().splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def write_job(folder: Path, fields: dict[str, Any]) -> Job:
    """Create a job's folder. JobError if it cannot be written."""
    folder.mkdir(parents=True)
    write_json(folder / JOB, fields)
    return read_job(folder)


def read_job(folder: Path) -> Job:
    """Raises JobError or OSError if it is missing or cannot be read."""
    fields = read_object(folder / JOB)
    try:
        return Job(folder=folder, kind=str(fields["kind"]), name=str(fields["name"]), module=str(fields["module"]),
                   argv=tuple(map(str, fields["argv"])), out=Path(fields["out"]), run=Path(fields["run"]),
                   total=int(fields["total"]), per_step=int(fields["per_step"]), wish=dict(fields.get("wish", {})))
    except (KeyError, TypeError, ValueError) as error:
        raise JobError(f"{folder / JOB}: is not a job of this page ({error}): delete its folder") from error


def is_locked(folder: Path) -> bool:
    """Whether the keeper is running. Takes the lock for a moment, which the keeper waits for."""
    try:
        with lock(folder, ""):
            return False
    except JobError:
        return True
