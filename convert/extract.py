"""`python -m convert.extract TUNED --from BASE --rank 16 --out LORA`: the changes made by fine-tuning, as a LoRA.

Both are whole checkpoints (one file, or a diffusers folder) of Stable Diffusion 1.5; UNet and text encoder are compared.
Only one layer is in memory at a time.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from . import keys
from .api import Report, check_arguments, check_target
from .commands import CHECKPOINT, Parser, guarded, path_of, print_report, progress
from .errors import DoesNotFit, FileError
from .lora import LoraModule
from .matrix.arrays import Array, all_finite, decode, encode, to_array
from .matrix.checkpoint import Checkpoint, open_checkpoint
from .matrix.low_rank import Limit, norm
from .matrix.result import Losses, lora_module, stored_dtype, write_result
from .miniature import KEY, MINIATURE, is_miniature_file
from .read import base_of
from .sd15 import TEXT_ENCODER, UNET, Module, modules
from .words import Note

EXAMPLES = """examples:
  python -m convert.extract tuned.safetensors --from v1-5-pruned.safetensors --rank 16 --out lora.safetensors
  python -m convert.extract tuned_folder --from base_folder --keep 0.9 --rank 64 --only unet --out lora.safetensors
"""

COARSER = ("BF16", "F16", "F32", "F64")
"""dtypes of weights, the least precise first."""


def extract(
    tuned: Path | str, base: Path | str, target: Path | str, limit: Limit, *, only: str | None = None, to: str = "kohya",
    dtype: str | None = None, overwrite: bool = False,
) -> tuple[Report, Losses]:  # fmt: skip
    """Write the difference of two checkpoints as a LoRA within `limit`.

    Args:
        only: "unet" or "text_encoder"; None takes every network that both checkpoints have.
        dtype: "fp32", "fp16" or "bf16"; None takes the tuned checkpoint's.

    Raises:
        JobError: a checkpoint cannot be read, they do not have the same layers, or they do not differ.
        UsageError: an argument is invalid.
    """
    tuned, base, target = Path(tuned), Path(base), Path(target)
    check_arguments(to, dtype)
    for source in (tuned, base):
        check_target(source, target, to, overwrite)
    ours, theirs = open_checkpoint(tuned), open_checkpoint(base)
    chosen = _common(ours, theirs, only)
    stored = stored_dtype(dtype, _dtype(ours, chosen[0]))
    losses, found, left_out = Losses(), {}, 0.0
    for module in progress(chosen, lambda module: module.name):
        left_out += _of_bias(ours, theirs, module)
        difference = _difference(ours, theirs, module.name)
        if module.is_norm:
            left_out += norm(difference.reshape(1, -1)) ** 2
        elif difference.any():
            shape = _shape(module, difference)
            matrix = difference.reshape(shape[0], -1)
            found[module.name] = lora_module(module, shape, matrix, limit, stored, losses)
    if not found:
        raise FileError(tuned, f"has exactly the same weights as {base}: there is nothing to extract")
    return _write(tuned, base, target, to, found, losses, left_out, len(chosen)), losses


def _write(
    tuned: Path, base: Path, target: Path, to: str, found: dict[str, LoraModule], losses: Losses, left_out: float, total: int
) -> Report:
    shapes = {name: module.shape for name, module in found.items()}
    word = base_of(tuned, shapes, {keys.BASE: f"like {base.stem}"})
    whole = math.sqrt(left_out + sum(value**2 for value in losses.norms.values()))
    notes = []
    if left_out:
        share = math.sqrt(left_out) / whole
        notes.append(Note(f"norms and biases make up {share:.3g} of the whole change: a LoRA leaves them out"))
    metadata = {keys.COMPUTED_FROM: f"{tuned.name} - {base.name}", keys.BASE: word}
    if is_miniature_file(base):
        metadata[KEY] = MINIATURE
    return write_result(tuned, target, to, f"a checkpoint minus {base.name}", word, found, losses, metadata, tuple(notes))


def _common(ours: Checkpoint, theirs: Checkpoint, only: str | None) -> list[Module]:
    """The modules of the networks that both have. Raises `DoesNotFit` if one lacks a layer of such a network."""
    scopes = ours.scopes & theirs.scopes & ({only} if only is not None else {UNET, TEXT_ENCODER})
    if not scopes:
        what = only if only is not None else "network"
        raise FileError(ours.path, f"has no {what} in common with {theirs.path}")
    chosen = [module for module in modules().values() if module.scope in scopes]
    known = [module for module in chosen if ours.tensor(module.name) is not None or theirs.tensor(module.name) is not None]
    for module in known:
        for one, other in ((ours, theirs), (theirs, ours)):
            if one.tensor(module.name) is None:
                raise DoesNotFit(one.path, module.name, f"lacks {module.name}, which {other.path} has")
    return known


def _dtype(checkpoint: Checkpoint, module: Module) -> str:
    tensor = checkpoint.tensor(module.name)
    assert tensor is not None
    return tensor.dtype


def _difference(ours: Checkpoint, theirs: Checkpoint, module: str, part: str = "weight") -> Array:
    """Tuned minus base, both in the less precise dtype, because otherwise rounding would look like a change."""
    pair = [checkpoint.tensor(module, part) for checkpoint in (ours, theirs)]
    one, other = pair
    assert one is not None
    assert other is not None
    if [n for n in one.shape if n != 1] != [n for n in other.shape if n != 1]:
        problem = f"{module} has shape {list(one.shape)}, but {list(other.shape)} in {theirs.path}"
        raise DoesNotFit(ours.path, module, problem)
    arrays = [to_array(tensor).reshape(one.shape) for tensor in (one, other)]
    if one.dtype != other.dtype and {one.dtype, other.dtype} <= set(COARSER):
        coarse = min(one.dtype, other.dtype, key=COARSER.index)
        arrays = [decode(encode(array, coarse, module), coarse, array.shape) for array in arrays]
    difference = arrays[0] - arrays[1]
    if not all_finite(difference):
        raise FileError(ours.path, f"or {theirs.path} has NaN or infinite numbers in {module}")
    return difference


def _of_bias(ours: Checkpoint, theirs: Checkpoint, module: Module) -> float:
    """The squared norm of a bias's change."""
    if ours.tensor(module.name, "bias") is None or theirs.tensor(module.name, "bias") is None:
        return 0.0
    return norm(_difference(ours, theirs, module.name, "bias").reshape(1, -1)) ** 2


def _shape(module: Module, array: Array) -> tuple[int, ...]:
    """A 1x1 convolution may be stored as a linear layer."""
    return (*array.shape, 1, 1) if len(module.shape) == 4 and array.ndim == 2 else tuple(array.shape)


def parser() -> Parser:
    """The options of `python -m convert.extract`."""
    p = Parser("python -m convert.extract", "Write the changes made by fine-tuning as a LoRA.", EXAMPLES)
    p.add_argument("tuned", type=path_of, metavar="TUNED", help=f"the fine-tuned checkpoint: {CHECKPOINT}")
    base = f"the base it was tuned from: {CHECKPOINT}"
    p.add_argument("--from", type=path_of, required=True, dest="base", metavar="CHECKPOINT", help=base)
    p.add_only()
    p.add_limits()
    p.add_output()
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 a job failed, 2 bad usage."""

    def run() -> int:
        options = parser().parse_args(argv)
        result = extract(
            options.tuned, options.base, options.out, Limit(options.rank, options.keep, options.sv_ratio), only=options.only,
            to=options.to, dtype=options.dtype, overwrite=options.overwrite,
        )  # fmt: skip
        print_report(*result, as_json=options.json)
        return 0

    return guarded("convert.extract", run)


if __name__ == "__main__":
    sys.exit(main())
