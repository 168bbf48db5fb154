"""One command at a time: in a folder, or for a file that is going to be written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from convert.errors import JobError

LOCK = ".lock"


@contextmanager
def lock(folder: Path, advice: str) -> Iterator[None]:
    """Keep other commands out of `folder`, which is made if it is missing. A process that dies frees it.

    Raises:
        JobError: another command is at work in it, or it cannot be made; the message ends with `advice`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise JobError(f"{folder}: cannot be written: {error.strerror or error}: {advice}") from error
    with file:
        if not _take(file):
            raise JobError(f"{folder}: another command is at work in this folder: wait for it, or {advice}")
        yield


@contextmanager
def output_lock(target: Path, advice: str) -> Iterator[None]:
    """Keep other commands from writing `target`, by `.<name>.lock` beside it, which is removed at the end. One that a killed
    process left behind is taken over.

    Raises:
        JobError: another command is going to write `target`, or its folder cannot be written; ends with `advice`.
    """
    place = Path(os.path.realpath(target))
    path = place.with_name(f".{place.name}.lock")
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed below
        while (taken := _take(file)) and not _is_still(path, file):  # the one that had it removed it in between
            file.close()
            file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise JobError(f"{target}: cannot be written: {error.strerror or error}: {advice}") from error
    with file:
        if not taken:
            raise JobError(f"{target}: another command is going to write it: wait for it, or {advice}")
        try:
            yield
        finally:
            if os.name == "nt":
                file.close()  # an open file cannot be removed there; elsewhere it goes while it is locked, so it is ours
            with suppress(OSError):
                path.unlink()


def _take(file: IO[str]) -> bool:
    """Lock an open file; False if another process has it."""
    if sys.platform == "win32":
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks: a run there is not kept apart, and not stopped either
        return True
    return True


def _is_still(path: Path, file: IO[str]) -> bool:
    if os.name == "nt":
        return True  # an open file cannot be removed there
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
