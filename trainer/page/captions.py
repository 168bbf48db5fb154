"""Edits captions: reads and atomically writes the text file beside a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convert.errors import JobError
from convert.files import write_text
from trainer.data.captions import with_trigger
from trainer.data.folder import plain
from trainer.data.picture import Picture
from trainer.data.texts import read_text

SUFFIX = ".txt"
"""The kind of caption file that takes precedence over all others."""


def caption_file(picture: Path) -> Path:
    """The .txt beside `picture` that training reads, in any case; if there is none, the path for a new one."""
    names = [plain(picture.with_suffix(SUFFIX).name), plain(picture.name + SUFFIX)]
    beside = {plain(path.name): path for path in picture.parent.iterdir() if path.suffix.lower() == SUFFIX}
    return next((beside[name] for name in names if name in beside), picture.with_suffix(SUFFIX))


def own_text(picture: Path) -> str:
    """The text of the picture's own .txt; "" if there is none. JobError if it cannot be read."""
    file = caption_file(picture)
    return read_text(file).strip() if file.exists() else ""


def caption_of(picture: Picture) -> str:
    """The text to edit: the picture's own, or its captions from another file or its folder, one per line."""
    return own_text(picture.path) or "\n".join(caption for caption in picture.captions if caption)


def write_caption(picture: Path, text: str, *, before: str) -> bool:
    """Write `text` beside `picture` atomically; False if the text is the same already.

    before: the picture's own text when the user began to edit. JobError if it has changed since, by another program or tab.
    """
    text, now = text.strip(), own_text(picture)
    if text == now:
        return False
    if now != before.strip():
        raise JobError(f"{caption_file(picture).name}: was changed in the meantime and is kept: show the pictures again")
    write_text(caption_file(picture), text + "\n")
    return True


def add_trigger(pictures: Sequence[Picture], trigger: str) -> int:
    """Add `trigger` to the .txt of every picture whose captions lack it, as --trigger does during training.

    Returns how many were written. Captions of several lines get it in each. Pictures for regularisation are left out.
    """
    written = 0
    for picture in pictures:
        if picture.reg:
            continue
        lines = caption_of(picture).splitlines() or [""]
        text = "\n".join(with_trigger(trigger, line.strip()) for line in lines)
        written += write_caption(picture.path, text, before=own_text(picture.path))
    return written
