"""Atomic writes: a file is written beside its target, flushed to disk, then renamed over it."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path
from typing import BinaryIO

from ..errors import JobError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` for the body to write; if the body succeeds, it replaces `target`.

    The temporary file is in the same folder and is called `.<name>.<machine>-<process>-<random>.part`. If the body raises,
    it is removed and `target` does not change. Leftovers of killed processes are removed by the next write of the same
    target. A symbolic link is kept and the file it points to is replaced. Permissions are kept too.

    Raises:
        JobError: the file could not be written (disk full, no such folder, no permission), or another program has
            `target` open, as hosts on Windows do: then the old file is kept, and the message names the new one.
    """
    target = Path(target)
    if "\0" in str(target):
        raise JobError(f"{str(target)!r}: cannot be written: a file name cannot contain NUL")
    place = Path(os.path.realpath(target))
    temporary = place.with_name(f"{_marked(place)}{_process()}{os.urandom(3).hex()}.part")
    try:
        _remove_leftovers(place)
        yield temporary
        if place.is_file():
            os.chmod(temporary, stat.S_IMODE(place.stat().st_mode))
        _flush(temporary)
        _move(temporary, place)
    except OSError as error:
        if error.filename not in (None, str(temporary), str(place)):
            raise
        raise JobError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        if os.path.exists(temporary):
            temporary.unlink()
    flush_folder(place.parent)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, which must not exist, for the body to fill; it is renamed to `target` at the end.

    If the body raises, it is removed. Raises `JobError` if it cannot be created or renamed.
    """
    place = Path(os.path.realpath(target))
    temporary = place.with_name(f"{_marked(place)}{_process()}{os.urandom(3).hex()}.part")
    try:
        _remove_leftovers(place)
        temporary.mkdir()
        yield temporary
        os.rename(temporary, place)
    except OSError as error:
        if error.filename not in (None, str(temporary), str(place)):
            raise
        raise JobError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        _remove(temporary)
    flush_folder(place.parent)


_NODE = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
_MACHINE = f"{zlib.crc32(_NODE.encode('utf-8', 'surrogateescape')):08x}"


def _process() -> str:
    return f"{_MACHINE}-{os.getpid()}-"


def _marked(place: Path) -> str:
    """The prefix of all temporary files for `place`."""
    name = os.fsencode(place.name)
    short = place.name if len(name) <= 200 else f"{zlib.crc32(name):08x}"  # a name has at most 255 bytes
    return f".{short}."


def _remove_leftovers(place: Path) -> None:
    """Remove temporary files of processes that have ended. Files that cannot be removed are harmless and ignored."""
    start = f"{_marked(place)}{_MACHINE}-"
    with suppress(OSError):
        for name in os.listdir(place.parent):
            if name.startswith(start):
                match = re.fullmatch(r"(\d{1,9})-[0-9a-f]{6}\.part", name.removeprefix(start))
                if match and not _is_running(int(match[1])):
                    _remove(place.with_name(name))


def _remove(path: Path) -> None:
    if path.is_dir():
        import shutil  # slow to import, and rarely needed

        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True  # on Windows os.kill would end the process
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8 with unchanged line endings."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, obj: object) -> None:
    """Write `obj` to `path` atomically, as indented JSON with a final newline."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:  # Windows only flushes files that are open for writing
        os.fsync(file.fileno())


def start_writing(file: BinaryIO, start: int, stop: int) -> None:
    """Have the system begin to write these bytes of `file` to disk, so that the flush at the end waits for less.

    Linux does so when it is told that they will not be needed; they stay cached, as only what is on disk already is dropped.
    """
    if sys.platform == "linux" and isinstance(file, BufferedWriter):
        file.flush()
        os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)


def flush_folder(folder: Path) -> None:
    """Make the rename itself durable, if the system can open folders (Windows cannot)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        return  # some network file systems refuse it; the file itself is already flushed
    finally:
        os.close(descriptor)


def _move(temporary: Path, place: Path) -> None:
    try:
        os.replace(temporary, place)
    except PermissionError as error:
        if not place.is_file():
            raise
        spare = _spare_name(place)
        os.replace(temporary, spare)
        raise JobError(
            f"{place}: another program has it open, so it was kept; the new file is {spare.name} beside it: "
            "close that program and rename it"
        ) from error


def _spare_name(place: Path) -> Path:
    """`scribble.safetensors` -> `scribble.new.safetensors`, or `.new-2`, `.new-3` … if that exists."""
    names = (place.with_name(f"{place.stem}.new{f'-{n}' if n > 1 else ''}{place.suffix}") for n in range(1, 1000))
    return next(name for name in names if not name.exists())
