"""Checks of a job, shared by the dry run, the contact sheet and the run: data, base, paths, disk space."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from convert.errors import UsageError
from trainer import plan
from trainer.base.facts import BaseFacts, inspect_base
from trainer.base.tokenizers import CONTEXT
from trainer.cli import DEMO_OUT, Job
from trainer.data import check_data, load_dataset, refuse_problems, to_fetch
from trainer.data.decode import decode
from trainer.data.records import Dataset, Row
from trainer.data.split import HELD_OUT_ROWS
from trainer.data.table import count as pictures_of
from trainer.data.table import format_table
from trainer.lora.saves import check_saves
from trainer.lora.targets import count
from trainer.recipe import Recipe
from trainer.runs.contact_sheet import check_sheet
from trainer.runs.outputs import check_out
from trainer.runs.run_folder import RunFolder
from trainer.sample.prompts import read_prompts
from trainer.terminal import Say
from trainer.training.metrics import check_tracker


def check_job(recipe: Recipe, job: Job, say: Say) -> int | None:
    """Check for all errors that can be found before anything is downloaded or computed. Raises UsageError and JobError.

    Returns the number of pictures in an epoch if it follows from the recipe; None for a folder.
    """
    folder = RunFolder(job.run)
    if job.contact_sheet:
        check_sheet(job.contact_sheet, overwrite=job.overwrite)
    if job.out is not None:
        if job.out == DEMO_OUT:
            job.out.parent.mkdir(exist_ok=True)
        folder.check(recipe, say)
        if (job.save_every or job.save_every_epochs) and not job.overwrite:
            check_saves(job.save_to or job.run / "loras", job.out.stem, recipe)
        check_out(job.out, overwrite=job.overwrite, mine=folder.owns(job.out))
    if job.sample_prompts:
        read_prompts(job.sample_prompts)
    check_tracker(job.track)
    inspect_base(recipe)
    return check_data(recipe)


def inspect(recipe: Recipe, job: Job, say: Say, *, decoding: bool = True) -> Dataset:
    """Check the data that a job needs, print its table, and return it. `decoding`: also decode the user's pictures.

    Raises:
        UsageError: an argument is invalid.
        JobError: names all data files that cannot be used.
    """
    _check_places(job)
    base = inspect_base(recipe)
    dataset = load_dataset(recipe, cache=job.cache, say=say, max_upscale=job.max_upscale,
                           keep_problems=True)
    for note in dataset.notes:
        say(note)
    if dataset.table:
        say(f"training data from {', '.join((recipe.data, *recipe.more_data))}:")
    say(format_table([*dataset.table, *_long_captions(dataset, base),
                      *_places(recipe, job, base, dataset.per_epoch, len(dataset.train) + len(dataset.held_out))]))
    if dataset.table and not job.decode:
        say(format_table([Row("decoded", "not yet (--no-decode): damaged pixels are found when the pictures are encoded")]))
    elif dataset.table and decoding:
        before = len(dataset.table)
        dataset = decode(dataset)
        say(format_table(dataset.table[before:]))
    return refuse_problems(dataset)


def inspect_unfetched(recipe: Recipe, job: Job, pictures: int, say: Say) -> None:
    """The same for drawings that a dry run does not download. pictures: how many will be trained on."""
    _check_places(job)
    lacking = to_fetch(recipe, job.cache)
    held_out = HELD_OUT_ROWS * (pictures // recipe.per_category)
    say(format_table([
        Row("drawings", f"{pictures:,} of QuickDraw, {recipe.per_category} of each category; "
            f"{HELD_OUT_ROWS} others of each are held out"),
        Row("to fetch", f"{len(lacking)} categories from {recipe.data_url}, kept in {job.cache}; not tried in a dry run"),
        *_places(recipe, job, inspect_base(recipe), pictures, pictures + held_out)]))


def _check_places(job: Job) -> None:
    for path, name in ((job.out, "--out"), (job.contact_sheet, "--contact-sheet")):
        if path is not None:
            check_writable(path, name)


def check_writable(path: Path, name: str) -> None:
    """Try to write beside `path`, before hours are spent. UsageError if that fails."""
    folder = path.parent
    if not folder.is_dir():
        return  # reported elsewhere, with advice
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{name} {path}: its folder cannot be written to ({error.strerror or error}): give another one"
                         ) from error


def _long_captions(dataset: Dataset, base: BaseFacts) -> list[Row]:
    """Rows for captions of several chunks, and for those that are cut off."""
    captions = sorted({text for example in dataset.train for text in example.captions})
    letters = min(CONTEXT, base.text.get("max_position_embeddings", CONTEXT)) - 2
    if all(text.isascii() and len(text) <= letters for text in captions):
        return []  # a token has at least one letter, and loading the tokenizer takes seconds
    from trainer.encoding.text import MOST_CHUNKS, count_tokens

    tokenizer = base.read_tokenizer()
    room = tokenizer.model_max_length - 2
    tokens = dict(zip(captions, count_tokens(captions, tokenizer), strict=True))
    longest = {example.source: max(tokens[text] for text in example.captions) for example in dataset.train}
    several = [source for source, number in longest.items() if room < number <= MOST_CHUNKS * room]
    cut = [source for source, number in longest.items() if number > MOST_CHUNKS * room]
    rows = []
    if several:
        rows.append(Row("long captions", f"{pictures_of(several)}: over {room} tokens, encoded in up to {MOST_CHUNKS} parts, "
                        "as in the web UI"))
    if cut:
        rows.append(Row("cut captions", f"{pictures_of(cut)}: over {MOST_CHUNKS * room} tokens, the rest is cut off", True))
    return rows


def _places(recipe: Recipe, job: Job, base: BaseFacts, per_epoch: int, encoded: int) -> list[Row]:
    """Rows for the base, the output, and the disk space needed.

    per_epoch: pictures in an epoch; encoded: distinct pictures, including those held out.
    """
    rows = [Row("base", f"{recipe.base}: {base.description}")]
    if job.out is not None:
        rows.append(Row("to", f"{job.out}, run folder {job.run}"))
    needed = {job.cache: plan.plan(recipe, per_epoch, encoded=encoded).latent_bytes}
    if job.out is not None:
        numbers = count(recipe, base)[1]
        checkpoints = -(-recipe.total_steps(per_epoch) // job.checkpoint_every)
        needed[job.run] = 4 * numbers * (3 * checkpoints + 2)  # fp32: factors and AdamW's two moments; the two LoRA files
    for place, size in needed.items():
        free = shutil.disk_usage(_existing(place)).free
        if free < size:
            rows.append(Row(
                "disk space", f"{free / 2**20:,.0f} MiB are free for {place}, about {size / 2**20:,.0f} are needed", True))
    return rows


def _existing(path: Path) -> Path:
    path = Path(os.path.abspath(path))
    while not path.exists():
        path = path.parent
    return path
