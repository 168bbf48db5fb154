"""The command line of `python -m trainer.study`. Imports nothing heavy: --help is instant."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convert.errors import UsageError
from trainer.cli import Parser, add_fields, given_fields, place_options
from trainer.presets import PRESETS
from trainer.recipe import Recipe
from trainer.study.table import EQUAL, Study, known_tables, read_table

EXAMPLES = """examples:
  python -m trainer.study noise-schedules --out study/noise                      the paper's recipe four times, on a GPU
  python -m trainer.study checkpoints --out study/steps --demo                   every checkpoint of the demo, on a CPU
  python -m trainer.study my-table.toml --out study/mine --base v1-5-pruned-emaonly.safetensors
  accelerate launch --num_processes 4 -m trainer.study rank-and-targets --out study/rank
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings that do not affect the results."""

    out: Path
    device: str
    cache: Path
    lora: Path | None
    """measured instead of training"""


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m trainer.study", allow_abbrev=False, epilog=EXAMPLES,
               formatter_class=argparse.RawDescriptionHelpFormatter,
               description="Train and evaluate every row of a table of recipes; write one table and one plot. Run the same "
               "command again to continue after a stop.")  # fmt: skip
    p.add_argument("table", metavar="TABLE", help="a TOML file (format: docs/EVALUATION.md), or one of "
                   + ", ".join(known_tables()))
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for runs, reports, table.md, plot.png and "
                   "study.json")
    p.add_argument("--equal", choices=EQUAL, help="what rows with different amounts of data have in common: epochs, as in the "
                   "recipe, or optimizer steps, as many as [recipe] has (default: the table's)")
    p.add_argument("--repeats", type=int, default=0, metavar="N", help="train every row with N seeds on the same data, and "
                   "compare their means (default: the table's, else 1)")
    p.add_argument("--demo", action="store_true", help="the demo's recipe under all rows: the miniature and doodles")
    p.add_argument("--lora", type=Path, default=None, metavar="FILE", help="measure this LoRA in every row, without training: "
                   "for rows that differ in `on`, the base used for measuring")
    place_options(p.add_argument_group("job (where and how)"))
    add_fields(p.add_argument_group("recipe of all rows (over the table's [recipe], under its rows)"), Recipe)
    return p


def parse(argv: Sequence[str] | None) -> tuple[Study, Job]:
    """The study and the job in `argv`. Raises UsageError for invalid options."""
    options = vars(parser().parse_args(argv))
    changed = given_fields(options)
    if options["repeats"] < 0:
        raise UsageError(f"--repeats {options['repeats']}: expected 1 or more")
    study = read_table(options["table"], PRESETS["demo"] if options["demo"] else {}, changed, equal=options["equal"] or "",
                       repeats=options["repeats"])
    if options["lora"] and (study.checkpoints or study.repeats > 1 or len({row.recipe for row in study.rows}) > 1):
        raise UsageError("--lora: nothing is trained, so the table's rows may only differ in `on`")
    return study, Job(**{f.name: options[f.name] for f in dataclasses.fields(Job)})
