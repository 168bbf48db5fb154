"""Shared by all commands of this folder: one-line errors, a progress bar, options with the same names and help."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol, TypeVar

from .dtypes import CASTS
from .errors import JobError, UsageError, exit_status
from .names import FORMS
from .sd15 import TEXT_ENCODER, UNET
from .words import aligned

T = TypeVar("T", covariant=True)

ADAPTER = "a file (.safetensors, .bin, .pt) or peft folder"
CHECKPOINT = "a file or diffusers folder"
OUT = "what to write; with --to peft a folder"
"""Wording shared by every command's help."""


def path_of(text: str) -> Path:
    """The path that an argument names. Raises `UsageError` for an empty one, which `Path` would take for the current folder."""
    if not text:
        raise UsageError("the name of a file is empty; expected a path")
    return Path(text)


class Parser(argparse.ArgumentParser):
    """A parser that reports bad usage in one line instead of printing the whole usage text."""

    def __init__(self, prog: str, description: str, examples: str = ""):
        super().__init__(
            prog=prog, description=description, epilog=examples, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help shows all)")

    def add_output(self, out: bool = True) -> None:
        """The options of every command that writes a LoRA."""
        if out:
            self.add_argument("--out", type=path_of, required=True, metavar="OUT", help=OUT)
        self.add_argument("--to", default="kohya", metavar="FORM", help=f"form to write: {', '.join(FORMS)} (default kohya)")
        self.add_argument("--dtype", metavar="TYPE", help=f"{', '.join(CASTS)} (default: as in the input)")
        self.add_overwrite()

    def add_overwrite(self) -> None:
        self.add_argument("--overwrite", action="store_true", help="replace an output that exists")
        self.add_argument("--json", action="store_true", help="report as JSON")

    def add_limits(self) -> None:
        """The options that limit the rank."""
        self.add_argument("--rank", type=int, metavar="R", help="highest rank of a module")
        self.add_argument("--keep", type=float, metavar="SHARE", help="share of each change's norm to keep, for example 0.99")
        self.add_argument("--sv-ratio", type=float, metavar="N", help="drop singular values below the largest / N")

    def add_base(self) -> None:
        what = f"the base, needed if a change depends on it (DoRA, OFT, IA3, GLoRA): {CHECKPOINT}"
        self.add_argument("--base", type=path_of, metavar="CHECKPOINT", help=what)

    def add_only(self) -> None:
        networks = (UNET, TEXT_ENCODER)
        self.add_argument("--only", choices=networks, metavar="NETWORK", help=f"{' or '.join(networks)} alone (default: both)")

    def add_alpha(self) -> None:
        self.add_argument("--alpha", type=float, metavar="A", help="alpha for a file without one (default: its rank)")


class Described(Protocol):
    """The report of a command."""

    def rows(self) -> list[tuple[str, str]]: ...
    def to_json(self) -> dict[str, object]: ...


def print_report(*reports: Described, as_json: bool) -> None:
    """Print the reports as one table with the notes last, or as one JSON object."""
    if as_json:
        print(json.dumps({key: value for report in reports for key, value in report.to_json().items()}, indent=2))
    else:
        rows = [row for report in reports for row in report.rows()]
        print(aligned(sorted(rows, key=lambda row: row[0] == "note")))


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived. Temporary files are removed on the way out."""

    def __init__(self, number: int):
        self.exit_code = 128 + number


def guarded(name: str, run: Callable[[], int]) -> int:
    """Turn user errors and interruptions into one line on stderr and an exit status."""

    def work() -> int:
        try:
            with _signals_raise():
                return run()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the pipe is closed: discard further output
            return JobError.exit_code
        except Terminated as stop:
            print(f"{name}: stopped", file=sys.stderr)
            return stop.exit_code

    return exit_status(name, work)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the program as Ctrl-C does, so that files are cleaned up. Respects `nohup`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class SizedIterable(Sized, Iterable[T], Protocol[T]):
    """A list, a dict's items, …"""


def progress(items: SizedIterable[T], label: Callable[[T], str]) -> Iterator[T]:
    """Yield the items, with a progress bar on stderr if it is a terminal."""
    shown = sys.stderr.isatty()
    for number, item in enumerate(items):
        if shown:
            bar = "#" * (20 * number // max(len(items), 1))
            print(f"\r\033[K[{bar:<20}] {number}/{len(items)} {label(item)[:40]}", end="", file=sys.stderr, flush=True)
        try:
            yield item
        finally:  # so that the next line, which may be an error, starts on a clean line
            clear_progress()


def clear_progress() -> None:
    """Erase the bar before printing a line."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
