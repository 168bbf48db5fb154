"""Creates the environment in `.venv` and opens the page; run by start.sh and start.bat.

Needs only Python 3.10 or later and its standard library. Its arguments go to `python -m trainer.page`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
OLDEST, NEWEST = (3, 11), (3, 13)
WHAT = ("-c", "constraints.txt", "-e", ".[page]")
STAMP = "scribble-lora.installed"
"""File in the environment with a digest of what was installed, so that a second start installs nothing."""
BACKEND = "--torch-backend=auto"
"""uv's option for the build of torch that fits this machine's graphics card."""


TAKES_VALUE = ("--folder", "--work", "--host", "--port", "--cache")
"""The page's flags that take a value."""


class StarterError(Exception):
    """One line that says what is wrong and what to do."""


@dataclass(frozen=True)
class Machine:
    """The starter's view of the machine; tests pass another one."""

    home: Path
    uv: str | None
    python: tuple[int, int]
    run: Callable[[Sequence[str]], int]
    """runs a command in `home`, with its output on the terminal, and returns its exit status"""
    say: Callable[[str], None] = print

    @property
    def environment(self) -> Path:
        return self.home / ".venv"

    @property
    def interpreter(self) -> Path:
        return self.environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def stamp(self) -> Path:
        return self.environment / STAMP


def wanted(home: Path) -> str:
    """A digest of everything that determines what is installed."""
    files = b"".join((home / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    return hashlib.sha256(files + " ".join(WHAT).encode()).hexdigest()


def ready(machine: Machine) -> bool:
    """Whether the environment is up to date."""
    try:
        return machine.interpreter.exists() and machine.stamp.read_text(encoding="utf-8") == wanted(machine.home)
    except OSError:
        return False


def install(machine: Machine) -> None:
    """Create the environment and install into it. StarterError if neither uv nor pip can."""
    machine.say("installing the packages into .venv: once, a few minutes, 2 to 8 GB of disk")
    make(machine)
    python = str(machine.interpreter)
    with_uv = [machine.uv] if machine.uv else [python, "-m", "uv"]
    if machine.uv or machine.run([python, "-m", "pip", "install", "-q", "uv"]) == 0:
        done = machine.run([*with_uv, "pip", "install", "--python", python, BACKEND, *WHAT]) == 0
    else:
        done = False
    if not done:
        machine.say("uv failed: trying pip, whose own build of torch does not use the graphics card on Windows")
        if machine.run([python, "-c", "import pip"]):  # environments that uv creates have no pip
            machine.run([python, "-m", "ensurepip"])
        if machine.run([python, "-m", "pip", "install", *WHAT]):
            raise StarterError("the packages could not be installed: see the lines above, fix the cause and start again")
    machine.stamp.write_text(wanted(machine.home), encoding="utf-8")


def make(machine: Machine) -> None:
    """Create the environment, unless it exists and its Python starts."""
    old = machine.environment.exists()
    if old and machine.interpreter.exists() and machine.run([str(machine.interpreter), "-c", "pass"]) == 0:
        return
    if old:
        machine.say(f"the Python in {machine.environment} does not start: creating the environment again")
    clear = ["--clear"] if old else []
    if machine.uv:
        span = f">={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}"
        command = [machine.uv, "venv", *clear, "--python", span, str(machine.environment)]
    elif OLDEST <= machine.python <= NEWEST:
        command = [sys.executable, "-m", "venv", *clear, str(machine.environment)]
    else:
        raise StarterError(f"Python {'.'.join(map(str, machine.python))} is too {'old' if machine.python < OLDEST else 'new'}: "
                           f"install Python 3.11 to 3.13 from https://www.python.org, or uv from https://docs.astral.sh/uv")
    if machine.run(command):
        raise StarterError("no environment could be created in .venv: see the lines above (on Debian and Ubuntu: apt install "
                           "python3-venv)")


def start(machine: Machine, arguments: Sequence[str]) -> int:
    """Install if needed, then run the page; returns its exit status."""
    if not ready(machine):
        install(machine)
    return machine.run([str(machine.interpreter), "-m", "trainer.page", *arguments])


def run(command: Sequence[str]) -> int:
    """Run a command in the repository's folder. Ctrl-C is left to the command, which ends by itself."""
    child = subprocess.Popen(command, cwd=HERE)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue


def main(arguments: Sequence[str]) -> int:
    machine = Machine(HERE, shutil.which("uv"), sys.version_info[:2], run, lambda text: print(text, flush=True))
    try:
        return start(machine, [*as_folders(arguments)])
    except StarterError as error:
        print(f"starter: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"starter: {error.filename or 'a command'}: {error.strerror or error}", file=sys.stderr)
        return 1


def as_folders(arguments: Sequence[str]) -> list[str]:
    """Folders dropped on the starter become `--folder` options; relative paths start at the current folder."""
    found = []
    for k, word in enumerate(arguments):
        alone = not (k and arguments[k - 1] in TAKES_VALUE)
        found.append(f"--folder={os.path.abspath(word)}" if alone and os.path.isdir(word) else word)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
