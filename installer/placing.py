"""The steps of installing and uninstalling. All checks run before the first step."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import UsageError
from .hosts import Host
from .record import (
    RECORD,
    Record,
    changed,
    clear,
    digest,
    foreign,
    is_compiled,
    is_link,
    make_folder,
    old_of,
    part_of,
    parts_of,
    read_record,
    write,
    write_record,
)  # fmt: skip

HERE = Path(__file__).resolve().parents[1]
FOLDER = "scribble-lora"
"""The name of our folder inside a host."""
BESIDE = (".json", ".png")
"""Endings of a LoRA's card and picture, which share its name."""


@dataclass(frozen=True)
class Step:
    """One step: `text` begins with a verb. Without `do` it is only reported."""

    text: str
    do: Callable[[], None] | None = None


def link_steps(host: Host, home: Path) -> list[Step]:
    place = home / host.plugins / FOLDER
    if HERE.parent == (home / host.plugins).resolve():
        return [Step(f"{host.name}: this repository is already in {HERE.parent}")]
    if is_link(place):
        if place.resolve() == HERE:
            return [Step(f"{host.name}: {place} is already linked")]
        lost = "" if place.exists() else ", which does not exist"
        raise UsageError(f"{place}: is a link to {place.resolve()}{lost}, not to this repository: remove it first")
    if os.path.lexists(place):
        if not (place / RECORD).exists():
            raise UsageError(f"{place}: already exists and was not installed by this program: remove or rename it first")
        own = [*changed(place), *foreign(place)]
        if own:
            raise UsageError(f"{place}: this copy cannot be updated, because {own[0]} was added or changed: move it away first")
    return [Step(f"link {place} to {HERE}", partial(put, place))]


def put(place: Path) -> None:
    """Complete the new installation before removing the old one."""
    part, old = part_of(place), old_of(place)
    clear(part)
    link(part)
    if place.exists():
        clear(old)
        place.rename(old)
    try:
        part.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    clear(old)


def link(place: Path) -> None:
    """A symbolic link; on Windows a junction, which needs no rights; if neither is allowed, a copy."""
    try:
        if os.name == "nt":
            import _winapi

            _winapi.CreateJunction(str(HERE), str(place))  # type: ignore[attr-defined,unused-ignore]
        else:
            place.symlink_to(HERE, target_is_directory=True)
    except OSError as error:
        print(f"cannot create a link there ({error.strerror or error}): copying instead; run this again after an update")
        copy(place)


def tracked() -> list[str]:
    """The repository's own files, as git lists them."""
    try:
        listed = subprocess.run(["git", "-C", str(HERE), "ls-files", "-z"], capture_output=True, check=True).stdout
        names = [name for name in listed.decode("utf-8", "surrogateescape").split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive, or no git: take the files an archive would contain
        left_out = {".git", ".venv", "venv", "runs", "build", "__pycache__"}
        paths = [path.relative_to(HERE) for path in HERE.rglob("*") if path.is_file()]
        names = [path.as_posix() for path in paths if not left_out & set(path.parts)]
    return [name for name in names if (HERE / name).is_file()]


def copy(place: Path) -> None:
    """Copy the tracked files to `place`, with a record of them."""
    files = {}
    for name in tracked():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(HERE / name, place / name)
        files[name] = [digest(place / name)]
    write_record(place, Record(files))


def check_folder(folder: Path, what: str) -> None:
    """Raise UsageError if files cannot be installed there. The folder need not exist."""
    blocked = next((at for at in (folder, *folder.parents) if os.path.lexists(at) and not at.is_dir()), None)
    if blocked is not None:
        kind = "a broken link" if is_link(blocked) else "a file"
        raise UsageError(f"{blocked}: is {kind}, not a folder: {what} cannot be installed there")


def lora_steps(host: Host, home: Path, lora: Path) -> list[Step]:
    folder = home / host.loras
    check_folder(folder, "LoRA files")
    record = read_record(folder)
    steps = []
    for source in (lora, *(lora.with_suffix(ending) for ending in BESIDE)):
        if not source.is_file():
            continue
        target = folder / source.name
        if os.path.lexists(target) and not target.is_file():
            raise UsageError(f"{target}: is a folder or a broken link: remove it first")
        if target.exists() and digest(target) == digest(source):
            steps.append(Step(f"{target} is already there"))
        elif target.exists() and digest(target) not in record.files.get(source.name, []):
            raise UsageError(f"{target}: differs from {source}, or was changed after installation: rename one of them")
        else:
            steps.append(Step(f"place {target}", partial(place_file, source, target)))
    return steps


def place_file(source: Path, target: Path) -> None:
    """Write the record first, so that --uninstall finds the file even if this is killed."""
    make_folder(target.parent)
    record, now = read_record(target.parent), digest(source)
    record.files[target.name] = [now, *record.files.get(target.name, [])]
    write_record(target.parent, record)
    write(target, lambda part: shutil.copyfile(source, part))
    record.files[target.name] = [now]
    write_record(target.parent, record)


def uninstall_steps(host: Host, home: Path) -> list[Step]:
    place, steps = home / host.plugins / FOLDER, []
    if is_link(place) and place.resolve() == HERE:
        steps.append(Step(f"remove the link {place}", partial(clear, place)))
    elif place.is_dir() and (place / RECORD).exists():
        steps += remove_steps(place)
    elif HERE.parent == (home / host.plugins).resolve():
        steps.append(Step(f"this repository itself is in {HERE.parent}: delete the folder {HERE} to remove it"))
    left = [part_of(place), old_of(place)]
    folders = sorted((home / host.loras, home / host.checkpoints), key=lambda folder: read_record(folder).made)
    for folder in folders:
        steps += remove_steps(folder)
        left += [part_of(folder / RECORD), part_of(folder), part_of(folder.parent)]
        left += [part for name in read_record(folder).files for part in parts_of(folder / name)]
    said = "left by an interrupted run"
    steps += [Step(f"remove {path}, {said}", partial(clear, path)) for path in dict.fromkeys(left) if os.path.lexists(path)]
    for folder in folders:  # sorted by created levels, so that a common parent is removed last
        steps += [Step(f"remove {folder / RECORD}", partial(forget, folder))] if (folder / RECORD).exists() else []
    return steps or [Step(f"{host.name}: nothing of this program is in {home}")]


def remove_steps(folder: Path) -> Iterator[Step]:
    """Remove the files in the record. Changed files are kept and reported."""
    record, kept = read_record(folder), changed(folder)
    for name in record.refused:
        yield Step(f"{folder / RECORD} names {name!r}, which was not installed in that folder: kept")
    for name in sorted(record.files):
        path = folder / name
        if path in kept:
            yield Step(f"{path} was changed after installation: kept")
        elif path.is_file():
            yield Step(f"remove {path}", partial(path.unlink))
    if folder.name == FOLDER:
        yield Step(f"remove {folder / RECORD}", partial(forget_copy, folder))


def forget(folder: Path) -> None:
    """Remove the record, and the folders that were created for it if they are otherwise empty."""
    only, going = RECORD, None
    for level in (folder, *folder.parents)[: read_record(folder).made]:
        if os.listdir(level) != [only]:
            break
        only, going = level.name, level
    if going is None:
        (folder / RECORD).unlink()
    else:
        going.rename(part_of(going))
        clear(part_of(going))


def forget_copy(place: Path) -> None:
    """Remove compiled Python files, empty folders and the record; the whole folder in one step if nothing else is left."""
    if not foreign(place) and not changed(place):
        clear(old_of(place))
        place.rename(old_of(place))
        clear(old_of(place))
        return
    for folder, _, names in os.walk(place, topdown=False):
        for path in (Path(folder, name) for name in names):
            if is_compiled(path):
                path.unlink()
        if not os.listdir(folder):
            os.rmdir(folder)
    (place / RECORD).unlink()
