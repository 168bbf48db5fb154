"""What a job would do, looked at once for the dry run, the contact sheet and the run alike: data, base, places, disk room."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from convert.errors import UsageError
from trainer import plan
from trainer.base.load import BaseFacts, inspect_base
from trainer.cli import Job
from trainer.data import load_dataset, refuse_problems
from trainer.data.decode import decode
from trainer.data.records import Dataset, Row
from trainer.data.table import count, format_table
from trainer.lora import adapter
from trainer.recipe import Recipe


def inspect(recipe: Recipe, job: Job, say: Callable[[str], None], *, decoding: bool = True) -> Dataset:
    """Look at all that a job needs, print the table of it, and return the data. `decoding`: own pictures' pixels too.

    Raises:
        UsageError: an argument makes no sense.
        JobError: names all files of the data that cannot be used.
    """
    for path, name in ((job.out, "--out"), (job.contact_sheet, "--contact-sheet")):
        if path is not None:
            check_writable(path, name)
    base = inspect_base(recipe)
    dataset = load_dataset(recipe, cache=job.cache, say=say, max_upscale=job.max_upscale,
                           keep_problems=True)
    for note in dataset.notes:
        say(note)
    if dataset.table:
        say(f"what is learnt from {', '.join((recipe.data, *recipe.more_data))}:")
    say(format_table([*dataset.table, *_long_captions(dataset, base), *_places(recipe, job, base, dataset)]))
    if dataset.table and not job.decode:
        say(format_table([Row("decoded", "not yet (--no-decode): damaged pixels are found when the pictures are encoded")]))
    elif dataset.table and decoding:
        before = len(dataset.table)
        dataset = decode(dataset)
        say(format_table(dataset.table[before:]))
    return refuse_problems(dataset)


def count_adapter(recipe: Recipe) -> tuple[int, int]:
    """Modules and numbers that learn. Raises UsageError for a bad `--targets`."""
    from diffusers import UNet2DConditionModel

    base = inspect_base(recipe)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(base.unet))
    weights = [layer.weight for layer in adapter.layers(unet, recipe).values()]
    # down is (rank, in, k, k) and up (out, rank)
    numbers = sum(recipe.rank_of(adapter.kernel_of(w)) * (w[0].numel() + w.shape[0]) for w in weights)
    if not recipe.text_encoder:
        return len(weights), numbers
    depth, width, inner = (base.text[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    depth -= recipe.clip_skip - 1
    return len(weights) + 6 * depth, numbers + depth * recipe.rank * (8 * width + 2 * (width + inner))  # q, k, v, out; fc1, fc2


def check_writable(path: Path, name: str) -> None:
    """Try to write beside `path`, before hours are spent. UsageError if that fails."""
    folder = path.parent
    if not folder.is_dir():
        return  # said elsewhere, with what to do
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{name} {path}: its folder cannot be written to ({error.strerror or error}): give another one"
                         ) from error


def _long_captions(dataset: Dataset, base: BaseFacts) -> list[Row]:
    """Captions of several chunks, and those that are cut."""
    from trainer.encoding.text import MOST_CHUNKS, count_tokens

    tokenizer = base.read_tokenizer()
    captions = sorted({text for example in dataset.train for text in example.captions})
    room = tokenizer.model_max_length - 2
    tokens = dict(zip(captions, count_tokens(captions, tokenizer), strict=True))
    longest = {example.source: max(tokens[text] for text in example.captions) for example in dataset.train}
    several = [source for source, number in longest.items() if room < number <= MOST_CHUNKS * room]
    cut = [source for source, number in longest.items() if number > MOST_CHUNKS * room]
    rows = []
    if several:
        rows.append(Row("long captions", f"{count(several)}: over {room} tokens, learnt in up to {MOST_CHUNKS} parts, as the "
                        "web UI reads them"))
    if cut:
        rows.append(Row("cut captions", f"{count(cut)}: over {MOST_CHUNKS * room} tokens, the rest is not learnt", True))
    return rows


def _places(recipe: Recipe, job: Job, base: BaseFacts, dataset: Dataset) -> list[Row]:
    """The base, where the LoRA goes, and whether the disk holds what will be written."""
    rows = [Row("base", f"{recipe.base}: {base.description}")]
    if job.out is not None:
        rows.append(Row("to", f"{job.out}, run folder {job.run}"))
    examples = len(dataset.train) + len(dataset.held_out)
    needed = {job.cache: plan.plan(recipe, dataset.per_epoch, encoded=examples).latent_bytes}
    if job.out is not None:
        numbers = count_adapter(recipe)[1]
        checkpoints = -(-recipe.total_steps(dataset.per_epoch) // job.checkpoint_every)
        needed[job.run] = 4 * numbers * (3 * checkpoints + 2)  # fp32: factors and AdamW's two moments; the two LoRA files
    for place, size in needed.items():
        free = shutil.disk_usage(_existing(place)).free
        if free < size:
            rows.append(Row(
                "disk room", f"{free / 2**20:,.0f} MiB are free for {place}, about {size / 2**20:,.0f} are needed", True))
    return rows


def _existing(path: Path) -> Path:
    path = Path(os.path.abspath(path))
    while not path.exists():
        path = path.parent
    return path
