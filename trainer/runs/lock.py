"""Locks: one command at a time in a folder, or for an output file."""

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
    """Lock `folder`, which is created if missing. The lock ends with the process.

    Raises:
        JobError: another command is using it, or it cannot be created; the message ends with `advice`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise JobError(f"{folder}: cannot be written: {error.strerror or error}: {advice}") from error
    with file:
        if not _take(file):
            raise JobError(f"{folder}: another command is using this folder: wait for it, or {advice}")
        yield


@contextmanager
def output_lock(target: Path, advice: str) -> Iterator[None]:
    """Keep other commands from writing `target`, with `.<name>.lock` beside it, which is removed at the end. A lock file left
    by a killed process is reused.

    Raises:
        JobError: another command will write `target`, or its folder cannot be written; the message ends with `advice`.
    """
    place = Path(os.path.realpath(target))
    path = place.with_name(f".{place.name}.lock")
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed below
        while (taken := _take(file)) and not _is_still(path, file):  # its owner removed it in the meantime
            file.close()
            file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise JobError(f"{target}: cannot be written: {error.strerror or error}: {advice}") from error
    with file:
        if not taken:
            raise JobError(f"{target}: another command will write it: wait for it, or {advice}")
        try:
            yield
        finally:
            if os.name == "nt":
                file.close()  # an open file cannot be removed there; elsewhere it is removed while locked, so it is ours
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
    except OSError:  # some network file systems have no locks: a run there is unprotected, but not refused
        return True
    return True


def _is_still(path: Path, file: IO[str]) -> bool:
    if os.name == "nt":
        return True  # an open file cannot be removed there
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
