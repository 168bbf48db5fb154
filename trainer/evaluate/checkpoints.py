"""Step and scale together: every saved LoRA of a run at every scale, in one report, and the pair to use."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from convert import keys, set_metadata
from convert.errors import FileError, JobError, UsageError
from convert.files import atomic_path, write_json, write_text
from convert.files.json_file import read_object
from trainer.data.ours import RECIPE
from trainer.evaluate import recommend
from trainer.evaluate.claim import CLAIM, PAGE, REPORT, check_claim, finished
from trainer.evaluate.cli import Job
from trainer.evaluate.evaluate import evaluate
from trainer.evaluate.page import LEAST_WIDTH, document, figure, number, rows, verdict
from trainer.evaluate.report import category_means, own_prompt_scores, seed_of
from trainer.evaluate.results import JointReport, Report, Verdict
from trainer.evaluate.settings import Settings
from trainer.lora.lora_file import read_lora, trained_by
from trainer.recipe import Recipe
from trainer.runs.run_folder import EXPORT, FINISHED, RunFolder
from trainer.terminal import say
from trainer.training.checkpoint_lora import checkpoint_lora
from trainer.training.checkpoints import FACTORS

if TYPE_CHECKING:  # slow to load
    from matplotlib.patches import Rectangle


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a training run."""
    return (path / RECIPE).is_file() and (path / "checkpoints").is_dir()


def finished_lora(run: Path) -> Path:
    """The LoRA written by run folder `run`. JobError if the run is not finished, or the file is missing."""
    try:
        out = Path(str(read_object(run / EXPORT)["out"]))
    except (FileNotFoundError, KeyError) as error:
        raise JobError(f"{run}: this run has not written its LoRA yet: let it finish first") from error
    if not out.is_file():
        raise JobError(f"{run}: its LoRA {out} is missing: run the training command again, which writes it")
    return out


def steps_of(run: Path) -> list[int]:
    """The optimizer steps of the run's checkpoints, ascending."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in (run / "checkpoints").glob(f"step-*/{FACTORS}"))


def measure_run(settings: Settings, job: Job) -> JointReport:
    """Measure every checkpoint of run folder `job.lora` into a subfolder of `job.out`; returns the joint report.

    Raises:
        UsageError, JobError: as `evaluate` does; the run is not finished or has no checkpoints.
    """
    run, final = job.lora, finished_lora(job.lora)
    if (job.out / CLAIM).exists():
        raise UsageError(f"--out {job.out}: holds the report of a single LoRA: name another folder")
    steps = steps_of(run)
    if not steps:
        raise UsageError(f"{run}: has no checkpoints")
    trained = _trained(run)
    reports: dict[int, Report] = {}
    for step in steps:
        folder = job.out / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "lora.safetensors"
        checkpoint_lora(run, step, trained, final, path)
        lora = read_lora(path)
        recipe = trained_by(lora, job.changed, needed=("base", "data"))
        check_claim(folder, settings, recipe, lora.digest)
        say(f"step {step}")
        if reports:
            _share_base(job.out / f"step-{steps[0]:06d}", folder)
        reports[step] = finished(folder) or evaluate(settings, replace(job, lora=path), lora, recipe, folder)
    return _joint(run, reports, job.out)


def _trained(run: Path) -> Recipe:
    """The recipe of run folder `run`, with full paths. JobError if it cannot be read."""
    try:
        return Recipe(**read_object(run / RECIPE)["recipe"])
    except (OSError, FileError, KeyError, TypeError) as error:
        raise JobError(f"{run / RECIPE}: cannot be read ({error}): run the training command again, which writes it") from error


def _share_base(first: Path, folder: Path) -> None:
    """Copy the base's pictures, which are the same for every checkpoint, instead of drawing them again."""
    (folder / "pictures").mkdir(exist_ok=True)
    for picture in (first / "pictures").glob("*-scale0.png"):
        if not (folder / "pictures" / picture.name).exists():
            with atomic_path(folder / "pictures" / picture.name) as temporary:
                shutil.copyfile(picture, temporary)


def _joint(run: Path, reports: dict[int, Report], out: Path) -> JointReport:
    steps = list(reports)
    first = reports[steps[0]]
    found = pair(reports)
    joint: JointReport = {
        "run": str(run), "steps": steps, "scales": first["scales"], "lora": {"name": run.name},
        "similarity": {str(step): category_means(report, "similarity").mean(axis=0).round(6).tolist()
                       for step, report in reports.items()},
        "each": {str(step): report["recommended"] for step, report in reports.items()},
        "recommended": found, "warnings": reports[found["step"]]["warnings"]}
    write_text(out / PAGE, _page(joint, _heat_map(joint, out)))
    write_json(out / REPORT, joint)
    say(f"wrote {out / PAGE}, {REPORT} and a report for each step")
    return joint


def pair(reports: dict[int, Report]) -> Verdict:
    """The step and scale to use, by `recommend`'s rules over all pairs at once; equal scales: the earliest step.

    Pairs are sorted by scale, then step, so that the first of equally good ones has the smallest scale.
    """
    steps, scales = list(reports), next(iter(reports.values()))["scales"]
    style = {step: category_means(report, "similarity") for step, report in reports.items()}
    prompt = {step: category_means(report, "prompt_score") for step, report in reports.items()}
    pairs = [(k, step) for k in range(1, len(scales)) for step in steps]
    copies = [any(group["nearest_training"]["copies"][k] for group in reports[step]["groups"].values()
                  if "nearest_training" in group) for k, step in pairs]  # fmt: skip

    def columns(values: dict[int, np.ndarray]) -> np.ndarray:
        return np.stack([values[steps[0]][:, 0], *(values[step][:, k] for k, step in pairs)], axis=1)

    numbered = [float(number) for number in range(len(pairs) + 1)]  # of the base and every pair
    first = reports[steps[0]]
    found = recommend.recommend(columns(style), columns(prompt), own_prompt_scores(first), np.array([False, *copies]),
                                numbered, seed_of(first))

    def scale_of(number: float | None) -> float | None:
        return None if number is None else scales[pairs[int(number) - 1][0]]

    place = found["scale"] if found["scale"] is not None else found["best"]
    return {**found, "step": pairs[int(place) - 1][1], "scale": scale_of(found["scale"]), "low": scale_of(found["low"]),
            "high": scale_of(found["high"]), "best": scales[pairs[int(found["best"]) - 1][0]]}


def in_words(found: Verdict) -> str:
    """The pair in a sentence."""
    gain = found["gain"]
    if found["scale"] is None or gain is None:
        return recommend.in_words(found)
    return (f"Use the LoRA of step {found['step']} at scale {found['scale']:g} ({gain['mean']:+.3f} similarity against the "
            f"base, 95 % interval over all pairs {gain['low']:+.3f} to {gain['high']:+.3f}): the smallest scale, then the "
            "earliest step, among the pairs as good as the best.")


def put_in_place(joint: JointReport, job: Job) -> list[Path]:
    """Replace the run's LoRA by the chosen checkpoint with its scale; the replaced file is kept. Returns the files written.

    Raises:
        JobError: nothing is recommended, or a file cannot be written.
    """
    found, final = joint["recommended"], finished_lora(job.lora)
    if found["scale"] is None:
        raise JobError(f"--write: {final} was not changed. {in_words(found)}")
    kept = final.with_name(f"{final.stem}.before-evaluation{final.suffix}")
    if not kept.exists():
        with atomic_path(kept) as temporary:
            shutil.copyfile(final, temporary)
    with atomic_path(final) as temporary:
        shutil.copyfile(job.out / f"step-{found['step']:06d}" / "lora.safetensors", temporary)
    set_metadata(final, {keys.RECIPE: _trained(job.lora).published()})  # without this machine's paths
    say(f"{final} is now the LoRA of step {found['step']}; the one of the last step is kept as {kept.name}")
    written = recommend.write(final, found, read_lora(final).trigger)
    record = job.lora / FINISHED
    if record.is_file():  # this is now the run's result, so the training command has nothing to do
        RunFolder(job.lora).finish(final, read_object(record).get("run", {}))
    return written


def _heat_map(joint: JointReport, out: Path) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = np.array([joint["similarity"][str(step)] for step in joint["steps"]])
    drawn = Figure(figsize=(8.4, 1.6 + 0.42 * len(joint["steps"])), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots()
    axes.imshow(values, aspect="auto", cmap="viridis")
    dark = values < (values.min() + values.max()) / 2
    for row, column in np.ndindex(*values.shape):
        axes.text(column, row, f"{values[row, column]:.3f}", ha="center", va="center", fontsize=8,
                  color="white" if dark[row, column] else "black")
    found = joint["recommended"]
    if found["scale"] is not None:
        at = joint["scales"].index(found["scale"]), joint["steps"].index(found["step"])
        axes.add_patch(_rectangle(at))
    axes.set_xticks(range(len(joint["scales"])), [f"{scale:g}" for scale in joint["scales"]])
    axes.set_yticks(range(len(joint["steps"])), [str(step) for step in joint["steps"]])
    axes.set(xlabel="LoRA scale", ylabel="optimizer step", title="Similarity to held-out drawings")
    with atomic_path(out / "steps-and-scales.png") as temporary:
        drawn.savefig(temporary, format="png", dpi=160, metadata={"Software": None})
    svg = io.BytesIO()
    drawn.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()


def _rectangle(at: tuple[int, int]) -> Rectangle:
    from matplotlib.patches import Rectangle

    return Rectangle((at[0] - 0.5, at[1] - 0.5), 1, 1, fill=False, edgecolor="#e02020", linewidth=2.5)


def _page(joint: JointReport, svg: bytes) -> str:
    found = joint["recommended"]
    lines = []
    for step in joint["steps"]:
        own = joint["each"][str(step)]
        at = joint["scales"].index(own["scale"] if own["scale"] is not None else own["best"])
        chosen = f"{own['scale']:g}" if own["scale"] is not None else f"none ({own['best']:g} shown)"
        lines.append(([f"<a href='step-{step:06d}/{PAGE}'>{step}</a>", chosen,
                       number(joint["similarity"][str(step)][at], None, None)], step == found["step"]))  # fmt: skip
    return document(f"{joint['lora']['name']}: steps and scales", [
        f"<h1>{escape(joint['lora']['name'])}: every checkpoint at every scale</h1>",
        verdict(in_words(found), found["scale"] is not None),
        *(f"<p class=warning>{escape(warning)}</p>" for warning in joint["warnings"]), "<div class=plots>",
        figure(svg, "similarity by step and scale", "Mean over categories. Framed: the pair to use.",
               least=LEAST_WIDTH), "</div>",
        "<h2>Each step separately</h2>", rows(["step", "its own recommended scale", "similarity there"], lines)])
