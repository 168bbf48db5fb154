"""Installs the miniature's checkpoint: written by the trainer in a separate process, or hard-linked from another host."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import JobError, UsageError
from .hosts import Host
from .placing import HERE, Step, check_folder
from .record import clear, head, is_one_of, make_folder, parts_of, read_record, write, write_record

NAME = "scribble-miniature.safetensors"
BYTES = 2_200_000_000
"""Free space required, with some to spare; messages say 2.1 GB."""

OWN = HERE / "miniature.safetensors"
"""The file written by the README's command."""

NEEDED = ("torch", "numpy", "safetensors", "diffusers", "transformers")
"""Packages of the trainer's environment."""

COMMAND = (sys.executable, "-m", "trainer.miniature", "--out")


def miniature_steps(hosts: list[tuple[Host, Path]]) -> list[Step]:
    """Steps that install the checkpoint in every host. UsageError if a file is in the way, or a package or space is missing."""
    from convert.miniature import is_miniature_file

    targets = [home / host.checkpoints / NAME for host, home in hosts]
    source = next((path for path in (*targets, OWN) if is_miniature_file(path)), None)
    steps = []
    for target in targets:
        check_folder(target.parent, "checkpoints")
        if is_miniature_file(target):
            steps.append(Step(f"{target} is already there"))
            continue
        if os.path.lexists(target) and not is_placed(target):
            raise UsageError(f"{target}: is not the miniature, or was changed after installation: rename it")
        if source is None or disk(source) != disk(target):
            check_room(target)
        if source is None:
            check_environment()
            about = "2.1 GB, in about a minute; draw with it at 128 x 128"
            steps.append(Step(f"write {target} ({about})", partial(place, target, make)))
            source = target
        else:
            about = f"a hard link to {source}, or a copy of 2.1 GB if no link is possible"
            steps.append(Step(f"place {target} ({about})", partial(place, target, partial(link_or_copy, source))))
    return steps


def is_placed(target: Path) -> bool:
    return target.is_file() and is_one_of(target, read_record(target.parent).files.get(NAME, []))


def existing(path: Path) -> Path:
    return next(level for level in (path, *path.parents) if level.exists())


def disk(path: Path) -> int:
    return existing(path).stat().st_dev


def check_room(target: Path) -> None:
    free = shutil.disk_usage(existing(target)).free
    if free < BYTES:
        raise UsageError(f"{target}: needs 2.1 GB, but only {free / 1e9:.1f} GB are free: free some space first")


def check_environment() -> None:
    """Raise UsageError, with the command to run first, unless this Python has the trainer's packages."""
    missing = next((name for name in NEEDED if importlib.util.find_spec(name) is None), None)
    if missing is None:
        return
    own = Path(".venv", "Scripts", "python.exe") if os.name == "nt" else Path(".venv", "bin", "python")
    advice = f"run this with {HERE / own}"
    if not (HERE / own).exists():
        install = f"{own} -m pip install -c constraints.txt -e ."
        advice = f"first run, in {HERE}: {Path(sys.executable).name} -m venv .venv && {install}; then {advice}"
    raise UsageError(f"--demo: the trainer writes the miniature, but {sys.executable} has no {missing}: {advice}")


def place(target: Path, fill: Callable[[Path], None]) -> None:
    """Write the record first, so that --uninstall finds the file and its leftovers even if this is killed."""
    make_folder(target.parent)
    record = read_record(target.parent)
    before = record.files.setdefault(NAME, [])
    write_record(target.parent, record)

    def fill_and_record(part: Path) -> None:
        try:
            for left in parts_of(target):
                clear(left)
            fill(part)
        except BaseException:
            for left in parts_of(target):
                clear(left)
            raise
        record.files[NAME] = [head(part), *before]
        write_record(target.parent, record)

    write(target, fill_and_record)
    record.files[NAME] = [head(target)]
    write_record(target.parent, record)


def make(part: Path) -> None:
    """Run the trainer's command. JobError with its last line if it fails."""
    process = subprocess.Popen([*COMMAND, str(part)], cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               errors="replace")  # fmt: skip
    try:
        _, said = process.communicate()
    except BaseException:
        process.kill()  # the caller removes its partial file
        process.wait()
        raise
    if process.returncode:
        why = said.strip().splitlines()
        raise JobError(f"the miniature could not be written: {why[-1] if why else f'exit status {process.returncode}'}")


def link_or_copy(source: Path, part: Path) -> None:
    try:
        os.link(source, part)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, part)
