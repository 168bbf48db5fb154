"""`python -m convert.bake LORA --into CHECKPOINT --scale 0.8 --out OUT`: merge a LoRA into a checkpoint.

W' = W + scale · (alpha / rank) · B A (paper, section 4.1), computed in float32 with numpy, one layer at a time; every
other tensor is copied byte for byte. `--into` is a .safetensors file: a whole checkpoint with LDM names, or the UNet or
text encoder of a diffusers folder.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import dtypes
from .api import refuse_target
from .commands import Parser, guarded
from .container import Container, Tensor, open_container
from .errors import JobError, UsageError
from .files import atomic_path
from .lora import Lora, LoraModule
from .read import read
from .sd15 import TEXT_ENCODER, UNET, Module
from .stream import CHECKPOINT_HASHES, Output, write_container

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[numpy.float32]]

_NAMES: tuple[tuple[str, Callable[[Module], str]], ...] = (
    (UNET, lambda module: f"model.diffusion_model.{module.ldm}"),
    (UNET, lambda module: module.name),
    (UNET, lambda module: f"unet.{module.name}"),
    (TEXT_ENCODER, lambda module: f"cond_stage_model.transformer.{module.ldm}"),
    (TEXT_ENCODER, lambda module: module.name),
    (TEXT_ENCODER, lambda module: module.name.removeprefix("text_model.")),
    (TEXT_ENCODER, lambda module: f"text_encoder.{module.name}"),
)
"""Where checkpoints keep a module's weight: scope, and its name."""


@dataclass(frozen=True)
class BakeReport:
    """What was merged."""

    target: Path
    modules: int
    tensors: int
    """of the checkpoint, patched or copied"""
    size: int
    """bytes written"""


def bake(
    lora: Path | str, into: Path | str, target: Path | str, *, scale: float = 1.0, alpha: float | None = None,
    overwrite: bool = False,
) -> BakeReport:  # fmt: skip
    """Write the checkpoint `into` with the LoRA merged at `scale` (0 is the base, 1 the full LoRA) to `target`.

    A DoRA goes linearly from the base's weight to the full DoRA's. Each weight keeps the checkpoint's dtype.
    Raises `JobError` where the checkpoint lacks a module that the LoRA patches or has it in another shape.
    """
    into, target = Path(into), Path(target)
    if not math.isfinite(scale):
        raise UsageError(f"--scale {scale}: must be a number")
    for source in (Path(lora), into):
        refuse_target(source, target, overwrite)
    adapter, checkpoint = read(lora, alpha=alpha), open_container(into)
    patches = _patches(adapter, checkpoint, scale)
    outputs = [
        Output(name, tensor, tensor.shape, tensor.dtype, compute=patches.get(name))
        for name, tensor in checkpoint.tensors.items()
    ]
    metadata = {key: value for key, value in checkpoint.metadata.items() if key not in CHECKPOINT_HASHES}
    metadata["modelspec.merged_from"] = f"{into.name} + {scale:g} * {Path(lora).name}"
    with atomic_path(target) as temporary, open(temporary, "wb") as file:
        write_container(file, outputs, metadata, hashes=CHECKPOINT_HASHES)
    return BakeReport(target, len(adapter.modules), len(outputs), target.stat().st_size)


def _patches(lora: Lora, checkpoint: Container, scale: float) -> dict[str, Callable[[bytes], bytes]]:
    """Tensor name -> what makes its new bytes of the old ones."""
    patches: dict[str, Callable[[bytes], bytes]] = {}
    missing = []
    for module in lora.modules.values():
        name = _find(module.module, checkpoint.tensors)
        if name is None:
            missing.append(module.module.name)
            continue
        bias = f"{name}.bias"
        if module.rank or "diff" in module.parts or "w_norm" in module.parts:
            patches[f"{name}.weight"] = _patch(checkpoint, f"{name}.weight", module.shape, module, scale, new_weight)
        if "diff_b" in module.parts or "b_norm" in module.parts:
            if bias not in checkpoint.tensors:
                raise JobError(f"{checkpoint.path}: has no {bias}, which the LoRA changes")
            patches[bias] = _patch(checkpoint, bias, module.shape[:1], module, scale, new_bias)
    if missing:
        raise JobError(
            f"{checkpoint.path}: lacks {len(missing)} of the {len(lora.modules)} modules that the LoRA patches: "
            f"{missing[0]}; give a checkpoint of Stable Diffusion 1.5 that has them"
        )
    return patches


def _find(module: Module, tensors: Mapping[str, Tensor]) -> str | None:
    names = (spell(module) for scope, spell in _NAMES if scope == module.scope)
    return next((name for name in names if f"{name}.weight" in tensors), None)


def _patch(
    checkpoint: Container, name: str, shape: Sequence[int], module: LoraModule, scale: float,
    change: Callable[[Array, LoraModule, float], Array],
) -> Callable[[bytes], bytes]:  # fmt: skip
    tensor = checkpoint.tensors[name]
    if [n for n in tensor.shape if n != 1] != [n for n in shape if n != 1]:  # a 1x1 convolution may be kept as linear
        raise JobError(
            f"{checkpoint.path}: {name} has the shape {list(tensor.shape)} and the LoRA patches {list(shape)}"
        )
    if tensor.dtype not in ("F64", *dtypes.CASTS.values()):
        raise JobError(f"{checkpoint.path}: {name} is {tensor.dtype}; a LoRA is merged into F32, F16 or BF16")

    def compute(data: bytes) -> bytes:
        weight = _array(data, tensor.dtype, tuple(shape))
        return _bytes(change(weight, module, scale), tensor.dtype, f"{checkpoint.path}: {name}")

    return compute


def new_weight(weight: Array, module: LoraModule, scale: float) -> Array:
    """The patched weight, float32, in the weight's shape: (out, in) or (out, in, k, k)."""
    full: Array = weight.copy()
    if module.rank:
        full += module.scale * product(module)
    if module.dora:
        full = _dora(full, module)
    for part in ("diff", "w_norm"):
        if part in module.parts:
            full += tensor_array(module.parts[part]).reshape(weight.shape)
    merged: Array = weight + scale * (full - weight)
    return merged


def new_bias(bias: Array, module: LoraModule, scale: float) -> Array:
    """The patched bias, float32 (out,)."""
    changed: Array = bias.copy()
    for part in ("diff_b", "b_norm"):
        if part in module.parts:
            changed += scale * tensor_array(module.parts[part])
    return changed


def product(module: LoraModule) -> Array:
    """up · down, float32, in the shape of the weight."""
    import numpy

    down, up = tensor_array(module.parts["down"]), tensor_array(module.parts["up"])
    up = up.reshape(up.shape[:2])
    if "mid" in module.parts:  # a Tucker decomposition: 1x1, then the core's kernel, then 1x1
        core = tensor_array(module.parts["mid"])
        result: Array = numpy.einsum("oa,abkl,bi->oikl", up, core, down.reshape(down.shape[:2]))
    else:
        result = (up @ down.reshape(down.shape[0], -1)).reshape(module.shape)
    return result


def _dora(full: Array, module: LoraModule) -> Array:
    """magnitude · V / ||V||, norms of the merged weight V (DoRA, arXiv 2402.09353, equation 5)."""
    import numpy

    magnitude = tensor_array(module.parts["magnitude" if module.dora == "peft" else "dora_scale"])
    kept = 1 if module.dora == "columns" else 0
    norm = numpy.sqrt((full**2).sum(axis=tuple(a for a in range(full.ndim) if a != kept), keepdims=True))
    result: Array = full * (magnitude.reshape(norm.shape) / norm)
    return result


def tensor_array(tensor: Tensor) -> Array:
    """A tensor's numbers as float32."""
    return _array(tensor.read(), tensor.dtype, tensor.shape)


def _array(data: bytes, dtype: str, shape: tuple[int, ...]) -> Array:
    import numpy

    wide = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}.get(dtype)
    if wide is not None:
        return numpy.frombuffer(data, wide).astype(numpy.float32).reshape(shape)
    return numpy.asarray(dtypes.decode(data, dtype), numpy.float32).reshape(shape)


def _bytes(array: Array, dtype: str, what: str) -> bytes:
    """float32 -> the checkpoint's dtype, rounded to nearest even."""
    import numpy

    if dtype == "BF16":
        bits = numpy.ascontiguousarray(array, "<f4").view("<u4")
        stored = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
        finite = (stored & 0x7F80) != 0x7F80
    else:
        with numpy.errstate(over="ignore"):
            stored = array.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])
        finite = numpy.isfinite(stored)
    if not finite.all():
        raise JobError(f"{what}: merged, it holds numbers that {dtype} cannot hold; try a smaller --scale")
    return bytes(stored.tobytes())


def parser() -> Parser:
    """The options of `python -m convert.bake`."""
    p = Parser("python -m convert.bake", "Merge a LoRA into a checkpoint.")
    p.add_argument("lora", type=Path, metavar="LORA", help="a LoRA of any form that convert reads")
    p.add_argument("--into", type=Path, required=True, metavar="CHECKPOINT", help="the .safetensors file to merge into")
    p.add_argument("--out", type=Path, required=True, metavar="OUT", help="the .safetensors file to write")
    p.add_argument("--scale", type=float, default=1.0, help="0 is the base, 1 (default) the full LoRA")
    p.add_argument("--alpha", type=float, help="alpha of a file that keeps none (default: its rank)")
    p.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""

    def run() -> int:
        options = parser().parse_args(argv)
        report = bake(
            options.lora,
            options.into,
            options.out,
            scale=options.scale,
            alpha=options.alpha,
            overwrite=options.overwrite,
        )
        print(
            f"{options.lora} into {options.into} at {options.scale:g} -> {report.target}: "
            f"{report.modules} modules of the LoRA, {report.tensors} tensors, {report.size:,} bytes"
        )
        return 0

    return guarded("convert.bake", run)


if __name__ == "__main__":
    sys.exit(main())
