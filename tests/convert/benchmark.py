"""`python tests/convert/benchmark.py`: a conversion's speed against a plain file copy and against diffusers' own function.

Everything is measured in one run, in turns, so that the ratios hold on a machine of any speed. Each measurement times a whole
process, from start to exit, with its peak memory. Copies are flushed to disk, as conversions are.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from convert import names
from convert.sd15 import UNET, modules
from convert.stream import Output, write_container
from convert.tensors import Tensor, stamp_of

COPY = """
import os, shutil, sys
shutil.copyfile(sys.argv[1], sys.argv[2])
with open(sys.argv[2], "rb+") as file: os.fsync(file.fileno())
"""

DIFFUSERS = """
import sys
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file
save_file(convert_state_dict_to_kohya(load_file(sys.argv[1])), sys.argv[2])
"""

REPORT_PEAK = "\nimport resource; print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"

CONVERT = "import sys\nfrom convert.cli import main\nmain([sys.argv[1], sys.argv[2], '--overwrite'])"


def make_lora(path: Path, rank: int) -> Path:
    """A peft-named LoRA of the UNet's attention with random bytes: 0.8 MB a rank."""
    chosen = [module for module in modules().values() if module.scope == UNET and ".attn" in module.name]
    shapes = {
        (m, part): (rank, m.shape[1]) if part == "down" else (m.shape[0], rank)
        for m in chosen
        for part in ("down", "up")
    }
    noise = path.with_name("noise")
    numbers = bytearray(os.urandom(4 * max(rows * columns for rows, columns in shapes.values())))
    numbers[3::4] = b"\x3d" * (len(numbers) // 4)  # float32 between 0.03 and 0.13, none of them NaN
    noise.write_bytes(numbers)
    with open(noise, "rb") as file:
        stamp = stamp_of(file)
    outputs = [
        Output(
            names.spell("peft", module, part), Tensor("F32", shape, 4 * math.prod(shape), noise, stamp=stamp), shape, "F32"
        )  # fmt: skip
        for (module, part), shape in shapes.items()
    ]
    with open(path, "wb") as file:
        write_container(file, outputs, {})
    return path


def _time(code: str, *arguments: Path) -> tuple[float, int]:
    """Seconds of a whole process, and its peak memory in bytes."""
    command = [sys.executable, "-c", code + REPORT_PEAK, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return seconds, int(done.stdout.rsplit("peak", 1)[1]) * (1 if sys.platform == "darwin" else 1024)


def measure(source: Path, runs: int) -> list[tuple[str, float, int]]:
    """(name, median seconds, peak bytes) of each contender that runs here."""
    contenders = {
        "python start alone": "",
        "plain file copy": COPY,
        "convert": CONVERT,
        "diffusers' function": DIFFUSERS,
    }
    taken: dict[str, list[tuple[float, int]]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, code in list(contenders.items()):
            target = source.with_name("out.safetensors")
            target.unlink(missing_ok=True)
            try:
                taken[name].append(_time(code, source, target))
            except RuntimeError as error:
                print(f"{name}: not measured: {error}", file=sys.stderr)
                del contenders[name]
    return [
        (name, statistics.median(seconds for seconds, _ in rows), max(peak for _, peak in rows))
        for name, rows in taken.items()
        if rows
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of which the median counts")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 640], help="one file for each; 0.8 MB a rank")
    options = parser.parse_args(argv)
    for rank in options.ranks:
        with tempfile.TemporaryDirectory(prefix="convert-benchmark-") as folder:
            source = make_lora(Path(folder) / "in.safetensors", rank)
            rows = measure(source, options.runs)
            copy = next(seconds for name, seconds, _ in rows if name == "plain file copy")
            print(f"{source.stat().st_size / 1e6:.1f} MB (rank {rank}), whole process, median of {options.runs}")
            for name, seconds, peak in rows:
                print(f"  {name:<22}{seconds:8.3f} s {seconds / copy:8.2f} x copy {peak / 1e6:8.0f} MB peak")
    return 0


if __name__ == "__main__":
    sys.exit(main())
