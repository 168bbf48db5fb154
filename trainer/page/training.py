"""Queues a training."""

from __future__ import annotations

from dataclasses import asdict

from trainer.data import check_data, load_dataset
from trainer.page.commands import Wish, recipe_of, sheet_arguments, training_arguments
from trainer.page.context import Context
from trainer.page.jobs import Job
from trainer.page.pictures import prompts_from
from trainer.presets import DEMO
from trainer.recipe import Recipe
from trainer.terminal import say_nothing

DEMO_WISH = Wish(preset=DEMO, name="demo", sheets=4)


def start_training(page: Context, wish: Wish) -> Job:
    """Put a training at the end of the queue. UsageError and JobError as the command line has them."""
    argv = training_arguments(wish, page.folders, page.places)
    recipe, job = recipe_of(argv)
    count, captions = count_pictures(recipe, page)
    total = recipe.total_steps(count)
    lines = [line for line in wish.prompts.splitlines() if line.strip()] or prompts_from(captions)
    job.run.parent.mkdir(parents=True, exist_ok=True)
    argv += sheet_arguments(page.places, wish.name, total, wish.sheets, lines)
    argv.append(f"--cache={page.cache}")
    added = page.queue.add(
        kind="train", name=page.places.out(wish.name).stem, module="trainer", argv=argv, out=job.out, run=job.run, total=total,
        per_step=recipe.batch * recipe.accumulation, wish=asdict(wish))  # fmt: skip
    page.queue.tick()
    return added


def count_pictures(recipe: Recipe, page: Context) -> tuple[int, list[str]]:
    """Pictures in an epoch, and their captions where they are on this machine already."""
    counted = check_data(recipe)
    if recipe.data == "quickdraw":  # which would be downloaded
        assert counted is not None
        return counted, []
    dataset = load_dataset(recipe, cache=page.cache, say=say_nothing)
    captions = [example.caption for example in dataset.without_reg]
    return dataset.per_epoch, [caption for caption in captions if caption != recipe.trigger] or captions
