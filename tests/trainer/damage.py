"""Damages files of small runs and kills small runs, hundreds of times, and prints the outcomes. Run by hand:

    python -m tests.trainer.damage --damages 100 --kills 60

Every run is a forked process of four steps. A damaged run's command is run again; if it refuses, its advice is followed
literally. The final LoRA must equal that of an undamaged run. Exit status 1 if any does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.trainer import small_run
from trainer.__main__ import main as train

BYTES = {
    "a bit": lambda data, dice: _with(data, at := dice.randrange(len(data)), bytes([data[at] ^ 1 << dice.randrange(8)])),
    "a byte": lambda data, dice: _with(data, dice.randrange(len(data)), dice.randbytes(1)),
    "20 bytes": lambda data, dice: _with(data, dice.randrange(len(data)), dice.randbytes(20))[: len(data)],
    "zeroed half": lambda data, dice: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "cut off": lambda data, dice: data[: dice.randrange(len(data))],
    "all zero": lambda data, dice: bytes(len(data)),
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
OUTPUTS = ("s.safetensors", "s.json", "run/finished.json", "run/loss.png", "run/pytorch_lora_weights.safetensors")
OPTIMIZER = "run/checkpoints/step-{:06d}/optimizer.safetensors"
UNREAD = re.compile(r"^cache/|step-\d+/|\.lock$|metrics\.jsonl$|s\.json$")
"""Files that a finished run or one that resumes from a newer checkpoint does not read; a card's text is the user's."""


def _with(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


class Bench:
    """The inputs of all runs, and an undamaged run in three states: finished, cut short before its output, and half done."""

    def __init__(self, work: Path) -> None:
        import trainer.train  # noqa: F401 - imported once, for all forks

        self.work = work
        small_run.write_base(work / "base")
        small_run.write_drawings(work / "drawings")
        self.place = work / "now"  # every run has the same paths, because its recipe and claims contain them
        self.place.mkdir()
        status, said = self.run()
        assert status == 0, said
        self.hash, self.metrics = self.outcome()
        self.states = {}
        for state in ("finished", "cut short", "half done"):
            if state != "finished":
                for name in OUTPUTS:
                    (self.place / name).unlink(missing_ok=True)
            if state == "half done":
                (self.place / "run/export.json").unlink()
                for step in (3, 4):
                    shutil.rmtree(self.place / f"run/checkpoints/step-{step:06d}")
                for step in (1, 2):
                    shutil.copy(work / "optimizers" / str(step), self.place / OPTIMIZER.format(step))
            self.states[state] = work / state.replace(" ", "-")
            shutil.copytree(self.place, self.states[state])

    def command(self, *more: str) -> list[str]:
        return [*small_run.arguments(self.work / "base", self.work / "drawings", self.place / "cache",
                                     self.place / "s.safetensors", self.place / "run"), *more]  # fmt: skip

    def start(self, *more: str) -> small_run.Forked:
        return small_run.Forked(train, self.command(*more), self.work / "log.txt")

    def run(self, *more: str) -> tuple[int, str]:
        process = self.start(*more)
        if not (self.work / "optimizers").exists():  # the first run: keep what it will delete
            (self.work / "optimizers").mkdir()
            for step in (1, 2):
                file = self.place / OPTIMIZER.format(step)
                process.wait_for(file)
                shutil.copy(file, self.work / "optimizers" / str(step))
        return process.wait()

    def reset(self, state: str | None) -> None:
        shutil.rmtree(self.place)
        if state:
            shutil.copytree(self.states[state], self.place)
        else:
            self.place.mkdir()

    def outcome(self) -> tuple[str, dict[str, float]]:
        """The LoRA's hash, and every loss in the metrics that parses, regardless of checksums."""
        losses = {}
        metrics = self.place / "run/metrics.jsonl"
        for line in metrics.read_text(errors="replace").splitlines() if metrics.exists() else []:
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
                values = json.loads(line)
                losses |= {f"{values['step']} {key}": values[key] for key in ("loss", "held_out_loss") if key in values}
        return small_run.data_hash(self.place / "s.safetensors"), losses


def advised(said: str, bench: Bench) -> list[str] | None:
    """The flags advised by the last line of a refusal; files that it says to delete are deleted. None without advice."""
    line = said.strip().splitlines()[-1]
    for path in re.findall(r"delete (\S+)", line):
        target = Path(path.rstrip(":,"))
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        return []
    if "--overwrite" in line:
        return ["--overwrite"]
    if "--run" in line or "another folder" in line:
        return ["--run", str(bench.place / "another"), "--overwrite"]
    return None


def damage_one(bench: Bench, dice: random.Random) -> tuple[str, str]:
    """Damage a file; returns (the damage, the outcome)."""
    state = dice.choice(list(bench.states))
    bench.reset(state)
    kinds: dict[str, list[Path]] = {}
    for file in sorted(bench.place.rglob("*")):
        if file.is_file() and file.stat().st_size:
            kinds.setdefault(re.sub(r"step-\d+/", "", str(file.relative_to(bench.place))), []).append(file)
    file = kinds[dice.choice(list(kinds))][-1 if dice.random() < 0.8 else 0]
    name, data, how = str(file.relative_to(bench.place)), file.read_bytes(), dice.choice(list(BYTES))
    damaged = BYTES[how](data, dice)
    if damaged == data:
        return damage_one(bench, dice)
    file.write_bytes(damaged)
    what = f"{state}: {how} of {name}"
    status, said = bench.run()
    first = said
    for _ in range(3):
        if status == 0 or "Traceback" in said:
            break
        flags = advised(said, bench)
        if flags is None:
            return what, f"FAILED without advice: {said.strip().splitlines()[-1]}"
        status, said = bench.run(*flags)
    if "Traceback" in first + said or status not in (0, 1, 2):
        return what, f"TRACEBACK: {(first + said)[-300:]}"
    if status:
        return what, f"FAILED after its advice: {said.strip().splitlines()[-1]}"
    hash_, metrics = bench.outcome()
    if hash_ != bench.hash:
        return what, "USED: another LoRA"
    mentioned = Path(name).name in first or Path(name).parent.name in first and "step-" in name
    if not mentioned and file.exists() and file.read_bytes() == damaged:
        return what, "not read" if UNREAD.search(name) else "USED: unchanged"
    if any(bench.metrics.get(key) != value for key, value in metrics.items()) and not mentioned:
        return what, "USED: other metrics"
    return what, "mended after its advice" if first != said else "mended"


def kill_one(bench: Bench, dice: random.Random, seconds: float) -> tuple[str, str]:
    """Kill a run up to three times at random moments, then let it finish."""
    bench.reset(None)
    number = dice.choice(SIGNALS)
    kills = 0
    for _ in range(dice.randrange(1, 4)):
        process = bench.start()
        time.sleep(dice.uniform(0, seconds))
        process.kill(number)
        status, said = process.wait()
        kills += status != 0
        if "Traceback" in said:
            return number.name, f"TRACEBACK: {said[-300:]}"
    status, said = bench.run()
    what = f"{kills} x {number.name}"
    if status:
        return what, f"FAILED: {said.strip().splitlines()[-1]}"
    left = [str(path.relative_to(bench.place)) for path in bench.place.rglob(".*") if path.name != ".lock"]
    same = bench.outcome()[0] == bench.hash
    return what, f"LEFT {left}" if left else "equal" if same else "USED: another LoRA"


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--damages", type=int, default=100)
    p.add_argument("--kills", type=int, default=60)
    p.add_argument("--seed", type=int, default=0)
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench, start = Bench(Path(folder)), time.monotonic()
        bench.reset(None)
        bench.run()
        whole = time.monotonic() - start
        found: Counter[str] = Counter()
        for number in range(options.damages + options.kills):
            dice = random.Random(f"{options.seed} {number}")
            kind = "damage" if number < options.damages else "kill"
            what, outcome = damage_one(bench, dice) if kind == "damage" else kill_one(bench, dice, whole)
            print(f"{number:4d} {what}: {outcome}", flush=True)
            found[f"{kind}: {outcome.partition(':')[0]}"] += 1
    print("\n".join(f"{count:5d}  {outcome}" for outcome, count in sorted(found.items())))
    return int(any(word in outcome for outcome in found for word in ("USED", "TRACEBACK", "FAILED", "LEFT")))


if __name__ == "__main__":
    sys.exit(main())
