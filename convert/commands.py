"""What all commands of this folder have in common: one line for an error, a progress bar, the same words for one option."""

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
"""The same things in every command's help."""


class Parser(argparse.ArgumentParser):
    """Gives one line for bad usage instead of the whole usage text."""

    def __init__(self, prog: str, description: str, examples: str = ""):
        super().__init__(
            prog=prog, description=description, epilog=examples, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help shows all)")

    def add_output(self, out: bool = True) -> None:
        """The options of whatever writes a LoRA."""
        if out:
            self.add_argument("--out", type=Path, required=True, metavar="OUT", help=OUT)
        self.add_argument("--to", default="kohya", metavar="FORM", help=f"form to write: {', '.join(FORMS)} (default kohya)")
        self.add_argument("--dtype", metavar="TYPE", help=f"{', '.join(CASTS)} (default: as in the input)")
        self.add_overwrite()

    def add_overwrite(self) -> None:
        self.add_argument("--overwrite", action="store_true", help="replace an output that exists")
        self.add_argument("--json", action="store_true", help="report as JSON")

    def add_limits(self) -> None:
        """How much of a change is kept."""
        self.add_argument("--rank", type=int, metavar="R", help="rank of every module, at most")
        self.add_argument("--keep", type=float, metavar="SHARE", help="share of each change's norm to keep, as 0.99")
        self.add_argument("--sv-ratio", type=float, metavar="N", help="drop singular values below the largest / N")

    def add_base(self) -> None:
        what = f"the base, where a change depends on it (DoRA, OFT, IA3, GLoRA): {CHECKPOINT}"
        self.add_argument("--base", type=Path, metavar="CHECKPOINT", help=what)

    def add_only(self) -> None:
        networks = (UNET, TEXT_ENCODER)
        self.add_argument("--only", choices=networks, metavar="NETWORK", help=f"{' or '.join(networks)} alone (default: both)")

    def add_alpha(self) -> None:
        self.add_argument("--alpha", type=float, metavar="A", help="alpha of a file that keeps none (default: its rank)")


class Described(Protocol):
    """What a command reports."""

    def rows(self) -> list[tuple[str, str]]: ...
    def to_json(self) -> dict[str, object]: ...


def print_report(*reports: Described, as_json: bool) -> None:
    """What was written, and how exact it is: as one table, notes last, or as one JSON object."""
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
    """Turn the errors a user can cause, and being told to stop, into one line on stderr and an exit status."""

    def work() -> int:
        try:
            with _signals_raise():
                return run()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: nothing more to print
            return JobError.exit_code
        except OSError as error:
            raise JobError(f"{error.filename}: {error.strerror}") from error
        except Terminated as stop:
            print(f"{name}: stopped", file=sys.stderr)
            return stop.exit_code

    return exit_status(name, work)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP end the program as Ctrl-C does, so that files are cleaned up. `nohup`'s wish is kept."""
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
    """The items, one after another, with a bar on a terminal's stderr."""
    shown = sys.stderr.isatty()
    for number, item in enumerate(items):
        if shown:
            bar = "#" * (20 * number // max(len(items), 1))
            print(f"\r\033[K[{bar:<20}] {number}/{len(items)} {label(item)[:40]}", end="", file=sys.stderr, flush=True)
        try:
            yield item
        finally:  # so that the next line, which may be an error, does not follow the bar
            clear_progress()


def clear_progress() -> None:
    """Take the bar away, so that a line can be printed in its place."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
