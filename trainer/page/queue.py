"""The queue: commands in folders on disk, run one at a time in the order in which they were added."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convert.errors import JobError, UsageError
from convert.files import write_json
from trainer.page.jobs import EXIT, RESUMABLE, STARTED, STOP, STOPPED, TURN, UNDER_WAY, Job, State, read_job, write_job
from trainer.terminal import Say, say

UNBUFFERED = {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
"""The log appears as it is written, in UTF-8 on Windows too."""


ID = re.compile(r"[0-9]{20}-[0-9a-f]{4}")
"""A job's folder is named after its time in nanoseconds and four random digits."""


class Queue:
    """Jobs under `folder`. Only one process uses it (see `trainer.runs.lock`); it is safe for threads."""

    def __init__(self, folder: Path, tell: Say = say) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._tell = folder, tell
        self._mutex = threading.RLock()
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._unread: set[str] = set()

    def add(self, **fields: Any) -> Job:
        """Add a command at the end; `fields` are `Job`'s. UsageError if the same one is waiting or running."""
        with self._mutex:
            same = [job for job in self.jobs() if job.out == Path(fields["out"]) and job.kind == fields["kind"]]
            if busy := [job for job in same if self.state(job) in (State.WAITING, *UNDER_WAY)]:
                raise UsageError(f"{busy[0].title}: is already in the queue: wait for it, or remove it first")
            written = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
            return write_job(self.folder / f"{time.time_ns():020d}-{secrets.token_hex(2)}", written)

    def jobs(self) -> list[Job]:
        """All jobs, the oldest first. An unreadable folder is reported once and skipped."""
        found = []
        for folder in (path for path in self.folder.iterdir() if ID.fullmatch(path.name)):
            try:
                found.append(read_job(folder))
            except (JobError, OSError) as error:
                if folder.name not in self._unread:
                    self._unread.add(folder.name)
                    self._tell(str(error))
        return sorted(found, key=lambda job: job.turn)

    def find(self, id: str | None) -> Job | None:
        """The job of that id, which comes from a browser: it is looked up, never made into a path."""
        return next((job for job in self.jobs() if job.id == id), None)

    def state(self, job: Job) -> State:
        """Checks the process of a job that this process started, because at first its lock is not taken yet."""
        keeper = self._started.get(job.id)
        if keeper and keeper.poll() is None and job.status() is None:
            return State.STOPPING if (job.folder / STOP).exists() else State.RUNNING
        return job.state()

    def current(self) -> Job | None:
        return next((job for job in self.jobs() if self.state(job) in UNDER_WAY), None)

    def tick(self) -> None:
        """Start the first waiting job, unless one is running."""
        with self._mutex:
            for keeper in self._started.values():
                keeper.poll()  # avoid a zombie process
            if self.current():
                return
            waiting = next((job for job in self.jobs() if self.state(job) is State.WAITING), None)
            if waiting:
                self._start(waiting)

    def _start(self, job: Job) -> None:
        """Start it in a new session, so that it outlives the page, and Ctrl-C in the page's terminal does not reach it."""
        (job.folder / STARTED).touch()
        flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        with open(job.log, "ab") as log:
            self._started[job.id] = subprocess.Popen(
                [sys.executable, "-m", "trainer.page.keeper", str(job.folder)], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True, creationflags=flags, env=os.environ | UNBUFFERED)

    def stop(self, job: Job) -> None:
        """Ask the command to finish its step and save; a waiting one is taken out of the queue, and can be resumed later."""
        with self._mutex:
            state = self.state(job)
            if state is State.WAITING:
                write_json(job.folder / EXIT, {"status": STOPPED, "ended": time.time()})
            elif state in UNDER_WAY:
                (job.folder / STOP).touch()
            else:
                raise UsageError(f"{job.title}: {state.value}: there is nothing to stop")

    def again(self, job: Job) -> None:
        """Put the same command at the end of the queue; it resumes from its last checkpoint."""
        with self._mutex:
            state = self.state(job)
            if state not in RESUMABLE:
                raise UsageError(f"{job.title}: {state.value}: only a stopped, interrupted or failed job can be resumed")
            self._started.pop(job.id, None)
            write_json(job.folder / TURN, {"turn": time.time_ns()})
            for name in (STOP, STARTED, EXIT):  # without the last it waits
                (job.folder / name).unlink(missing_ok=True)

    def remove(self, job: Job) -> None:
        """Remove a job from the list. Its run folder and files are kept."""
        with self._mutex:
            if self.state(job) in UNDER_WAY:
                raise UsageError(f"{job.title}: is running: stop it first")
            shutil.rmtree(job.folder)

    def finished(self, kind: str = "train") -> Sequence[Job]:
        """Jobs of that kind that are done, the newest first."""
        return [job for job in reversed(self.jobs()) if job.kind == kind and self.state(job) is State.DONE]
