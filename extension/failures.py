"""Unexpected errors: one line for the user, and a panel in the console with everything a bug report needs."""

from __future__ import annotations

import platform
import re
import sys
import textwrap
import traceback
from pathlib import Path

WIDTH = 120


def line(error: BaseException) -> str:
    """One line for the user."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def panel(what: str, error: BaseException, arguments: object = ()) -> str:
    """Versions, arguments and the traceback in a frame, at most `WIDTH` characters wide."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    parts = (
        f"Scribble LoRA: {what}. Please report this whole panel.",
        "\n".join(f"{name:<14}{value}" for name, value in versions().items()),
        f"{'arguments':<14}{ascii(arguments)[:500]}",
        trace,
    )
    lines = [wrapped for part in parts for text in part.splitlines() for wrapped in textwrap.wrap(
        text, WIDTH - 4, subsequent_indent="    ", drop_whitespace=False, replace_whitespace=False) or [""]]  # fmt: skip
    bar = "+" + "-" * (WIDTH - 2) + "+"
    return "\n".join((bar, *(f"| {text:<{WIDTH - 4}} |" for text in lines), bar))


def versions() -> dict[str, str]:
    """Versions of everything involved. Reads only modules that are already loaded."""
    found = {"Scribble LoRA": _own_version(), "Python": platform.python_version(), "system": platform.platform()}
    launch = sys.modules.get("modules.launch_utils")
    if launch is not None and hasattr(launch, "git_tag"):
        found["web UI"] = str(launch.git_tag())
    for name in ("gradio", "torch", "safetensors"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            found[name] = str(version)
    return found


def _own_version() -> str:
    project = Path(__file__).parents[1] / "pyproject.toml"
    try:
        match = re.search(r'^version = "([^"]+)"', project.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        match = None
    return match.group(1) if match else "unknown"
