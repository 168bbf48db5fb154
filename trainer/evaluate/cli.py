"""The command line of `python -m trainer.evaluate`. Imports nothing heavy: --help is instant."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convert.errors import UsageError
from trainer.cli import METAVARS, Parser, add_fields, place_options
from trainer.evaluate.settings import Settings
from trainer.recipe import Fields, Recipe, flag

DATA_FLAGS = ("base", "tokenizer", "data", "data_url", "categories", "trigger", "held_out", "resolution")
EXAMPLES = """examples:
  python -m trainer.evaluate scribble.safetensors --out report/            base and data from its metadata
  python -m trainer.evaluate scribble.safetensors --out report/ --write    also write the best scale for the hosts
  python -m trainer.evaluate scribble.safetensors --base v1-5-pruned-emaonly.safetensors --out report/
  python -m trainer.evaluate runs/scribble --out steps/ --write            every checkpoint at every scale
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings that do not change a number beyond rounding."""

    lora: Path
    out: Path
    device: str
    micro_batch: int
    cache: Path
    write: bool
    against: Path | None
    changed: Fields
    """fields of the LoRA's recipe that the command line overrides"""


def parser() -> argparse.ArgumentParser:
    """Every option with its default, the settings' from `Settings` and the data's from `Recipe`."""
    p = Parser(prog="python -m trainer.evaluate", allow_abbrev=False, epilog=EXAMPLES,
               description="Measure a LoRA at every scale, as the paper's figures 5 to 11 do, and find the scale to use.",
               formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("lora", type=Path, metavar="LORA", help="the LoRA, .safetensors of any form or a peft folder; or a run's "
                   "folder (runs/scribble): every checkpoint is measured, and the best step and scale found")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for index.html, report.json and pictures; "
                   "the same command continues an interrupted report")
    p.add_argument("--write", action="store_true", help="put the recommended scale into the LoRA's metadata and its card's "
                   "preferred weight, where the web UI and ComfyUI read it; of a run, put the best checkpoint in place")
    p.add_argument("--against", type=Path, metavar="DIR", help="another report: compare the two in pairs")
    data = p.add_argument_group("base and data (default: those in the LoRA's metadata)")
    for f in dataclasses.fields(Recipe):
        if f.name in DATA_FLAGS:
            kind = type(f.default)
            data.add_argument(flag(f.name), type=kind, default=None, help=f.metadata["help"], metavar=METAVARS[kind])
    add_fields(p.add_argument_group("measurements (these affect the numbers)"), Settings)
    job = p.add_argument_group("job (where and how)")
    place_options(job)
    job.add_argument("--micro-batch", type=int, default=0, metavar="N", help="pictures of one scale drawn at once; halved if "
                     "memory runs out (default 16 on a CUDA GPU or of the miniature, 8 elsewhere)")
    return p


def parse(argv: Sequence[str] | None) -> tuple[Settings, Job]:
    """The settings and the job in `argv`. Raises UsageError, with the flag, for invalid options."""
    options = vars(parser().parse_args(argv))
    values = {f.name: options[f.name] for f in dataclasses.fields(Settings) if options[f.name] is not None}
    if "complex" in values:
        values["complex"] = tuple(values["complex"])
    if options["micro_batch"] < 0:
        raise UsageError(f"--micro-batch {options['micro_batch']}: expected 0 or more")
    changed = {name: options[name] for name in DATA_FLAGS if options[name] is not None}
    if "data" in changed:
        changed["more_data"] = ()
    job = {f.name: options[f.name] for f in dataclasses.fields(Job) if f.name != "changed"}
    return Settings(**values), Job(**job, changed=changed)
