"""Evaluations from the page: the command's arguments, its progress, and a summary of its report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from convert.errors import UsageError
from trainer.evaluate.claim import PAGE, finished
from trainer.evaluate.recommend import in_words
from trainer.page import markup
from trainer.page.commands import Ended, Places, run_command
from trainer.page.jobs import STARTED, Job, State
from trainer.page.progress import Progress
from trainer.page.queue import Queue

KIND, MODULE = "evaluate", "trainer.evaluate"
HELD_OUT = "--held-out=0.5"
"""If training held no pictures out: pictures are then compared with half of the training pictures, and the report says so."""
GIVEN = ("--base", "--tokenizer", "--data", "--trigger", "--held-out", "--device", "--cache")
RECENT, FEWEST = 40, 17
"""Pictures used to estimate the remaining time; fewer are not enough, because several are drawn at once."""
TO_DRAW = re.compile(r"^(\d+) pictures to draw, .*?(?:; (\d+) are there)?$", re.MULTILINE)
SHOWN = ("figure-11-similarity.png", "captions.png", "figure-7-unseen.png", "figure-6-seen.png")
"""The figures of a report that the page shows: the first one, and the first existing grid."""


def arguments(lora: Job, scales: str, pictures: int) -> list[str]:
    """Everything but --out for the LoRA that training `lora` wrote. pictures: per scale."""
    given = [word for word in lora.argv if word.partition("=")[0] in GIVEN]
    own = any(word.startswith("--data=") for word in given)
    kept_back = any(word.startswith("--held-out=") for word in given)
    return [str(lora.out), *given, *[HELD_OUT] * (own and not kept_back), f"--scales={scales.strip()}",
            f"--per-scale={pictures}"]  # fmt: skip


def report_folder(places: Places, queue: Queue, name: str, argv: Sequence[str]) -> Path:
    """The folder of an evaluation with the same arguments, so that it is continued; otherwise a new one."""
    jobs = queue.jobs()
    for job in jobs:
        if job.kind == KIND and job.name == name and [w for w in job.argv if not w.startswith("--out=")] == list(argv):
            return job.out
    first, taken = places.report(name), [job.out for job in jobs]
    folders = (first if n == 1 else first.with_name(f"{first.name}-{n}") for n in count(1))
    return next(folder for folder in folders if not folder.exists() and folder not in taken)


def progress_of(job: Job) -> Progress:
    """Pictures drawn so far, of the number that the command printed, and the time left at the rate of the last ones."""
    said = job.said(whole=True)
    found = list(TO_DRAW.finditer(said))
    if not found:
        return Progress(0, 0, None, None, "picture")
    wanted, there = found[-1].groups()
    total = int(wanted) + int(there or 0)
    try:
        times = sorted(path.stat().st_mtime for path in (job.out / "pictures").glob("*.png"))
        began = (job.folder / STARTED).stat().st_mtime
    except FileNotFoundError:  # deleted, or about to begin again
        return Progress(0, total, None, None, "picture")
    recent = [time for time in times if time >= began][-RECENT:]
    pace = (recent[-1] - recent[0]) / (len(recent) - 1) if len(recent) >= FEWEST else None
    return Progress(len(times), total, None, None if pace is None else (total - len(times)) * pace, "picture")


def take(job: Job) -> Ended:
    """The same command with --write: puts the recommended scale into the LoRA and its card. It measures nothing again."""
    if job.state() is not State.DONE:
        raise UsageError(f"{job.title}: {job.state().value}: its scale can be used when it is done")
    return run_command(["-m", MODULE, *job.argv, "--write"])


def summary(job: Job, address: str) -> str:
    """A summary of a finished report: the verdict, warnings, its first figures and a link. "" if there is none.

    address: of the report on this server. JobError if the report is damaged.
    """
    report = finished(job.out)
    if report is None:
        return ""
    warnings = "".join(markup.warning(text) for text in report["warnings"])
    plot, *grids = (job.out / name for name in SHOWN)
    grid = next((path for path in grids if path.is_file()), None)
    found = report["recommended"]
    said = markup.good if found["scale"] is not None else markup.warning
    return (said(in_words(found)) + warnings + markup.link(address + PAGE, "Open the whole report")
            + markup.drawn(plot, "similarity to real pictures against the LoRA scale")
            + markup.drawn(grid, "pictures of the report, a column for each LoRA scale"))
