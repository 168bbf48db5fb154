"""Files appear whole or not at all: written beside their place, flushed to disk, then renamed into it."""

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
    """Yield a path beside `target` for the body to write; when the body ends well, it takes `target`'s place.

    The temporary file lies in the same folder and is called `.<name>.<machine>-<process>-<random>.part`. If the body
    raises, it is removed and `target` stays as it was; one that a killed process left is removed by the next that writes
    the same target. A symbolic link is followed: the file it points at is replaced, the link kept. So are its permissions.

    Raises:
        JobError: the file could not be written (disk full, no such folder, no permission), or another program holds
            `target` open, as a host on Windows does: then the old file is kept, and the message names the new one.
    """
    target = Path(target)
    if "\0" in str(target):
        raise JobError(f"{str(target)!r}: cannot be written: no file name holds a NUL")
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
    """Yield a new folder beside `target`, which must not exist, for the body to fill; it takes `target`'s place at the end.

    If the body raises, it is removed. Raises `JobError` if it cannot be made or moved.
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
    """What the names of all temporary files for `place` begin with."""
    name = os.fsencode(place.name)
    short = place.name if len(name) <= 200 else f"{zlib.crc32(name):08x}"  # 255 bytes is a name's limit
    return f".{short}."


def _remove_leftovers(place: Path) -> None:
    """Remove temporary files of processes that have ended. One that cannot be removed does no harm and stays."""
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
        return True  # no harmless way to ask; Windows has no kill -9 that a user would type either
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 with its own line ends, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, obj: object) -> None:
    """Write `obj` to `path` as indented JSON with a final newline, whole or not at all."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def start_writing(file: BinaryIO, start: int, stop: int) -> None:
    """Have the system begin to write these bytes of `file` to disk, so that the flush at the end waits for less.

    Linux does so when it is told that they will not be needed; they stay cached, as only what is on disk already is dropped.
    """
    if sys.platform == "linux" and isinstance(file, BufferedWriter):
        file.flush()
        os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)


def flush_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can open a folder (Windows cannot)."""
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
            f"{place}: another program holds it open, so it was kept; the new file is {spare.name} beside it: "
            "close that program and rename it"
        ) from error


def _spare_name(place: Path) -> Path:
    """`scribble.safetensors` -> `scribble.new.safetensors`, or `.new-2`, `.new-3` … where that is taken."""
    names = (place.with_name(f"{place.stem}.new{f'-{n}' if n > 1 else ''}{place.suffix}") for n in range(1, 1000))
    return next(name for name in names if not name.exists())
