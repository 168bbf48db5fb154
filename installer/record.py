"""The record of the files installed in a folder, and atomic writing and removing of files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from . import UsageError

RECORD = ".scribble-lora-install.json"
"""Beside the installed files: their names and sha256, written first, so that --uninstall removes exactly those."""


def digest(path: Path) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


HEAD, HEAD_BYTES = "head:", 1 << 20
"""Prefix of a large file's digest, and how many bytes it covers: hashing all 2.1 GB would take seconds each time. The first
bytes include the miniature's header, with the sha256 of all its tensors."""


def head(path: Path) -> str:
    with open(path, "rb") as file:
        return f"{HEAD}{hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()}-{os.fstat(file.fileno()).st_size}"


def is_one_of(path: Path, digests: list[str]) -> bool:
    """Whether the file has one of these digests, of either kind."""
    heads = [one for one in digests if one.startswith(HEAD)]
    whole = [one for one in digests if not one.startswith(HEAD)]
    return bool(heads) and head(path) in heads or bool(whole) and digest(path) in whole


@dataclass
class Record:
    """The files installed in a folder. Names that lead outside the folder are refused."""

    files: dict[str, list[str]] = field(default_factory=dict)
    """path relative to the folder -> allowed digests: more than one only while a file is being replaced, none while it is
    being created"""
    made: int = 0
    """how many levels of folders were created, counted upwards from the folder itself"""
    refused: list[str] = field(default_factory=list)
    """names that this program cannot have installed"""


def read_record(folder: Path) -> Record:
    """The record of `folder`; an empty one if nothing was installed there."""
    try:
        stored = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = {str(name): [value] if isinstance(value, str) else [str(one) for one in value]
                 for name, value in stored["files"].items()}  # fmt: skip
        made = int(stored.get("made", 0))
    except FileNotFoundError:
        return Record()
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UsageError(f"{folder / RECORD}: cannot be read ({error}): delete it; its files are then kept") from error
    refused = [name for name in files if not is_below(folder, name)]
    return Record({name: value for name, value in files.items() if name not in refused}, made, refused)


def is_below(folder: Path, name: str) -> bool:
    """Whether `name` is a plain path below `folder`, with no link on the way."""
    parts = PurePosixPath(name).parts
    plain = bool(parts) and not os.path.isabs(name) and not {"..", "/"} & set(parts) and not any(c in name for c in "\\:\0")
    return plain and (folder / name).parent.resolve() == folder.resolve().joinpath(*parts[:-1])


def write_record(folder: Path, record: Record) -> None:
    content = json.dumps({"files": record.files, "made": record.made}, indent=2).encode()
    write(folder / RECORD, lambda part: part.write_bytes(content))


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Write atomically. If killed, at most `.<name>.part` remains, which the next run or --uninstall removes."""
    part = part_of(path)
    try:
        fill(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:  # Ctrl-C, or any error in `fill`
        clear(part)
        if not isinstance(error, OSError):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def parts_of(path: Path) -> list[Path]:
    """`part_of`, and temporary files of a program that was writing it: the trainer writes beside its target."""
    part = part_of(path)
    return [part, *sorted(path.parent.glob(f".{part.name}.*.part"))]


def old_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def is_link(path: Path) -> bool:
    """Whether `path` is a symbolic link, or a Windows junction, which `is_symlink` does not recognise."""
    return path.is_symlink() or (os.name == "nt" and path.exists() and os.path.realpath(path) != os.path.abspath(path))


def clear(path: Path) -> None:
    """Remove a file, a link (not its target) or a folder of ours."""
    if is_link(path) and os.name == "nt":
        path.rmdir()
    elif path.is_dir() and not is_link(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def changed(place: Path) -> list[Path]:
    """Installed files that were changed."""
    files = read_record(place).files
    found = ((place / name, digests) for name, digests in files.items() if os.path.lexists(place / name))
    return [path for path, digests in found if path.is_symlink() or not path.is_file() or not is_one_of(path, digests)]


def foreign(place: Path) -> list[Path]:
    """Files in a copy that were not installed, except compiled Python files."""
    known = {place / name for name in (RECORD, *read_record(place).files)}
    paths = (Path(folder, name) for folder, _, names in os.walk(place) for name in names)
    return sorted(path for path in paths if path not in known and not is_compiled(path))


def is_compiled(path: Path) -> bool:
    return path.suffix == ".pyc" and path.parent.name == "__pycache__"


def make_folder(folder: Path) -> None:
    """Create a missing folder together with its record, which notes that it was created."""
    missing = [level for level in (folder, *folder.parents) if not level.exists()]
    if not missing:
        return
    top = missing[-1]
    clear(part_of(top))
    inner = part_of(top) / folder.relative_to(top)
    inner.mkdir(parents=True)
    write_record(inner, Record(made=len(missing)))
    part_of(top).rename(top)
