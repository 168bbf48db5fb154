"""Checks that the tensors of a module fit together, and finds the shape of the weight that they patch.

Forms give the same bytes different shapes: a convolution's `down` may be (rank, in·k·k), as in ComfyUI's trainer, and a
linear layer's (rank, in, 1, 1). All are normalised to kohya's shape without changing bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from .dtypes import FLOATS
from .lora import FULL_PARTS
from .sd15 import Module
from .tensors import Tensor

Shape = tuple[int, ...]


class WrongShape(Exception):
    """The tensors of one module do not fit together."""


def implied_shape(module: Module, parts: Mapping[str, Tensor]) -> tuple[Shape, int]:
    """The shape of the weight that `parts` patch, and their rank (0 without factors).

    The kind of layer and the kernel are the module's; widths are the tensors' own. Raises `WrongShape`.
    """
    if "down" in parts or "up" in parts:
        shape, rank = _from_factors(module, parts)
    elif any(part in parts for part in FULL_PARTS):
        shape, rank = _from_differences(module, parts), 0
    else:
        raise WrongShape(f"has {' and '.join(sorted(parts))} but no factors")
    for part, wanted in _wanted(shape, rank, parts).items():
        if part != "alpha" and parts[part].dtype not in FLOATS:
            raise WrongShape(f"{part} is {parts[part].dtype}; it must be floating-point numbers")
        given = parts[part].shape
        if given not in wanted:
            raise WrongShape(
                f"{part} has shape {list(given)}; expected {' or '.join(str(list(w)) for w in wanted)}"
            )
    return shape, rank


def canonical_parts(parts: Mapping[str, Tensor], shape: Shape, rank: int) -> dict[str, Tensor]:
    """The tensors in kohya's shapes, without alpha."""
    wanted = _wanted(shape, rank, parts)
    return {
        part: tensor._replace(shape=wanted[part][_variant(part, tensor)])
        for part, tensor in parts.items()
        if part != "alpha"
    }


def _variant(part: str, tensor: Tensor) -> int:
    """Index of the shape to normalise to: the first, except for a DoRA scale per input column, whose meaning differs."""
    return -1 if part == "dora_scale" and len(tensor.shape) > 1 and tensor.shape[0] == 1 else 0


def _from_factors(module: Module, parts: Mapping[str, Tensor]) -> tuple[Shape, int]:
    if module.is_norm:
        raise WrongShape("is a norm, which has no low-rank factors")
    for part, other in (("down", "up"), ("up", "down")):
        if part not in parts:
            raise WrongShape(f"has {other} but no {part}")
    down, up = parts["down"].shape, parts["up"].shape
    if len(down) not in (2, 4) or len(up) not in (2, 4):
        raise WrongShape(f"its factors must have two or four dimensions, but have shapes {list(down)}, {list(up)}")
    if "dora_scale" in parts and "magnitude" in parts:
        raise WrongShape("has two DoRA magnitudes")
    kernel = module.shape[2:]
    area = math.prod(down[1:]) if "mid" in parts else math.prod(down[1:]) // math.prod(kernel)
    if not (down[0] and up[0] and area):
        raise WrongShape(f"its factors are empty: {list(down)}, {list(up)}")
    return (up[0], area, *kernel), down[0]


def _from_differences(module: Module, parts: Mapping[str, Tensor]) -> Shape:
    whole = parts.get("diff", parts.get("w_norm"))
    if whole is not None:
        shape = whole.shape
        if len(shape) != len(module.shape) or shape[2:] != module.shape[2:] or 0 in shape:
            raise WrongShape(f"its difference has shape {list(shape)}; expected one like {list(module.shape)}")
        return shape
    bias = parts.get("diff_b", parts.get("b_norm"))
    if bias is None or len(bias.shape) != 1 or 0 in bias.shape:
        raise WrongShape("its bias difference must have shape [out]")
    return (bias.shape[0], *module.shape[1:])


def _wanted(shape: Shape, rank: int, parts: Mapping[str, Tensor]) -> dict[str, list[Shape]]:
    """Part -> its allowed shapes; the first one is written."""
    out, kernel = shape[0], shape[2:]
    ones = (1,) * len(kernel)
    flat = (out, math.prod(shape[1:]))
    wanted: dict[str, list[Shape]]
    if len(shape) == 1:
        wanted = {part: [shape] for part in FULL_PARTS}
    else:
        into = shape[1]
        down = (rank, into, *(ones if "mid" in parts else kernel))
        wanted = {
            "down": [down, (rank, math.prod(down[1:]))] if kernel else [down, (*down, 1, 1)],
            "up": [(out, rank, *ones), (out, rank)] if kernel else [(out, rank), (out, rank, 1, 1)],
            "mid": [(rank, rank, *kernel)],
            "magnitude": [(out, 1, *ones), (out,), *([(1, out, 1, 1)] if kernel else [])],
            "dora_scale": [(out, 1, *ones), (out,), (1, into, *ones)],
            "diff": [shape, flat] if kernel else [shape],
            "diff_b": [(out,)],
        }
    wanted["alpha"] = [parts["alpha"].shape] if "alpha" in parts else []
    missing = [part for part in parts if part not in wanted or (part == "mid" and not kernel)]
    if missing:
        raise WrongShape(f"has {missing[0]}, which such a layer cannot have")
    return {part: wanted[part] for part in parts}
