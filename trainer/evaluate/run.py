"""One evaluation from start to end: plan, pictures, losses, judgement, figures, page. Each stage is another module's."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import JobError, UsageError
from convert.files import write_json, write_text
from trainer.base.load import Base, load_base
from trainer.base.sd15 import SCRIBBLE_MINIATURE
from trainer.encoding.encode import encode_dataset
from trainer.evaluate import recommend
from trainer.evaluate.cli import DATA_FLAGS, Job
from trainer.evaluate.curves import curve, without_level
from trainer.evaluate.figures import draw_grids, draw_plots
from trainer.evaluate.gallery import Gallery
from trainer.evaluate.ink import Ink
from trainer.evaluate.judge import Judge
from trainer.evaluate.losses import HeldOutLoss, spread
from trainer.evaluate.measure import Measure
from trainer.evaluate.page import page
from trainer.evaluate.settings import Settings
from trainer.evaluate.subjects import Plan, make_plan
from trainer.lora.lora_file import LoraFile, read_lora, trained_by
from trainer.recipe import Recipe, flag
from trainer.sample.sampler import STEPS, Sampler
from trainer.training import devices
from trainer.training.devices import Compute

CLAIM, IDENTITIES, REPORT, PAGE = "settings.json", "identities.json", "report.json", "index.html"
BATCH = {"cuda": 16}
LOSS_BATCH = 16


def say(text: str) -> None:
    """A line for the user, on the terminal at once."""
    print(text, flush=True)


def run(settings: Settings, job: Job) -> int:
    """Do the job; returns the exit status. Raises JobError and UsageError for what the user can mend."""
    lora = read_lora(job.lora)
    recipe = trained_by(lora, job.changed, needed=("base", "data"))
    if job.write:
        recommend.check_writable(job.lora)
    claim(job.out, settings, recipe, lora.digest)
    report = _finished(job.out)
    if report:
        say(f"{job.out / PAGE} is finished: nothing to measure. Another --out starts a new one")
    else:
        report = _measure(settings, job, lora, recipe)
    say(recommend.in_words(report["recommended"]))
    if job.write:
        for path in recommend.write(job.lora, report["recommended"], lora.trigger):
            say(f"wrote the scale into {path}")
    return 0


def claim(out: Path, settings: Settings, recipe: Recipe, digest: str) -> None:
    """Make `out` this evaluation's folder, or make sure that it is: other settings would mix two.

    Raises:
        UsageError: it holds another evaluation, or is a file; the message says what differs.
    """
    mine = {**settings.as_dict(), **{name: getattr(recipe, name) for name in (*DATA_FLAGS, "seed")}, "LoRA": digest}
    mine["seed"] = [settings.seed, recipe.seed]
    mine = json.loads(json.dumps(mine))
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; name a folder for the report")
    if (out / CLAIM).exists():
        theirs = _read(out / CLAIM)
        changed = [f"{name if name == 'LoRA' else flag(name)} was {theirs.get(name)!r}, now {mine.get(name)!r}"
                   for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
        if changed:
            raise UsageError(f"--out {out}: holds the report of something else ({'; '.join(changed)}): name another folder, or "
                             "delete this one")
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"--out {out}: cannot be made: {error.strerror or error}") from error
    write_json(out / CLAIM, mine)


def bind(out: Path, now: dict[str, str]) -> None:
    """Note what the names in the settings meant, or make sure that they still mean it.

    Raises:
        JobError: base, judge or drawings have changed since the pictures in `out` were drawn.
    """
    stored = _read(out / IDENTITIES) if (out / IDENTITIES).exists() else now
    changed = [key for key in now if stored.get(key) != now[key]]
    if changed:
        raise JobError(f"{out}: the {' and '.join(changed)} changed since this report began: put back what was, or name "
                       "another --out")
    write_json(out / IDENTITIES, now)


def _finished(out: Path) -> dict[str, Any] | None:
    return _read(out / REPORT) if (out / REPORT).exists() and (out / PAGE).exists() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError) as error:
        raise JobError(f"{path}: cannot be read ({error}): delete it, and the same command makes it again") from error


def _measure(settings: Settings, job: Job, lora: LoraFile, recipe: Recipe) -> dict[str, Any]:
    compute = devices.choose(job.device)
    base = load_base(recipe, dtype=compute.base_dtype, say=say)
    if compute.device.type == "cpu" and job.device == "auto" and base.family != SCRIBBLE_MINIATURE:
        raise UsageError("no GPU was found, and some hundred pictures take a CPU days: give --device cpu if you mean it, fewer "
                         "pictures with --per-scale and --scales, or a LoRA of the miniature")
    lora.attach(base)
    settings = settings.settled(base.family)
    judges = {"clip": Judge(settings.clip, "--clip", compute.device, say)}
    judges["image_clip"] = judges["clip"] if settings.image_clip == settings.clip else Judge(
        settings.image_clip, "--image-clip", compute.device, say)  # fmt: skip
    plan = make_plan(settings, recipe, cache=job.cache, say=say)
    for note in plan.notes:
        say(note)
    bind(job.out, {"base": base.identity, "drawings": plan.fingerprint(), **{key: j.identity for key, j in judges.items()}})
    side = recipe.resolution or base.resolution
    sampler = Sampler(base, compute, resolution=side, steps=settings.steps or STEPS, guidance=settings.guidance)
    settings = replace(settings, guidance=sampler.guidance, steps=sampler.steps)
    gallery = Gallery(job.out / "pictures", sampler, job.batch or BATCH.get(compute.device.type, 8))
    scales = settings.scale_list
    gallery.draw(plan.subjects(), scales)
    say("denoising losses")
    losses = _losses(plan, base, compute, settings, side, job)
    ink = Ink.of(_as_the_vae_has_them(plan, base, compute, side, sampler, job))
    base.unet.to("cpu")
    say("judging the pictures")
    measure = Measure(settings, scales, gallery, judges["clip"], judges["image_clip"], ink, side)
    groups = {g.kind: measure.group(g) | {"held_out_loss": losses[g.kind]} for g in plan.groups}
    alike = np.array([s["similarity"] for g in groups.values() for s in g["subjects"][: settings.per_scale]])
    report = {**_provenance(lora, base, judges, settings, recipe, compute), "scales": scales,
              "recommended": recommend.recommend(alike, scales, settings.seed), "groups": groups}
    return _write(report, plan, gallery, settings, job.out)


def _losses(plan: Plan, base: Base, compute: Compute, settings: Settings, side: int, job: Job) -> dict[str, dict[str, Any]]:
    """Each group's curve; the intervals leave out that every drawing has noise levels of its own."""
    loss = HeldOutLoss(base, compute, side=side, seed=settings.seed, noises=settings.noises, batch=job.batch or LOSS_BATCH)
    found = {group.kind: loss(spread(group.references), settings.scale_list, cache=job.cache, say=quiet)
             for group in plan.groups}
    return {kind: curve(without_level(values), settings.seed).as_dict() for kind, values in found.items()}


def _as_the_vae_has_them(plan: Plan, base: Base, compute: Compute, side: int, sampler: Sampler, job: Job) -> list[np.ndarray]:
    """The references through the VAE: the nearest to them that the base could draw."""
    examples = [example for group in plan.groups for example in spread(group.references)]
    recipe = Recipe(base=base.name, flip=False, resolution=side)
    encoded = encode_dataset(examples, base, recipe=recipe, device=compute.device, cache=job.cache, say=quiet)
    return list(sampler.decode(encoded.mean[:, 0].to(compute.device).float()))


def _provenance(lora: LoraFile, base: Base, judges: dict[str, Judge], settings: Settings, recipe: Recipe,
                compute: Compute) -> dict[str, Any]:  # fmt: skip
    contents = lora.contents
    return {
        "lora": {"name": lora.name, "file": lora.path.name, "digest": lora.digest, "form": contents.form, "rank": contents.rank,
                 "alpha": contents.alpha, "modules": len(contents.modules),
                 "recipe": lora.recipe.as_dict() if lora.recipe else None},
        "base": {"name": base.name, "identity": base.identity, "family": base.family},
        "judges": {key: {"name": judge.name, "identity": judge.identity} for key, judge in judges.items()},
        "settings": settings.as_dict(),
        "data": {name: getattr(recipe, name) for name in (*DATA_FLAGS, "seed") if name != "base"},
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "numpy", "pillow")},
        "device": str(compute.device)}


def _write(report: dict[str, Any], plan: Plan, gallery: Gallery, settings: Settings, out: Path) -> dict[str, Any]:
    grids = draw_grids(plan, gallery, report["scales"], settings.rows, out)
    report["grids"] = {name: {"file": grid["file"], "rows": grid["rows"]} for name, grid in grids.items()}
    plots = draw_plots(report, out)
    write_json(out / REPORT, report)
    write_text(out / PAGE, page(report, plots, grids))
    say(f"wrote {out / PAGE}, {REPORT} and {len(grids) + len(plots)} figures")
    return report


def quiet(text: str) -> None:
    """For notices that were given before."""
