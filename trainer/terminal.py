"""Output for the user, and silencing of the libraries' own progress bars and warnings while a base is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from convert.errors import JobError, exit_status

Say = Callable[[str], None]
"""Prints a line for the user."""


@contextmanager
def quiet() -> Iterator[None]:
    """Limit diffusers and transformers to errors, without progress bars, and restore both afterwards."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    libraries = (diffusers, transformers)
    levels = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library, _, _ in levels:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level, bar in levels:
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()


PACKAGES = {"accelerate", "diffusers", "huggingface_hub", "matplotlib", "numpy", "peft", "PIL", "safetensors", "tokenizers",
            "torch", "tqdm", "transformers"}  # fmt: skip
"""The project's dependencies, by import name."""


def command(name: str, work: Callable[[], int], *, stopped: str = "stopped") -> int:
    """`exit_status`, with a line of its own if a package is missing because the environment is not active."""

    share_cores()

    def checked() -> int:
        try:
            return work()
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in PACKAGES:
                raise
            raise JobError(f"{sys.executable} has no package {package!r}: activate the environment that this project is "
                           "installed in (source .venv/bin/activate; on Windows .venv\\Scripts\\activate), or install it here "
                           "with pip install -e .") from error

    return exit_status(name, checked, stopped=stopped)


def share_cores() -> None:
    """Make torch's waiting threads sleep after a short spin, unless the user's environment sets how they wait.

    By default they spin, in GCC's OpenMP for milliseconds. If another program uses a core, a spinning thread takes the time
    that the thread it waits for needs: on two busy cores small convolutions were 20 times slower, and with sleeping threads no
    slower than with one thread. The spin lasts about as long as a wake-up. Call this before torch is loaded, which reads it.
    """
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = "1000"


def say(text: str) -> None:
    """A line for the user, on the terminal at once."""
    print(text, flush=True)


def say_nothing(text: str) -> None:
    """For processes other than the first, which print nothing."""


@contextmanager
def progress(total: int, done: int, doing: str, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; elsewhere, as in a log, a line every tenth. The body calls the result to advance it.

    total, done: the number of `unit`s, and how many were already done.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, initial=done, desc=doing, unit=unit) as bar:
            def update(count: int) -> None:
                bar.update(count)

            yield update
        return
    reached = done

    def advance(count: int) -> None:
        nonlocal reached
        before, reached = reached, reached + count
        if reached * 10 // max(total, 1) > before * 10 // max(total, 1):
            say(f"{doing}: {reached} of {total} {unit}s")

    yield advance
