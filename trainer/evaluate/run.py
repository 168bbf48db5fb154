"""Runs `python -m trainer.evaluate`: checks the folder, measures, finds the verdict, and writes it for the hosts."""

from __future__ import annotations

from pathlib import Path

from convert.errors import UsageError
from trainer.evaluate import checkpoints, recommend
from trainer.evaluate.against import AGAINST, compare
from trainer.evaluate.claim import PAGE, check_claim, finished
from trainer.evaluate.cli import Job
from trainer.evaluate.evaluate import evaluate
from trainer.evaluate.results import JointReport, Report
from trainer.evaluate.settings import Settings
from trainer.lora.lora_file import read_lora, trained_by
from trainer.runs.lock import lock
from trainer.terminal import say


def run(settings: Settings, job: Job) -> int:
    """Do the job; returns the exit status. Raises JobError and UsageError for errors that the user can fix."""
    if job.out.exists() and not job.out.is_dir():
        raise UsageError(f"--out {job.out}: is a file; name a folder for the report")
    return _run_folder(settings, job) if checkpoints.is_run(job.lora) else _one_lora(settings, job)


def _one_lora(settings: Settings, job: Job) -> int:
    lora = read_lora(job.lora)
    recipe = trained_by(lora, job.changed, needed=("base", "data"))
    if job.write:
        recommend.check_writable(job.lora)
    if job.against and finished(job.against) is None:
        raise UsageError(f"--against {job.against}: has no finished report")
    with lock(job.out, "give another --out"):
        check_claim(job.out, settings, recipe, lora.digest)
        report = finished(job.out)
        if report:
            say(f"{job.out / PAGE} is finished: nothing to measure. Another --out starts a new one")
        else:
            report = evaluate(settings, job, lora, recipe, job.out)
        _tell(recommend.in_words(report["recommended"]), report)
        if job.against:
            say(compare(report, job.out, job.against))
            say(f"wrote {job.out / AGAINST}")
    if job.write:
        _wrote(recommend.write(job.lora, report["recommended"], lora.trigger))
    return 0


def _run_folder(settings: Settings, job: Job) -> int:
    """Every checkpoint of a run."""
    if job.against:
        raise UsageError("--against: compares two LoRAs: give a file, not a run's folder")
    if job.write:
        recommend.check_writable(checkpoints.finished_lora(job.lora))
    with lock(job.out, "give another --out"):
        report = checkpoints.measure_run(settings, job)
        _tell(checkpoints.in_words(report["recommended"]), report)
    if job.write:
        _wrote(checkpoints.put_in_place(report, job))
    return 0


def _tell(verdict: str, report: Report | JointReport) -> None:
    say(verdict)
    for warning in report["warnings"]:
        say(f"warning: {warning}")


def _wrote(paths: list[Path]) -> None:
    for path in paths:
        say(f"wrote the scale into {path}")
