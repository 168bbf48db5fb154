"""Two axes for the X/Y/Z plot: the paper's figure 5 as a grid."""

from __future__ import annotations

import os
from typing import Any

from . import applying, host
from .request import NOBODY, BadRequest, parse_scale

TITLE = "Scribble LoRA"
SCALE, ADAPTER = "Scribble LoRA scale", "Scribble LoRA adapter"


def register(scripts_data: list[Any]) -> bool:
    """Add the axes to the web UI's plot script, once; False where it has none."""
    plot = next((data.module for data in scripts_data if os.path.basename(data.path) == "xyz_grid.py"), None)
    if plot is None:
        return False
    present = {axis.label for axis in plot.axis_options}
    new = [
        plot.AxisOption(SCALE, float, _setter(applying.AXIS_SCALE), confirm=_confirm_scales),
        plot.AxisOption(ADAPTER, str, _setter(applying.AXIS_ADAPTER), confirm=_confirm_adapters, choices=_names, cost=0.5),
    ]
    plot.axis_options.extend(axis for axis in new if axis.label not in present)
    return True


def _setter(attribute: str) -> Any:
    def apply(p: Any, value: Any, values: Any) -> None:
        setattr(p, attribute, value)

    return apply


def _names() -> list[str]:
    return [NOBODY, *sorted(host.catalog().paths, key=str.casefold)]


def _confirm_scales(p: Any, values: list[float]) -> None:
    for value in values:
        try:
            parse_scale(value)
        except BadRequest as error:
            raise RuntimeError(f"{TITLE}: {error}") from error


def _confirm_adapters(p: Any, values: list[str]) -> None:
    for value in values:
        known = host.catalog(value if value != NOBODY else None)
        if value != NOBODY and value not in known.paths:
            raise RuntimeError(f"{TITLE}: {known.why_missing(value)}")
