"""The command line: parse, call, report. `python -m convert IN [OUT]`."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import keys
from .api import Report, convert_file
from .check import check, table
from .commands import ADAPTER, OUT, Parser, clear_progress, guarded, path_of, progress
from .errors import JobError, UsageError

EXAMPLES = """examples:
  python -m convert lora.safetensors                     writes lora.kohya.safetensors, for the web UI and ComfyUI
  python -m convert adapter_folder out.safetensors       from a peft adapter folder
  python -m convert lora.safetensors out.safetensors --to diffusers --dtype fp16
  python -m convert *.safetensors --out-dir converted    many at once
  python -m convert lora.safetensors --check             show its contents and whether it is sound

others, each with --help:
  python -m convert.reduce       a smaller LoRA, or a plain LoRA of a LoHa, LoKr, OFT, …
  python -m convert.merge        several LoRAs into one
  python -m convert.extract      the difference of two checkpoints, as a LoRA
  python -m convert.bake         a LoRA into a checkpoint
"""


def parser() -> Parser:
    """The options of `python -m convert`."""
    what = "Read a Stable Diffusion 1.5 LoRA in any form and write it in another, losing nothing."
    p = Parser("python -m convert", what, EXAMPLES)
    p.add_argument("paths", nargs="+", metavar="IN [OUT]", help=f"{ADAPTER}, and {OUT}")
    p.add_output(out=False)
    p.add_alpha()
    p.add_argument("--fold-alpha", action="store_true", help="multiply alpha / rank into the factors, so that alpha = rank")
    p.add_argument("--skip-unknown", action="store_true", help="leave out tensors with unknown names, and list them")
    p.add_argument("--split-embeddings", action="store_true", help="write bundled embeddings to separate files beside OUT")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a metadata key; can be repeated")
    p.add_argument("--drop", action="append", default=[], metavar="KEY", help="remove a metadata key; can be repeated")
    p.add_argument("--title", help="title shown by hosts (modelspec.title)")
    p.add_argument("--trigger", metavar="PHRASE", help="trigger words (modelspec.trigger_phrase)")
    p.add_argument("--out-dir", type=path_of, metavar="DIR", help="convert every input into this folder")
    p.add_argument("--check", action="store_true", help="audit the inputs without writing anything")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 a job failed, 2 bad usage."""
    return guarded("convert", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    options = parser().parse_args(argv)
    paths = [path for text in options.paths for path in _expand(text)]
    if options.check:
        return _check(paths, options)
    if options.out_dir is None:
        if len(paths) > 2:
            raise UsageError("more than two paths: several inputs need --out-dir")
        source = paths[0]
        target = paths[1] if len(paths) == 2 else _beside(source, options.to)
        report = _convert(source, target, options)
        print(json.dumps(report.to_json(), indent=2) if options.json else report.describe())
        return 0
    return _convert_all(paths, options)


def _expand(text: str) -> list[Path]:
    """Expand wildcards, which shells on Windows pass on unchanged."""
    if any(letter in text for letter in "*?[") and not os.path.exists(text):
        found = sorted(glob.glob(text))
        if not found:
            raise JobError(f"{text}: no file matches")
        return [Path(name) for name in found]
    return [path_of(text)]


def _beside(source: Path, form: str) -> Path:
    place = source if source.name not in ("", "..") else source.resolve()
    return place.parent / _output_name(source, form, f".{form}")


def _output_name(source: Path, form: str, mark: str = "") -> str:
    stem = source.resolve().name if source.is_dir() else source.stem
    return f"{stem}{mark}" if form == "peft" else f"{stem}{mark}.safetensors"


def _metadata(options: argparse.Namespace) -> dict[str, object]:
    given: dict[str, object] = dict.fromkeys(options.drop)
    for pair in options.set:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair}: must be KEY=VALUE")
        given[key] = value
    named = {keys.TITLE: options.title, keys.TRIGGER: options.trigger}
    return {**given, **{key: value for key, value in named.items() if value is not None}}


def _convert(source: Path, target: Path, options: argparse.Namespace) -> Report:
    return convert_file(
        source, target, to=options.to, alpha=options.alpha, dtype=options.dtype, fold_alpha=options.fold_alpha,
        metadata=_metadata(options), overwrite=options.overwrite, skip_unknown=options.skip_unknown,
        split_embeddings=options.split_embeddings, pickles=True,
    )  # fmt: skip


def _convert_all(paths: list[Path], options: argparse.Namespace) -> int:
    targets = [options.out_dir / _output_name(path, options.to) for path in paths]
    twice = next((target for target in targets if targets.count(target) > 1), None)
    if twice is not None:
        raise UsageError(f"--out-dir: two inputs would both be written to {twice}; convert them separately")
    try:
        options.out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out-dir {options.out_dir}: cannot be created: {error.strerror}") from error
    reports, failures = [], []
    for source, target in progress(list(zip(paths, targets)), lambda pair: pair[0].name):
        try:
            reports.append(_convert(source, target, options))
        except JobError as error:
            failures.append(str(error))
        else:
            if not options.json:
                clear_progress()
                print(reports[-1].describe())
    for failure in failures:
        print(f"convert: {failure}", file=sys.stderr)
    if options.json:
        print(json.dumps({"converted": [report.to_json() for report in reports], "failed": failures}, indent=2))
    else:
        print(f"{len(reports)} of {len(paths)} converted into {options.out_dir}")
    return JobError.exit_code if failures else 0


def _check(paths: list[Path], options: argparse.Namespace) -> int:
    audits = [check(path, alpha=options.alpha, skip_unknown=options.skip_unknown, pickles=True) for path in paths]
    if options.json:
        plain = [audit.to_json() for audit in audits]
        print(json.dumps(plain[0] if len(plain) == 1 else plain, indent=2))
    else:
        print("\n\n".join(table(audit) for audit in audits))
    bad = [audit for audit in audits if not audit.sound]
    for audit in bad:
        print(f"convert: {audit.problem}", file=sys.stderr)
    return JobError.exit_code if bad else 0
