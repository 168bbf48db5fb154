"""Measures one LoRA: plan, pictures, losses, judgement. Each stage is in another module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from convert.errors import JobError, UsageError
from trainer.base.load import Base, load_base
from trainer.base.sd15 import SCRIBBLE_NARROW
from trainer.encoding.encode import encode_dataset
from trainer.evaluate.claim import bind, claim
from trainer.evaluate.cli import DATA_FLAGS, Job
from trainer.evaluate.copying import warnings
from trainer.evaluate.curves import curve, numbers
from trainer.evaluate.figures import draw_grids, draw_plots
from trainer.evaluate.gallery import Gallery
from trainer.evaluate.ink import Ink
from trainer.evaluate.judge import ImageJudge, Judge
from trainer.evaluate.losses import HeldOutLoss, round_robin
from trainer.evaluate.measure import Measure
from trainer.evaluate.recommend import recommend
from trainer.evaluate.report import category_means, own_prompt_scores, seed_of, write_report
from trainer.evaluate.results import Losses, Provenance, Report, Verdict
from trainer.evaluate.settings import DINO, NONE, Settings
from trainer.evaluate.small_judge import find_judge
from trainer.evaluate.subjects import HELD_OUT, Plan, make_plan
from trainer.lora.lora_file import LoraFile
from trainer.recipe import Recipe
from trainer.sample.sampler import Sampler
from trainer.terminal import say, say_nothing
from trainer.training import devices
from trainer.training.devices import Compute

LOSS_BATCH = 16


@dataclass(frozen=True)
class Judges:
    """The models that judge. dino: None if there is none; `without` then gives the reason."""

    clip: Judge
    image_clip: Judge
    dino: ImageJudge | None
    without: str = ""

    def described(self) -> dict[str, dict[str, str]]:
        """Name and identity of each, or the reason why there is none."""
        found: dict[str, ImageJudge | None] = {"clip": self.clip, "image_clip": self.image_clip, "dino": self.dino}
        return {key: {"name": judge.name, "identity": judge.identity} if judge else {"none": self.without}
                for key, judge in found.items()}


def evaluate(settings: Settings, job: Job, lora: LoraFile, recipe: Recipe, out: Path) -> Report:
    """Measure `lora` into folder `out`; returns the report. Raises JobError and UsageError for errors that the user can fix."""
    compute = devices.choose(job.device)
    base = load_base(recipe, dtype=compute.base_dtype, say=say)
    if compute.device.type == "cpu" and job.device == "auto" and base.family != SCRIBBLE_NARROW:
        raise UsageError("no GPU was found, and a CPU takes days for hundreds of pictures of Stable Diffusion 1.5: give "
                         "--device cpu to do it anyway, fewer --scales and --per-scale, or a LoRA of the miniature")
    lora.attach(base)
    asked, settings = settings, settings.settled(base.family)
    judges = _judges(settings, base, compute.device)
    side = recipe.resolution or base.resolution
    plan = make_plan(settings, recipe, side=side, cache=job.cache, say=say)
    told = [*plan.notes, *_trained_on(lora, recipe, plan)]
    for note in told:
        say(note)
    claim(out, asked, recipe, lora.digest)  # not before: a failed start must leave the folder free
    bind(out, {"base": base.identity, "drawings": plan.fingerprint(),
               **{key: next(reversed(found.values())) for key, found in judges.described().items()}})
    sampler = Sampler(base, compute, size=plan.shape[::-1], steps=settings.sampling_steps, guidance=settings.guidance)
    settings = replace(settings, guidance=sampler.guidance, sampling_steps=sampler.steps)
    gallery = Gallery(out / "pictures", sampler, job.micro_batch or _batch(base, compute))
    gallery.draw(plan.subjects(), settings.scale_list)
    say("denoising losses")
    losses = _losses(plan, base, compute, settings, side, job)
    ink = Ink.of(_decoded(plan, base, compute, side, sampler, job))
    base.unet.to("cpu")
    say("judging the pictures")
    measure = Measure(settings, settings.scale_list, gallery, judges.clip, judges.image_clip, judges.dino, ink, side)
    report: Report = {
        **_provenance(lora, base, judges, settings, recipe, compute), "told": told, "scales": settings.scale_list,
        "groups": {g.kind: {**measure.group(g), **losses[g.kind]} for g in plan.groups},
        "complex": measure.complex(plan), "diversity": measure.diversity(plan)}
    report["recommended"] = verdict(report)
    report["warnings"] = warnings(report)
    grids = draw_grids(plan, gallery, report["scales"], settings.rows, out)
    write_report(report, draw_plots(report, out), grids, out)
    return report


def verdict(report: Report) -> Verdict:
    """`recommend` on all categories of a report, seen and unseen together."""
    flags = [group["nearest_training"]["copies"] for group in report["groups"].values() if "nearest_training" in group]
    copies = np.any(flags, axis=0) if flags else np.zeros(len(report["scales"]), dtype=bool)
    return recommend(category_means(report, "similarity"), category_means(report, "prompt_score"), own_prompt_scores(report),
                     copies, report["scales"], seed_of(report))


def _batch(base: Base, compute: Compute) -> int:
    """The default number of pictures drawn at once."""
    return 16 if compute.device.type == "cuda" or base.family == SCRIBBLE_NARROW else 8


def _judges(settings: Settings, base: Base, device: torch.device) -> Judges:
    clip = image_clip = find_judge(settings.clip, "--clip", device, say)
    if settings.image_clip != settings.clip:
        image_clip = find_judge(settings.image_clip, "--image-clip", device, say)
    if settings.dino == NONE:
        small = base.family == SCRIBBLE_NARROW
        return Judges(clip, image_clip, None, "the miniature has no second judge" if small else "--dino none")
    try:
        return Judges(clip, image_clip, ImageJudge(settings.dino or DINO, "--dino", device, say))
    except (JobError, UsageError) as error:
        if settings.dino:
            raise
        say(f"without a second judge: {error}")
        return Judges(clip, image_clip, None, str(error))


def _trained_on(lora: LoraFile, recipe: Recipe, plan: Plan) -> list[str]:
    """A warning if the reference pictures are, or may be, training pictures of the LoRA."""
    if plan.groups[0].kind != HELD_OUT:
        return []
    own = lora.recipe
    if own is None:
        return ["the LoRA does not record its training pictures: if these are among them, all results are too good"]
    # a LoRA stores the folder's name, not the full path
    if Path(own.data).name != Path(recipe.data).name:
        return []
    if (own.held_out, own.data_seed_used) == (recipe.held_out, recipe.data_seed_used):
        return []
    return [f"the LoRA was trained on these pictures (its run held out a share of {own.held_out:g} by seed "
            f"{own.data_seed_used}): all results are too good; train with --held-out 0.3 to measure it fairly"]


def _losses(plan: Plan, base: Base, compute: Compute, settings: Settings, side: int, job: Job) -> dict[str, Losses]:
    """For each group its curve, over categories (or pictures, if there are none), and each drawing's numbers."""
    loss = HeldOutLoss(base, compute, side=side, seed=settings.seed, noises=settings.noises,
                       batch=job.micro_batch or LOSS_BATCH)
    found: dict[str, Losses] = {}
    for group in plan.groups:
        examples = round_robin(group.references)
        values = loss(examples, settings.scale_list, cache=job.cache, say=say_nothing)
        found[group.kind] = {
            "held_out_loss": curve(values, [e.category or e.source for e in examples], settings.seed),
            "losses": [{"name": e.source, "held_out_loss": numbers(row)} for e, row in zip(examples, values, strict=True)]}
    return found


def _decoded(plan: Plan, base: Base, compute: Compute, side: int, sampler: Sampler, job: Job) -> list[np.ndarray]:
    """The references encoded and decoded by the VAE: the closest that the base could draw."""
    examples = [example for group in plan.groups for example in round_robin(group.references)]
    recipe = Recipe(base=base.name, flip=False, resolution=side)
    encoded = encode_dataset(examples, base, recipe=recipe, device=compute.device, cache=job.cache, say=say_nothing)
    return list(sampler.decode(encoded.mean[:, 0].to(compute.device).float()))


def _provenance(lora: LoraFile, base: Base, judges: Judges, settings: Settings, recipe: Recipe,
                compute: Compute) -> Provenance:  # fmt: skip
    contents = lora.contents
    return {
        "lora": {"name": lora.name, "file": lora.path.name, "digest": lora.digest, "form": contents.form, "rank": contents.rank,
                 "alpha": contents.alpha, "modules": len(contents.modules),
                 "recipe": lora.recipe.as_dict() if lora.recipe else None},
        "base": {"name": base.name, "identity": base.identity, "family": base.family},
        "judges": judges.described(),
        "settings": settings.as_dict(),
        "data": {name: getattr(recipe, name) for name in (*DATA_FLAGS, "seed") if name != "base"},
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "numpy", "pillow")},
        "device": str(compute.device)}
