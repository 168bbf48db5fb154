"""The captions of a person's own pictures: from text files, a Hugging Face `metadata.jsonl`, or the folders' names."""

from __future__ import annotations

import json
import os
from pathlib import Path

from convert.errors import JobError

TEXT_SUFFIXES = (".txt", ".caption")  # the first wins where a picture has both
METADATA = "metadata.jsonl"


def own_captions(folder: Path, pictures: list[Path], others: list[Path]) -> tuple[dict[Path, str], list[str]]:
    """The caption of each of `pictures`, "" where it has none, and notes for the user. All paths lie under `folder`.

    A picture's caption is the first of these that is there and not blank: the text file of its name beside it (`.txt`
    before `.caption`, UTF-8); its line in a `metadata.jsonl` of its own folder or of one above (the nearest wins); the
    name of its sub-folder. White space and line ends within a caption become single spaces. `others`: the folder's
    remaining files, in order.

    Raises:
        JobError: a text is not UTF-8, or a line of a `metadata.jsonl` is malformed or names no picture.
    """
    texts, notes = _beside(folder, pictures, others)
    metadata: dict[Path, str] = {}
    for file in sorted((o for o in others if o.name == METADATA), key=lambda o: len(o.parts)):
        metadata |= _read_metadata(file, set(pictures))
    return {p: texts.get(p) or metadata.get(p) or category(folder, p) for p in pictures}, notes


def category(folder: Path, picture: Path) -> str:
    """The name of the sub-folder that holds `picture`; "" where it lies in `folder` itself."""
    return "" if picture.parent == folder else _one_line(picture.parent.name)


def with_trigger(trigger: str, caption: str) -> str:
    """ "a scribble of", "cat" -> "a scribble of cat": joined by a space, so that the trigger decides the grammar.

    A caption that begins with the trigger already is left as it is.
    """
    trigger = _one_line(trigger)
    if not trigger or caption == trigger or caption.startswith((trigger + " ", trigger + ",")):
        return caption
    return f"{trigger} {caption}".strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: captions are expected as UTF-8 text, byte {error.start} is none: save it as UTF-8") from error
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror or error}") from error


def _beside(folder: Path, pictures: list[Path], others: list[Path]) -> tuple[dict[Path, str], list[str]]:
    """Captions from the text files of the pictures' names, and a note about those that belong to no picture."""
    files = {o.with_suffix(o.suffix.lower()): o for o in others if o.suffix.lower() in TEXT_SUFFIXES}
    texts: dict[Path, str] = {}
    used: set[Path] = set()
    for picture in pictures:
        for suffix in reversed(TEXT_SUFFIXES):
            name = picture.with_suffix(suffix)
            if name in files:
                used.add(name)
                texts[picture] = _one_line(_read_text(files[name])) or texts.get(picture, "")
    alone = [files[name] for name in files if name not in used]
    if not alone:
        return texts, []
    return texts, [f"text files without a picture of their name, not used: {len(alone)}, first {alone[0].relative_to(folder)}"]


def _read_metadata(file: Path, pictures: set[Path]) -> dict[Path, str]:
    """Hugging Face's `imagefolder` layout: a JSON object a line, `file_name` relative to the file's folder, and `text`."""
    captions: dict[Path, str] = {}
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise JobError(f"{where}: is no JSON ({error}): expected {{\"file_name\": ..., \"text\": ...}}") from error
        if not (isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and isinstance(entry.get("text"), str)):
            raise JobError(f'{where}: expected {{"file_name": "...", "text": "..."}}, both texts, found {line.strip()[:80]}')
        picture = Path(os.path.normpath(file.parent / entry["file_name"]))
        if picture not in pictures:
            raise JobError(f"{where}: {entry['file_name']!r} is no picture of this folder: correct the name, which is relative "
                           f"to {METADATA}, or remove the line")
        if picture in captions:
            raise JobError(f"{where}: {entry['file_name']!r} has a line above already: keep one of them")
        captions[picture] = _one_line(entry["text"])
    return captions
