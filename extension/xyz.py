"""Two axes for the X/Y/Z plot: the paper's figure 5 as a grid."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Protocol

from . import generation, host
from .arguments import NO_ADAPTER, BadRequest, parse_scale

TITLE = "Scribble LoRA"
SCALE, ADAPTER = "Scribble LoRA scale", "Scribble LoRA adapter"


class ScriptData(Protocol):
    """A script of the web UI."""

    path: str
    module: ModuleType


def register(scripts_data: Sequence[ScriptData]) -> bool:
    """Add the axes to the web UI's X/Y/Z plot script, once; False if that script is missing."""
    plot = next((data.module for data in scripts_data if os.path.basename(data.path) == "xyz_grid.py"), None)
    if plot is None:
        return False
    present = {axis.label for axis in plot.axis_options}
    new = [
        plot.AxisOption(SCALE, float, _setter(generation.AXIS_SCALE), confirm=_confirm_scales),
        plot.AxisOption(
            ADAPTER, str, _setter(generation.AXIS_ADAPTER), confirm=_confirm_adapters, choices=_names, cost=0.5
        ),
    ]
    plot.axis_options.extend(axis for axis in new if axis.label not in present)
    return True


def _setter(attribute: str) -> Callable[[object, object, object], None]:
    def apply(p: object, value: object, values: object) -> None:
        setattr(p, attribute, value)

    return apply


def _names() -> list[str]:
    files = host.files()
    return [NO_ADAPTER, *(files.spelled(name) for name in sorted(files.paths, key=str.casefold))]


def _confirm_scales(p: object, values: list[float]) -> None:
    for value in values:
        try:
            parse_scale(value)
        except BadRequest as error:
            raise RuntimeError(f"{TITLE}: {error}") from error


def _confirm_adapters(p: object, values: list[str]) -> None:
    for value in values:
        if value == NO_ADAPTER:
            continue
        files = host.files(value)
        if files.name_of(value) is None:
            raise RuntimeError(f"{TITLE}: adapter {ascii(value)} {files.why_missing(value)}")
