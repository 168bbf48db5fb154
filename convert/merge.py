"""`python -m convert.merge A=0.8 B=0.5 --out C`: one LoRA with the sum of several LoRAs' changes, each at its own scale.

Exact: the factors are concatenated, so the ranks add up. `--rank` or `--keep` reduces the result and reports the error.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
from collections.abc import Sequence
from pathlib import Path

from . import keys
from .api import Report, check_arguments, check_target
from .commands import ADAPTER, Parser, guarded, path_of, print_report, progress
from .errors import FileError, UsageError
from .lora import LoraModule
from .matrix.arrays import Array, to_tensor, without_overflow_warnings
from .matrix.change import Change, Product, change, needs_base
from .matrix.checkpoint import Checkpoint
from .matrix.low_rank import Limit, joined
from .matrix.network import DIFFERENCE, Network, NetworkModule, differences, read_network
from .matrix.result import Losses, lora_module, stored_dtype, write_result
from .miniature import KEY, MINIATURE, is_of_miniature
from .reduce import needed_base
from .sd15 import modules
from .words import Note

EXAMPLES = """examples:
  python -m convert.merge style.safetensors=0.8 character.safetensors=0.5 --out both.safetensors
  python -m convert.merge a.safetensors b.safetensors --out both.safetensors --rank 16
"""


Part = tuple[NetworkModule, float, Checkpoint | None]
"""One network's change of a module, its weight, and the base if the change depends on it."""


def merge(
    sources: Sequence[tuple[Path | str, float]], target: Path | str, limit: Limit | None = None, *,
    base: Path | str | None = None, to: str = "kohya", dtype: str | None = None, alpha: float | None = None,
    overwrite: bool = False,
) -> tuple[Report, Losses]:  # fmt: skip
    """Write one LoRA whose change is the sum of the sources' changes, each times its weight.

    Args:
        sources: (file or folder, weight), of any network, rank and form.
        limit: reduces the sum; None keeps it exact.
        base: the checkpoint, required if a change depends on it (DoRA, OFT, IA3, GLoRA).
        dtype: "fp32", "fp16" or "bf16"; None takes the first source's.

    Raises:
        JobError: a source cannot be read, they are for different bases, or the target cannot be written.
        UsageError: an argument is invalid.
    """
    target = Path(target)
    check_arguments(to, dtype)
    for source, weight in sources:
        check_target(Path(source), target, to, overwrite)
        if not math.isfinite(weight):
            raise UsageError(f"{source}={weight}: the scale must be a number")
    networks = [(read_network(source, alpha=alpha), weight) for source, weight in sources]
    first = networks[0][0]
    for network, _ in networks[1:]:
        if _base(network) != _base(first):
            problem = f"is for {_base(network)} and {first.path.name} for {_base(first)}"
            raise FileError(network.path, problem, "merge only LoRAs of the same base")
    by_module: dict[str, list[Part]] = {}
    for network, weight in networks:
        checkpoint = needed_base(network, base)
        for name, module in network.modules.items():
            by_module.setdefault(name, []).append((module, weight, checkpoint))
    stored, losses = stored_dtype(dtype, first.dtype), Losses()
    merged = {
        name: _merged(by_module[name], limit or Limit(), stored, losses)
        for name in progress([name for name in modules() if name in by_module], str)
    }
    form = " + ".join(dict.fromkeys(f"{network.form} ({network.kinds})" for network, _ in networks))
    notes = tuple(Note(f"{network.path.name}: {text}", advice) for network, _ in networks for text, advice in network.notes)
    report = write_result(first.path, target, to, form, first.base, merged, losses, _metadata(networks), notes)
    return report, losses


def _base(network: Network) -> str:
    return "Scribble LoRA's miniature" if is_of_miniature(network.metadata) else network.base


@without_overflow_warnings
def _merged(parts: Sequence[Part], limit: Limit, dtype: str, losses: Losses) -> LoraModule:
    module = parts[0][0]
    shapes = {part.shape for part, _, _ in parts}
    if len(shapes) > 1:
        raise FileError(module.path, f"and another source differ in the shape of {module.module.name}: {sorted(shapes)}")
    kept: dict[str, Array] = {}
    for part, weight, _ in parts:
        for name in differences(part):
            added = part.arrays[name] * weight
            kept[name] = kept[name] + added if name in kept else added
    tensors = {name: to_tensor(array, dtype, module.module.name) for name, array in kept.items()}
    layers = [row for row in parts if row[0].kind != DIFFERENCE or "diff" in row[0].parts and not row[0].module.is_norm]
    if not layers:
        return LoraModule(module.module, module.shape, 0, 0.0, tensors)
    total = _sum([(_change(part, checkpoint), weight) for part, weight, checkpoint in layers])
    lora = lora_module(module.module, module.shape, total, limit, dtype, losses)
    return LoraModule(lora.module, lora.shape, lora.rank, lora.alpha, {**lora.parts, **tensors})


def _change(module: NetworkModule, checkpoint: Checkpoint | None) -> Change:
    weight = checkpoint.weight(module.module.name, module.shape) if checkpoint is not None and needs_base(module) else None
    return change(module, weight)


def _sum(changes: Sequence[tuple[Change, float]]) -> Change:
    products = [(found, weight) for found, weight in changes if isinstance(found, Product)]
    matrices = [(found, weight) for found, weight in changes if not isinstance(found, Product)]
    product = joined(products) if products else None
    if not matrices and product is not None and product.rank < min(product.up.shape[0], product.down.shape[1]):
        return product
    whole = [matrix * weight for matrix, weight in matrices] + ([product.matrix()] if product is not None else [])
    return functools.reduce(operator.add, whole)


def _metadata(networks: Sequence[tuple[Network, float]]) -> dict[str, str]:
    """The metadata of the sum: its base, the trigger words of all sources, the sources and their scales."""
    first = networks[0][0].metadata
    phrases = dict.fromkeys(network.metadata[keys.TRIGGER] for network, _ in networks if network.metadata.get(keys.TRIGGER))
    metadata = {
        keys.COMPUTED_FROM: " + ".join(f"{weight:g} * {network.path.name}" for network, weight in networks),
        **{key: first[key] for key in (keys.BASE,) if key in first},
        **({KEY: MINIATURE} if is_of_miniature(first) else {}),
    }
    return {**metadata, keys.TRIGGER: ", ".join(phrases)} if phrases else metadata


def parser() -> Parser:
    """The options of `python -m convert.merge`."""
    what = "Merge several LoRAs, or other networks, into one: exactly, or within a limit."
    p = Parser("python -m convert.merge", what, EXAMPLES)
    p.add_argument("sources", nargs="+", metavar="LORA[=SCALE]", help=f"{ADAPTER}, and its scale (default 1)")
    p.add_limits()
    p.add_base()
    p.add_output()
    p.add_alpha()
    return p


def _source(text: str) -> tuple[Path, float]:
    """`a.safetensors=0.8`; an existing name that contains "=" is taken as a whole."""
    name, equals, scale = text.rpartition("=")
    if not equals or Path(text).exists():
        return path_of(text), 1.0
    try:
        return path_of(name), float(scale)
    except ValueError as error:
        raise UsageError(f"{text}: must be LORA or LORA=SCALE, for example a.safetensors=0.8") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 a job failed, 2 bad usage."""

    def run() -> int:
        options = parser().parse_args(argv)
        result = merge(
            [_source(text) for text in options.sources], options.out, Limit(options.rank, options.keep, options.sv_ratio),
            base=options.base, to=options.to, dtype=options.dtype, alpha=options.alpha, overwrite=options.overwrite,
        )  # fmt: skip
        print_report(*result, as_json=options.json)
        return 0

    return guarded("convert.merge", run)


if __name__ == "__main__":
    sys.exit(main())
