"""The command lines that the page runs: the arguments of each command, and running short commands to their end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convert.errors import UsageError
from convert.files import write_text
from trainer import cli
from trainer.page.bases import checked_base
from trainer.page.folders import Folders
from trainer.page.options import PATHS, arguments
from trainer.page.queue import UNBUFFERED
from trainer.presets import DEMO
from trainer.recipe import Recipe

INSTALL = Path(__file__).parents[2] / "install.py"
NAME = re.compile(r"\w[\w .+-]{0,60}")
LONGEST = 900.0  # seconds that a short command may take: reading 20,000 pictures does


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The values of the page's controls, as text and unchecked. "" leaves a setting to the preset."""

    data: str = ""
    """a folder; "" for the preset's own data"""
    trigger: str = ""
    preset: str = "style"
    base: str = ""
    name: str = ""
    samples: str = ""
    sheets: int = 0
    """number of sample sheets during training"""
    prompts: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    """value by flag"""


@dataclass(frozen=True)
class Places:
    """The folders for the page's runs and LoRAs."""

    work: Path

    def out(self, name: str) -> Path:
        """UsageError if `name` is not a plain file name."""
        name = name.strip()
        if not NAME.fullmatch(name) or name.endswith("."):
            raise UsageError(f"the name {name!r}: expected letters, digits, spaces and . + - _, at most 61" if name else
                             "the LoRA has no name: give it one")
        return self.work / f"{name}.safetensors"

    def run(self, name: str) -> Path:
        return self.work / "runs" / name.strip()

    def prompts(self, name: str) -> Path:
        return self.work / "runs" / f"{name.strip()}.prompts.txt"

    def report(self, name: str) -> Path:
        return self.work / "reports" / name.strip()


def recipe_arguments(wish: Wish, folders: Folders) -> list[str]:
    """The part of the command line that determines the result. UsageError if a path is outside the user's folders."""
    argv = [f"--preset={wish.preset}"]
    if wish.data.strip():
        argv.append(f"--data={folders.name(wish.data)}")
    if wish.base.strip() or wish.preset != DEMO:
        argv.append(f"--base={checked_base(wish.base, folders)}")
    argv += [f"{flag}={value.strip()}" for flag, value in (("--trigger", wish.trigger), ("--samples", wish.samples))
             if value.strip()]
    for flag in PATHS:
        if value := wish.options.get(flag, "").strip():
            folders.inside(value)
    return argv + arguments(wish.options)


def training_arguments(wish: Wish, folders: Folders, places: Places) -> list[str]:
    """The same with the paths of the LoRA and the run."""
    return [f"--out={places.out(wish.name)}", f"--run={places.run(wish.name)}", *recipe_arguments(wish, folders)]


def sheet_arguments(places: Places, name: str, total: int, sheets: int, prompts: Sequence[str]) -> list[str]:
    """The flags for sample pictures during training, `sheets` times, with the prompts in a separate file."""
    if sheets < 1 or total < sheets or not prompts:
        return []
    places.run(name).parent.mkdir(parents=True, exist_ok=True)
    write_text(places.prompts(name), "\n".join(prompts) + "\n")
    return [f"--sample-every={max(1, total // sheets)}", f"--sample-prompts={places.prompts(name)}"]


def recipe_of(argv: Sequence[str]) -> tuple[Recipe, cli.Job]:
    """The recipe that the command line parses from `argv`. Raises its UsageErrors."""
    return cli.parse([*argv, "--dry-run"])


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    printed: str
    error: str
    """its one-line error; "" without one"""


def run_command(words: Sequence[str]) -> Ended:
    """Run `python …` to its end."""
    try:
        done = subprocess.run([sys.executable, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=LONGEST,
                              encoding="utf-8", errors="replace", env=os.environ | UNBUFFERED)
    except subprocess.TimeoutExpired:
        return Ended(1, "", f"it took longer than {LONGEST / 60:.0f} minutes and was stopped")
    complaint = [line for line in done.stderr.splitlines() if line.strip()]
    return Ended(done.returncode, done.stdout, (complaint or ["it failed without a message"])[-1] if done.returncode else "")


def dry_run(argv: Sequence[str]) -> Ended:
    """`python -m trainer … --dry-run`: prints the training data and the cost."""
    return run_command(["-m", "trainer", *argv, "--dry-run"])


def install(flag: str, host: Path, lora: Path) -> Ended:
    """`python install.py`: link this repository into a host and place a LoRA there. UsageError if this is not a checkout."""
    return _install(f"{flag}={host}", f"--lora={lora}")


def uninstall(flag: str, host: Path) -> Ended:
    """`python install.py --uninstall`: remove exactly the installed files from a host. UsageError as above."""
    return _install(f"{flag}={host}", "--uninstall")


def _install(*words: str) -> Ended:
    if not INSTALL.is_file():
        raise UsageError(f"{INSTALL}: is missing: the page can install only from a clone of the repository")
    return run_command([str(INSTALL), *words])
