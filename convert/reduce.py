"""`python -m convert.reduce IN OUT --rank 8`: a smaller LoRA, or a plain LoRA from any other network (LoHa, LoKr, OFT, …).

Each module's change is written as the best product of the requested rank (Eckart–Young), and the relative error is printed.
No precision is lost needlessly: a LoRA within the rank is copied byte for byte, and a Tucker core does not raise the rank.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .api import Report, check_arguments, check_target
from .commands import ADAPTER, OUT, Parser, guarded, path_of, print_report, progress
from .errors import UsageError
from .lora import LoraModule
from .matrix.change import change, needs_base
from .matrix.checkpoint import Checkpoint, open_checkpoint
from .matrix.low_rank import Limit
from .matrix.network import DIFFERENCE, Network, NetworkModule, as_lora_module, differences, read_network
from .matrix.result import Losses, lora_module, own_metadata, stored_dtype, write_result

EXAMPLES = """examples:
  python -m convert.reduce big.safetensors small.safetensors --rank 8
  python -m convert.reduce big.safetensors small.safetensors --keep 0.99       a rank for each module, 99 % of its norm
  python -m convert.reduce loha.safetensors lora.safetensors --rank 16         a plain LoRA from a LoHa
  python -m convert.reduce dora.safetensors lora.safetensors --rank 16 --base model.safetensors
"""


def reduce_file(
    source: Path | str, target: Path | str, limit: Limit, *, base: Path | str | None = None, to: str = "kohya",
    dtype: str | None = None, alpha: float | None = None, overwrite: bool = False,
) -> tuple[Report, Losses]:  # fmt: skip
    """Write the network `source` as a plain LoRA within `limit` to `target`.

    Args:
        base: the checkpoint it was trained on, required if a change depends on the weight (DoRA, OFT, IA3, GLoRA).
        dtype: "fp32", "fp16" or "bf16"; None takes the source's.

    Raises:
        JobError: the source cannot be read, or the target cannot be written.
        UsageError: a limit or the base is missing, or an argument is invalid.
    """
    source, target = Path(source), Path(target)
    check_arguments(to, dtype)
    check_target(source, target, to, overwrite)
    network = read_network(source, alpha=alpha)
    checkpoint = needed_base(network, base)
    stored, losses = stored_dtype(dtype, network.dtype), Losses()
    modules = {
        module.module.name: _reduced(module, checkpoint, limit, stored, losses, untouched=dtype is None)
        for module in progress(list(network.modules.values()), lambda module: module.module.name)
    }
    metadata = own_metadata(network.metadata, f"{source.name} ({network.kinds})")
    form = f"{network.form} ({network.kinds})"
    report = write_result(
        source, target, to, form, network.base, modules, losses, metadata, network.notes, network.embeddings
    )
    return report, losses


def needed_base(network: Network, base: Path | str | None) -> Checkpoint | None:
    """The opened base. Raises `UsageError` if a change depends on it and it was not given."""
    if base is not None:
        return open_checkpoint(base)
    for module in network.modules.values():
        if needs_base(module):
            what = "DoRA" if module.is_dora else module.kind
            raise UsageError(
                f"--base: is needed, because {network.path.name} has a {what} ({module.module.name}), whose change depends on "
                "the base's weight; give the checkpoint it was trained on"
            )
    return None


def _reduced(
    module: NetworkModule, checkpoint: Checkpoint | None, limit: Limit, dtype: str, losses: Losses, *, untouched: bool
) -> LoraModule:
    kept = differences(module)
    if module.kind == DIFFERENCE and kept.keys() == module.parts.keys():
        return LoraModule(module.module, module.shape, 0, 0.0, kept)
    plain = module.kind == "LoRA" and not module.is_dora and not {"mid", "diff"} & module.parts.keys()
    if untouched and plain and limit.allows(module.parts["down"].shape[0]):
        lora = as_lora_module(module)
        losses.copied(lora)
        return lora
    weight = checkpoint.weight(module.module.name, module.shape) if checkpoint is not None and needs_base(module) else None
    lora = lora_module(module.module, module.shape, change(module, weight), limit, dtype, losses)
    return LoraModule(lora.module, lora.shape, lora.rank, lora.alpha, {**lora.parts, **kept})


def parser() -> Parser:
    """The options of `python -m convert.reduce`."""
    what = "Write a smaller LoRA, or a plain LoRA from a LoHa, LoKr, OFT, GLoRA, IA3 or DoRA."
    p = Parser("python -m convert.reduce", what, EXAMPLES)
    p.add_argument("source", type=path_of, metavar="IN", help=f"{ADAPTER}, of any network")
    p.add_argument("target", type=path_of, metavar="OUT", help=OUT)
    p.add_limits()
    p.add_base()
    p.add_output(out=False)
    p.add_alpha()
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 a job failed, 2 bad usage."""

    def run() -> int:
        options = parser().parse_args(argv)
        limit = Limit(options.rank, options.keep, options.sv_ratio)
        result = reduce_file(
            options.source, options.target, limit, base=options.base, to=options.to, dtype=options.dtype,
            alpha=options.alpha, overwrite=options.overwrite,
        )  # fmt: skip
        print_report(*result, as_json=options.json)
        return 0

    return guarded("convert.reduce", run)


if __name__ == "__main__":
    sys.exit(main())
