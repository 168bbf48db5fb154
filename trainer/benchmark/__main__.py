"""`python -m trainer.benchmark`: time training steps in alternation with diffusers' plain step. Uses random weights."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from convert.errors import UsageError
from trainer.cli import CACHE, Parser
from trainer.terminal import command

NAMES = ("sd15", "quarter", "tiny")


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m trainer.benchmark", description=__doc__, allow_abbrev=False)
    p.add_argument("--device", default="auto", metavar="NAME", help="auto, cuda, cuda:N, mps or cpu (default auto)")
    p.add_argument("--size", choices=NAMES, help="SD1.5's own width, or a quarter or a tenth of it (default: sd15 on a GPU, "
                   "quarter on a CPU)")
    p.add_argument("--resolution", type=int, default=0, metavar="N", help="side of a picture (default: 512, 128 or 64 by size)")
    p.add_argument("--batch", type=int, default=8, metavar="N", help="pictures per micro-batch of the recipe (default 8)")
    p.add_argument("--accumulation", type=int, default=4, metavar="N", help="micro-batches per step (default 4)")
    p.add_argument("--micro-batch", default="", metavar="N,N", help="sizes to try (default: 1, 4, 8 and the whole step on a "
                   "GPU; 8 and the whole step on a CPU)")
    p.add_argument("--rounds", type=int, default=0, metavar="N", help="timed steps of each kind (default 5 on a GPU, "
                   "2 on a CPU)")
    p.add_argument("--threads", type=int, default=0, metavar="N", help="torch's CPU threads (default: torch's choice)")
    p.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="as in training (default auto)")
    p.add_argument("--cuda-graphs", choices=("off", "auto", "on"), default="off", help="as in training (default off)")
    p.add_argument("--no-plain", action="store_true", help="leave out the VAE and the plain steps, which need the most memory")
    p.add_argument("--profile", action="store_true", help="list the operations of one step by their time")
    p.add_argument("--cache", type=Path, default=CACHE, metavar="DIR",
                   help="folder of compiled kernels (default ~/.cache/scribble-lora)")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 1 not possible here, 2 bad usage."""
    return command("trainer.benchmark", lambda: _run(parser().parse_args(argv)))


def _run(options: argparse.Namespace) -> int:
    for name in ("batch", "accumulation"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)}: expected 1 or more")
    if options.resolution % 64 or options.resolution < 0:
        raise UsageError(f"--resolution {options.resolution}: expected a multiple of 64")
    sizes = _numbers(options.micro_batch)
    from trainer.benchmark.report import as_text, measure

    result = measure(options, sizes, say=lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(result, indent=2) if options.json else as_text(result))
    return 0


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        numbers = [0]
    if any(number < 1 for number in numbers):
        raise UsageError(f"--micro-batch {text}: expected whole numbers with commas, for example 1,4,32")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
