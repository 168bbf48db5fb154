"""The captions of a person's own pictures: from text files, Hugging Face's `metadata.jsonl` or `.csv`, or folders' names."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convert.errors import JobError

TEXT_SUFFIXES = (".txt", ".caption")  # the first wins where a picture has both
METADATA = ("metadata.csv", "metadata.jsonl")  # the last wins where a folder has both


def own_captions(folder: Path, pictures: list[Path], others: list[Path]) -> tuple[dict[Path, str], list[str]]:
    """The caption of each of `pictures`, "" where it has none, and notes for the user. All paths lie under `folder`.

    A picture's caption is the first of these that is there and not blank: the text file of its name beside it (`.txt`
    before `.caption`, UTF-8); its line in a `metadata.jsonl` or `metadata.csv` of its own folder or of one above (the
    nearest wins); the name of its sub-folder. White space and line ends within a caption become single spaces.
    `others`: the folder's remaining files, in order.

    Raises:
        JobError: a text is not UTF-8, or a line of `METADATA` is malformed or names no picture.
    """
    texts, notes = _beside(folder, pictures, others)
    metadata: dict[Path, str] = {}
    for file in sorted((o for o in others if o.name in METADATA), key=lambda o: (len(o.parts), METADATA.index(o.name))):
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
    """Hugging Face's `imagefolder` layout: `file_name`, relative to the file's folder, and `text` of each picture."""
    captions: dict[Path, str] = {}
    for where, entry in (_csv_rows if file.suffix == ".csv" else _json_lines)(file):
        if not (isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and isinstance(entry.get("text"), str)):
            raise JobError(f'{where}: expected "file_name" and "text", both texts, found {str(entry)[:80]}')
        picture = Path(os.path.normpath(file.parent / entry["file_name"]))
        if picture not in pictures:
            raise JobError(f"{where}: {entry['file_name']!r} is no picture of this folder: correct the name, which is relative "
                           f"to {file.name}, or remove the line")
        if picture in captions:
            raise JobError(f"{where}: {entry['file_name']!r} has a line above already: keep one of them")
        captions[picture] = _one_line(entry["text"])
    return captions


def _json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """Where and what: a JSON value a line."""
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise JobError(f"{where}: is no JSON ({error}): expected {{\"file_name\": ..., \"text\": ...}}") from error


def _csv_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Where and what: a row as a dictionary of the first row's names. RFC 4180: commas, fields in double quotes."""
    rows = csv.DictReader(io.StringIO(_read_text(file), newline=""), strict=True)
    try:
        for row in rows:
            where = f"{file} line {rows.line_num}"
            if None in row or None in row.values():
                raise JobError(f"{where}: has not as many fields as the first line: put captions with commas in double quotes")
            yield where, row
    except csv.Error as error:
        raise JobError(f"{file} line {rows.line_num}: is no CSV ({error})") from error
