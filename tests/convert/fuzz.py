"""`python tests/convert/fuzz.py --rounds 100000`: runs mutated files through `convert` and prints the outcomes.

Most mutants are sound containers with odd contents, so that they get past the container's own checks: other shapes,
dtypes, values, names, metadata, adapter configurations, parts that do not fit together. Every one must be converted to a file
that convert itself finds sound (or whose NaN it reports), or refused in one line; none may take longer than `--slowest`
CPU-seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import convert
from convert.dtypes import SIZES
from convert.names import FORMS, SPELLINGS, SUFFIXES
from convert.peft_config import METADATA_KEY
from convert.sd15 import Module, modules

WORDS = ["", "sd_v1", "SD 1.5 LCM", "narrow", "sdxl", "\U0001f600", "\u202e", "x" * 5000, "1e400", "NaN", "-1", "[[[", "null"]
KEYS = ["ss_base_model_version", "ss_v2", "modelspec.architecture", "ss_network_alpha", "sshs_model_hash", "ss_output_name",
        "modelspec.trigger_phrase", "ss_tag_frequency", METADATA_KEY, "é", "a\nb"]  # fmt: skip
NUMBERS = [0.0, -0.0, 1.0, 4.0, 1e-45, 1e-30, 65504.0, 65520.0, 1e25, 3.4e38, -1.0, math.nan, math.inf]
CHOSEN = [module for module in modules().values() if math.prod(module.shape) <= 320 * 320 * 9]


def contents(draw: random.Random) -> tuple[dict[str, tuple[str, list[int], bytes]], dict[str, Any]]:
    """A file's tensors (name -> dtype, shape, bytes) and metadata: sound, but for a few odd choices."""
    spelling = draw.choice(SPELLINGS)
    fitting = [module for module in CHOSEN if module.scope == spelling.scope and spelling.name(module) is not None]
    tensors: dict[str, tuple[str, list[int], bytes]] = {}
    for module in draw.sample(fitting, min(len(fitting), draw.choice((1, 1, 2, 3)))):
        stem = f"{spelling.prefix}{spelling.name(module)}"
        rank = draw.choice((1, 4))
        for suffix in pair(draw, spelling.style):
            dtype = draw.choice(["F32", "F32", "F16", "BF16", "F64"] if draw.random() < 0.95 else [*SIZES])
            shape = shape_of(draw, module, suffix.part, rank)
            if math.prod(shape) * SIZES[dtype] < 4_000_000:
                name = stem + suffix.text.replace("*", draw.choice(["default", "", "é", "a.b"]))
                tensors[name] = dtype, shape, numbers(draw, math.prod(shape), dtype)
    if draw.random() < 0.1:
        extra = draw.choice(["bundle_emb.t.clip_l", "bundle_emb.", "bundle_emb.a/b.clip_l", "strange", ""])
        tensors[extra] = "F32", [1], bytes(4)
    metadata: dict[str, Any] = {key: draw.choice(WORDS) for key in draw.sample(KEYS, draw.randrange(4))}
    if METADATA_KEY in metadata and draw.random() < 0.8:
        metadata[METADATA_KEY] = json.dumps(config(draw, draw.choice(["", "unet.", "text_encoder."])))
    return tensors, metadata


def pair(draw: random.Random, style: str) -> list[Any]:
    """Suffixes of one module: usually the two factors of a form, sometimes more or others."""
    rows = [row for row in SUFFIXES if row.style == style and row.part in ("down", "up")][:2]
    if draw.random() < 0.5:
        rows += [row for row in SUFFIXES if row.part == "alpha"]
    if draw.random() < 0.15:
        rows += draw.sample(SUFFIXES, draw.choice((1, 2)))
    if draw.random() < 0.05:
        rows = rows[1:]
    return rows


def shape_of(draw: random.Random, module: Module, part: str, rank: int) -> list[int]:
    ones = [1] * len(module.shape[2:])
    shape = {
        "down": [rank, *module.shape[1:]], "up": [module.shape[0], rank, *ones], "alpha": [],
        "mid": [rank, rank, *module.shape[2:]], "diff": [*module.shape], "w_norm": [*module.shape],
    }.get(part, [module.shape[0]])  # fmt: skip
    if draw.random() < 0.05:
        shape = [draw.choice((0, 1, 2, 3, 320, 9)) for _ in range(draw.randrange(6))]
    return shape


def numbers(draw: random.Random, count: int, dtype: str) -> bytes:
    """Mostly noise; odd values in some."""
    if dtype == "F32" and draw.random() < 0.3:
        return struct.pack("<f", draw.choice(NUMBERS)) * count
    if dtype in ("F32", "F64", "F16", "BF16") and draw.random() < 0.9:  # no exponent of all ones
        return (draw.randbytes(SIZES[dtype] - 1) + bytes([draw.choice((0x2C, 0x3C, 0xBC, 0x01))])) * count
    return draw.randbytes(SIZES[dtype]) * count


def config(draw: random.Random, scope: str) -> dict[str, Any]:
    odd = [0, 4, -1, 2.5, 1e40, "4", None, True, [], {}, {"to_q": 2}, {"(a+)+": 1}, {".*q": 3}, {"to_q": "x"}, "pissa", 10**30]
    names = ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights",
             "bias", "tomorrow", "peft_type"]  # fmt: skip
    chosen = {name: draw.choice(odd) for name in draw.sample(names, draw.randrange(3))}
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 4, **chosen}
    return {f"{scope}{name}": value for name, value in fields.items()}


def packed(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, Any]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = bytearray()
    for name, (dtype, shape, blob) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(blob)]}
        data += blob
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(data)


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Change a few bytes, most of them in the header, and update the header's length."""
    changed = bytearray(data)
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(draw.choice((1, 2, 5))):
        place = draw.randrange(8, max(header, 9))
        if draw.random() < 0.6:
            changed[place : place + 1] = bytes([draw.choice((draw.randrange(256), *b'0123456789{}[]",:\\'))])
        else:
            removed = draw.choice((1, 2, 30))
            del changed[place : place + removed]
            changed[:8] = struct.pack("<Q", max(int.from_bytes(changed[:8], "little") - removed, 0))
    return bytes(changed)


def one(draw: random.Random, folder: Path) -> str:
    """The outcome of one mutant. Raises errors that must not occur."""
    source, target = folder / "in.safetensors", folder / "out"
    data = packed(*contents(draw))
    source.write_bytes(damaged(draw, data) if draw.random() < 0.15 else data)
    form = draw.choice(FORMS)
    try:
        report = convert.convert_file(
            source, target if form == "peft" else folder / "out.safetensors", to=form, overwrite=True,
            alpha=draw.choice((None, None, 1.0, 1e25, 1e-20)), dtype=draw.choice((None, None, "fp16", "bf16")),
            fold_alpha=draw.random() < 0.2, skip_unknown=draw.random() < 0.3, split_embeddings=draw.random() < 0.1,
        )  # fmt: skip
    except (convert.JobError, convert.UsageError) as error:
        if "\n" in str(error):
            raise AssertionError("a message of two lines") from error
        return f"refused: {type(error).__name__}"
    audit = convert.check(report.target)
    if audit.sound:
        return "converted"
    if isinstance(audit.error, convert.NotFinite) and any("NaN" in str(note) for note in report.notes):
        return "converted, and its NaN named"
    raise AssertionError(f"the output is refused: {audit.problem}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slowest", type=float, default=2.0, help="CPU-seconds that no mutant may take")
    options = parser.parse_args()
    found: Counter[str] = Counter()
    slowest, failures = 0.0, 0
    with tempfile.TemporaryDirectory(prefix="convert-fuzz-") as folder:
        for number in range(options.rounds):
            draw = random.Random(f"{options.seed} {number}")
            start = time.process_time()
            try:
                found[one(draw, Path(folder))] += 1
            except Exception:  # noqa: BLE001 - that is what is looked for
                failures += 1
                print(f"round {number}:\n{traceback.format_exc()}", file=sys.stderr)
            slowest = max(slowest, time.process_time() - start)
    for what, count in found.most_common():
        print(f"{count:>8}  {100 * count / options.rounds:5.1f} %  {what}")
    print(f"{failures} failures of {options.rounds}; the slowest took {slowest:.2f} CPU-seconds")
    return 1 if failures or slowest > options.slowest else 0


if __name__ == "__main__":
    sys.exit(main())
