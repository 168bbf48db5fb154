"""The bug report of an unexpected error: versions, arguments and the traceback, as one text."""

from __future__ import annotations

import platform
import sys
import traceback
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

VERSION = "0.1.0"
"""This pack's version. A test compares it with pyproject.toml."""

LONGEST = 300
"""Longest argument shown, in characters."""

WIDTH = 100


def panel(node: str, arguments: Mapping[str, object], error: Exception) -> str:
    """The report of `error`, raised by the node of class `node`."""
    versions = {
        "ComfyUI": str(getattr(sys.modules.get("comfyui_version"), "__version__", "unknown")),
        "scribble-lora": VERSION,
        **{package: _version(package) for package in ("torch", "numpy", "safetensors")},
        "Python": f"{platform.python_version()} on {platform.platform()}",
    }
    shown = {name: _shown(value) for name, value in arguments.items()}
    rows = [f"{name:<16} {value}" for name, value in (versions | shown).items()]
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()
    title = f" {node} failed unexpectedly: please report all of this "
    return "\n".join(["", f"{title:-^{WIDTH}}", *rows, "", trace, "-" * WIDTH])


def _shown(value: object) -> str:
    """Plain values in full; only the type of the host's objects."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return repr(value)[:LONGEST]
    return f"<{type(value).__name__}>"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
