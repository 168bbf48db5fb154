"""Shows a folder of pictures: the data table, and each picture as cropped for training."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from convert.errors import JobError
from trainer.data import load_dataset
from trainer.data.decode import decode
from trainer.data.picture import Picture
from trainer.data.records import Dataset, Row
from trainer.page.captions import caption_of
from trainer.recipe import Recipe
from trainer.terminal import say_nothing

THUMBNAIL = 192  # longest side in pixels


@dataclass(frozen=True)
class Look:
    """The contents of a folder."""

    pictures: list[Picture]
    """the user's pictures with the captions of their files, without the recipe's trigger; none for drawings"""
    table: list[Row]
    problems: list[str]
    notes: list[str]
    count: int
    """pictures or drawings in an epoch"""

    def without_caption(self) -> list[Picture]:
        return [picture for picture in self.pictures if not caption_of(picture)]


def look(recipe: Recipe, cache: Path) -> Look:
    """Read all of `recipe.data` once. UsageError and JobError as on the command line."""
    dataset = decode(load_dataset(recipe, cache=cache, say=say_nothing, keep_problems=True))
    as_found = own_pictures(load_dataset(replace(recipe, trigger=""), cache=cache, say=say_nothing, keep_problems=True))
    return Look(pictures=as_found, table=dataset.table, problems=dataset.problems, notes=dataset.notes,
                count=dataset.per_epoch)


def own_pictures(dataset: Dataset) -> list[Picture]:
    """The dataset's pictures in the order of their paths; drawings have no files of their own and are left out."""
    examples = (*dataset.train, *dataset.held_out)
    return sorted((e for e in examples if isinstance(e, Picture)), key=lambda picture: picture.path)


def thumbnail(picture: Picture, resolution: int) -> str:
    """A data URI of the picture as cropped for training. JobError if it cannot be read."""
    image = Image.fromarray(picture.pixels(resolution))
    return data_uri(image, THUMBNAIL)


def data_uri(image: Image.Image, longest: int) -> str:
    """A JPEG of at most `longest` pixels a side as a data URI, so that the page serves no files."""
    image = image.convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_uri(path: Path, longest: int = 1400) -> str:
    """A picture that a run has drawn, as a data URI. JobError if it cannot be read."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return data_uri(image, longest)
    except (OSError, SyntaxError, ValueError) as error:
        raise JobError(f"{path}: cannot be read ({error})") from error


def prompts_from(pictures: Sequence[str], most: int = 3) -> list[str]:
    """A few captions as sample prompts, the shortest first, because these describe what the pictures have in common."""
    return sorted(dict.fromkeys(caption.replace("--", "-") for caption in pictures if caption), key=len)[:most]
