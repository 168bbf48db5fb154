"""Reads folders of a user's own pictures: finds them and their captions, and makes a `Dataset` with its table."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from convert.errors import JobError, UsageError
from trainer.data.captions import TEXT_SUFFIXES, own_captions, shared, with_trigger
from trainer.data.folder import Unused, list_folder
from trainer.data.images import SUFFIXES, Header, read_header
from trainer.data.layout import place_of, roles
from trainer.data.metadata import NAMES
from trainer.data.picture import Picture
from trainer.data.records import Dataset
from trainer.data.sources import Source, sources
from trainer.data.table import Facts, rows
from trainer.data.tags import variants, variants_each
from trainer.recipe import Recipe
from trainer.rng import Stream


@dataclass
class Found:
    """Pictures found in the folders of `--data`, with facts for the table."""

    pictures: list[Picture] = field(default_factory=list)
    headers: list[Header] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)
    problems: list[str] = field(default_factory=list)


def load_pictures(recipe: Recipe, *, max_upscale: float = 1.0) -> Dataset:
    """The pictures of `recipe.data` and `more_data`, in the order of their paths; only the headers of their files are read.

    layout.py and captions.py explain how folders and files are read. `recipe.held_out` of the pictures, at least one and
    never all, are chosen by the seed and held out; none of those for regularisation.

    Raises:
        UsageError: there is no such folder, or it has no training pictures.
        JobError: a folder cannot be read. Files that cannot be used are in the result's `problems`.
    """
    found, given = Found(), sources(recipe)
    for source in given:
        _read(source, recipe, found, several=len(given) > 1)
    pictures = found.pictures
    if not any(not picture.reg for picture in pictures) and not found.problems:
        only = " but for regularisation" if pictures else ""
        named = ", ".join(source.given for source in given)
        raise UsageError(f"--data {named}: has no training pictures{only}; expected .npy drawings, or pictures "
                         f"({' '.join(SUFFIXES)}) with captions in name.txt or name.caption beside each, metadata.jsonl or "
                         f".csv, or as names of subfolders{_passed_over(found.facts.unused)}")
    own = [row for row, picture in enumerate(pictures) if not picture.reg]
    kept = {own[row] for row in held_out_rows(len(own), recipe.held_out, recipe.data_seed_used)}
    trigger = recipe.trigger or shared([pictures[row].caption for row in own])
    found.facts.guessed_trigger = trigger if not recipe.trigger else ""
    each = variants_each(len(pictures))
    if recipe.shuffle_tags or recipe.tag_dropout:
        pictures = [replace(p, captions=tuple(v for c in p.captions for v in variants(c, recipe, recipe.trigger, each)))
                    for p in pictures]  # fmt: skip
        found.facts.orders = each
    dataset = Dataset(train=[p for row, p in enumerate(pictures) if row not in kept],
                      held_out=[p for row, p in enumerate(pictures) if row in kept], trigger=trigger, problems=found.problems)
    dataset.table.extend(rows(dataset, found.facts, recipe, max_upscale))
    return dataset


def _kind(file: Path) -> str:
    if file.suffix.lower() == ".parquet":
        return ".parquet (captions in it are not read: save them as metadata.csv or metadata.jsonl)"
    return file.suffix.lower() or "files without a suffix"


def _passed_over(unused: Unused) -> str:
    named = [f"{count} {kind}" for kind, (count, _) in unused.kinds.items()]
    return f"; not used: {', '.join(named)}" if named else ""


def _read(source: Source, recipe: Recipe, found: Found, *, several: bool) -> None:
    """Add the pictures of one folder."""
    listing, facts = list_folder(source.folder, follow_links=recipe.follow_links), found.facts
    found_roles = roles(listing, source)
    headers: dict[Path, Header] = {}
    for path in found_roles.pictures:
        try:
            headers[path] = read_header(path)
        except JobError as error:
            found.problems.append(str(error))
    facts.contact_sheets += sum(header.ours for header in headers.values())
    paths = [path for path, header in headers.items() if not header.ours]
    captions = own_captions(source.folder, paths, found_roles.others, listing.unused, join=recipe.caption_lines == "join")
    found.problems += captions.problems
    for file in found_roles.others:
        if file.suffix.lower() not in TEXT_SUFFIXES and file.name.lower() not in NAMES:
            listing.unused.add(_kind(file), listing.name(file))
    for path in paths:
        place = place_of(path, source.folder, source, facts.numbers)
        if place.repeats == 0 or (place.reg and not recipe.reg):
            listing.unused.add("pictures for regularisation (--no-reg)" if place.reg else "pictures in folders of 0 repeats",
                               listing.name(path))
            continue
        texts = captions.of.get(path) or ((place.category,) if place.category else ())
        trigger = "" if place.reg else source.trigger
        final = tuple(dict.fromkeys(with_trigger(trigger, text) for text in texts or ("",)))
        name = f"{source.folder.name}/{listing.name(path)}" if several else listing.name(path)
        header = headers[path]
        picture = Picture(
            path=path, source=name, category=place.category, captions=final, caption=final[0],
            size=(header.width, header.height), repeats=place.repeats, reg=place.reg,
            weight=recipe.prior_weight if place.reg else 1.0,
            mask_path=found_roles.masks.get(path) if recipe.masks else None,
            alpha_mask=recipe.alpha_mask and header.transparent and path not in found_roles.masks,
            bucket_step=recipe.bucket_step, max_aspect=recipe.bucket_max_aspect)
        found.pictures.append(picture)
        facts.note(picture, header, captions.origin.get(path, "the folder's name" if place.category else ""), trigger,
                   place.own_class)
    if not recipe.masks and found_roles.masks:
        first = next(iter(found_roles.masks.values()))
        listing.unused.add("masks (--no-masks)", first.name, len(found_roles.masks))
    facts.take(listing.unused, source.folder.name if several else "")


def held_out_rows(count: int, share: float, seed: int) -> set[int]:
    """`share` of `count` rows, chosen by the seed: none if it is 0, else at least one, but never all."""
    wanted = min(max(1, round(share * count)), count - 1) if share and count else 0
    return set(np.random.default_rng([seed, Stream.OWN_HELD_OUT]).permutation(count)[:wanted].tolist())
