"""The Import tab's work: inspect a file in the LoRA folders, convert it in place, write its picture."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..convert import keys
from ..convert.api import Report, convert_file
from ..convert.check import check, table
from ..convert.errors import FileError, JobError
from ..convert.files import atomic_path
from ..convert.files.card import card_path
from . import cards
from .inspection import in_words

if TYPE_CHECKING:
    from PIL.Image import Image

USELESS_NAMES = ("adapter_model", "pytorch_lora_weights")
"""File names that diffusers and peft always use; the folder's name is more specific."""

PICTURE_SIDE = 1024
"""Longest side of a written picture, in pixels."""


class Exists(FileError):
    """The converted file, `path`, already exists."""

    def __init__(self, path: Path):
        super().__init__(path, f"is already converted: {path.name} is beside it")


def describe(path: Path, shown: str) -> tuple[bool, str]:
    """Whether the file is sound, and the table of `convert --check`, which calls the file `shown`."""
    audit = check(path)
    problem = f"{shown}: {in_words(audit.error)}" if audit.error is not None else audit.problem
    return audit.sound, table(replace(audit, file=shown, problem=problem), advice=False)


def convert_beside(path: Path, taken: Collection[str]) -> Report:
    """Convert `path` to the web UI's form, into a new file beside it, with its card and picture. Overwrites nothing.

    Args:
        taken: names of the other files in the LoRA folders; the web UI identifies a file by its bare name.

    Raises:
        Exists: the converted file already exists.
        JobError: the file cannot be converted.
    """
    target = conversion_of(path, taken)
    if os.path.lexists(target):
        raise Exists(target)
    # its own alias: the web UI ignores an alias that two files share
    report = convert_file(path, target, metadata={keys.OUTPUT_NAME: target.stem})
    try:
        _copy_companions(path, target)
    except OSError as error:
        raise FileError(path, f"{target.name} was written, but its card or picture was not: {error.strerror}") from error
    return report


def conversion_of(path: Path, taken: Collection[str]) -> Path:
    """The file that the conversion of `path` is written to."""
    named = path.with_name(f"{path.parent.name}.safetensors")
    if path.stem in USELESS_NAMES and path.parent.name and (path.parent.name not in taken or named.exists()):
        return named
    return path.with_name(f"{path.stem}.kohya.safetensors")


def _copy_companions(path: Path, target: Path) -> None:
    picture = cards.picture(path)
    pairs = [(card_path(path), card_path(target))]
    if picture is not None:
        pairs.append((picture, target.with_name(f"{target.stem}{picture.suffix}")))
    for source, copy in pairs:
        if source.is_file() and not copy.exists():
            with atomic_path(copy) as temporary:
                shutil.copyfile(source, temporary)


def write_picture(path: Path, image: Image, *, overwrite: bool) -> Path:
    """Save `image` as the preview picture of the file, scaled down to at most `PICTURE_SIDE` pixels wide and high.

    Raises `JobError` if there is already one and `overwrite` is off, or if it cannot be written.
    """
    present = cards.picture(path)
    if present is not None and not overwrite:
        raise JobError(f"{present.name} already exists: tick \"Replace the existing picture\" to replace it")
    if present is not None and present.suffix.lower() == ".gif":
        raise JobError(f"{present.name} is an animation, which this tab does not replace: delete it first")
    target = present or path.with_name(f"{path.stem}.png")
    image = image.convert("RGB")
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    form = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(target.suffix.lower(), "PNG")
    with atomic_path(target) as temporary:
        image.save(temporary, format=form)
    return target
