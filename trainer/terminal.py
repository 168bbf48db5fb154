"""What is printed for the user, and silence for the libraries' own bars and warnings while a base is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Say = Callable[[str], None]
"""Prints a line for the user."""


@contextmanager
def quiet() -> Iterator[None]:
    """Hold diffusers and transformers to errors, without progress bars, and restore both afterwards."""
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


def say(text: str) -> None:
    """A line for the user, on the terminal at once."""
    print(text, flush=True)


def say_nothing(text: str) -> None:
    """What processes other than the first say."""
