"""Files with the captions of many pictures: Hugging Face's metadata, kohya's meta_cap.json, captions.json, tables."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from convert.errors import JobError
from convert.files.json_file import Json
from trainer.data.folder import plain
from trainer.data.texts import MOST_TABLE, read_json, read_text

NAMES = ("metadata.csv", "captions.csv", "captions.json", "meta_cap.json", "meta_clean.json", "meta_lat.json", "metadata.json",
         "captions.jsonl", "metadata.jsonl")  # fmt: skip
"""In ascending precedence, if a folder has several."""
FILE_KEYS = ("file_name", "filename", "file", "image_path", "image_file", "image", "path", "name")
TEXT_KEYS = ("text", "caption", "captions", "prompt", "description")
TAG_KEYS = ("tags", "tag_string")
MOST_SAID = 10


@dataclass(frozen=True)
class Line:
    """One entry: its position in the file, the picture's name as written, its captions."""

    where: str
    name: str
    captions: tuple[str, ...]


def read_metadata(file: Path) -> list[Line]:
    """The entries of one of `NAMES`. JobError names the file and the line that is malformed."""
    if file.suffix == ".csv":
        return list(_csv_lines(file))
    if file.suffix == ".jsonl":
        return list(_json_lines(file))
    return list(_json_object(file))


def captions_of(entry: Json) -> tuple[str, ...]:
    """The captions in a JSON value: a text, a list of texts, or an object of `TEXT_KEYS` and `TAG_KEYS`; () if there are none.

    If there are a caption and tags, they are joined by a comma, as in kohya's sd-scripts.
    """
    if isinstance(entry, str):
        return (entry,)
    if isinstance(entry, list):
        texts = tuple(text for text in entry if isinstance(text, str))
        return texts if len(texts) == len(entry) else ()
    if not isinstance(entry, dict):
        return ()
    lowered = {key.lower(): value for key, value in entry.items()}
    texts = next((found for key in TEXT_KEYS if (found := captions_of(lowered.get(key)))), ())
    tags = next((_tags(lowered[key], key) for key in TAG_KEYS if key in lowered), "")
    if not tags:
        return texts
    return tuple(f"{text}, {tags}" if text.strip() else tags for text in texts or ("",))


def _tags(value: Json, key: str) -> str:
    if isinstance(value, dict):  # a tagger's scores by tag
        value = list(value)
    if isinstance(value, str):
        return ", ".join(value.split()) if key == "tag_string" else value
    return ", ".join(map(str, value)) if isinstance(value, list) else ""


def _line(where: str, entry: Json) -> Line:
    name = next((entry[key] for key in _keys(entry, FILE_KEYS)), None) if isinstance(entry, dict) else None
    captions = captions_of(entry)
    if not isinstance(name, str) or not captions:
        raise JobError(f'{where}: expected "file_name" and "text" (or "caption", "prompt"), both texts, found '
                       f"{str(entry)[:80]}")
    return Line(where, name, captions)


def _keys(entry: dict[str, Json], wanted: Sequence[str]) -> Iterator[str]:
    lowered = {key.lower(): key for key in entry}
    return (lowered[key] for key in wanted if key in lowered)


def _json_lines(file: Path) -> Iterator[Line]:
    for number, text in enumerate(read_text(file, MOST_TABLE).split("\n"), 1):
        if not text.strip():
            continue
        where = f"{file} line {number}"
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise JobError(f"{where}: is not JSON ({error}): expected {{\"file_name\": ..., \"text\": ...}}") from error
        yield _line(where, entry)


def _json_object(file: Path) -> Iterator[Line]:
    """{"a.png": "caption"}, {"a": {"caption": ..., "tags": ...}} or a list of entries with file names."""
    whole = read_json(file)
    if isinstance(whole, list):
        for number, entry in enumerate(whole, 1):
            yield _line(f"{file} entry {number}", entry)
        return
    if not isinstance(whole, dict):
        raise JobError(f'{file}: expected {{"a.png": "its caption", ...}}, found {str(whole)[:80]}')
    for name, entry in whole.items():
        captions = captions_of(entry)
        if captions:
            yield Line(f"{file} entry {name!r}", name, captions)
        elif not isinstance(entry, dict):
            raise JobError(f"{file} entry {name!r}: expected a caption, found {str(entry)[:80]}")


def _csv_lines(file: Path) -> Iterator[Line]:
    """RFC 4180 with commas, semicolons or tabs; a first line without column names is an entry, if it has two fields."""
    text = read_text(file, MOST_TABLE)
    first = text.lstrip("\r\n").split("\n", 1)[0]
    comma = max(",;\t", key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=comma)
    head: list[str] = []
    try:
        for row in rows:
            where = f"{file} line {rows.line_num}"
            if not row:
                continue
            if not head:
                head = [cell.strip().lower() for cell in row]
                if not any(key in head for key in FILE_KEYS) and len(row) == 2 and "." in row[0]:
                    head = ["file_name", "text"]
                else:
                    continue
            if len(row) != len(head):
                raise JobError(f"{where}: has {len(row)} fields, but the first line has {len(head)}: put captions with commas "
                               "in double quotes")
            yield _line(where, dict(zip(head, row, strict=True)))
    except csv.Error as error:
        raise JobError(f"{file} line {rows.line_num}: is not CSV ({error})") from error


class Resolver:
    """Finds pictures by the names in metadata: an exact match, else the only picture whose path ends like the name."""

    def __init__(self, folder: Path, pictures: Sequence[Path]) -> None:
        self.folder = folder
        self.by_tail: dict[str, list[Path]] = {}
        for picture in pictures:
            parts = plain(picture.relative_to(folder).as_posix()).split("/")
            for start in range(len(parts)):
                tail = "/".join(parts[start:])
                self.by_tail.setdefault(tail, []).append(picture)
                stem = str(PurePosixPath(tail).with_suffix("")) if PurePosixPath(tail).suffix else tail
                if stem != tail:
                    self.by_tail.setdefault(stem, []).append(picture)

    def find(self, name: str, base: Path) -> Path | None:
        """The picture `name`, relative to the folder `base`; None if no picture matches, or several do. Ignores case, Unicode
        normalisation, direction of slashes, leading folders, and a missing suffix."""
        exact = base / name.replace("\\", "/")
        inside = plain(base.relative_to(self.folder).as_posix()).removeprefix(".")
        parts = [part for part in plain(name).split("/") if part not in ("", ".", "..")]
        whole = "/".join(([inside] if inside else []) + parts)
        tails = [whole, *("/".join(parts[start:]) for start in range(len(parts)))]
        for tail in tails:
            found = self.by_tail.get(tail, [])
            if len(found) > 1:
                found = [picture for picture in found if picture == exact or plain(self._name(picture)) == whole] or found
            if len(found) > 1:
                found = [picture for picture in found if picture == exact]
                return found[0] if found else None
            if found:
                return found[0]
        return None

    def guess(self, name: str) -> str:
        tail = plain(name).rsplit("/", 1)[-1]
        close = difflib.get_close_matches(tail, [key for key in self.by_tail if "/" not in key and "." in key], n=1)
        return f" (did you mean {self._name(self.by_tail[close[0]][0])!r}?)" if close else ""

    def _name(self, picture: Path) -> str:
        return picture.relative_to(self.folder).as_posix()


def resolve(file: Path, lines: Sequence[Line], resolver: Resolver) -> dict[Path, tuple[str, ...]]:
    """The captions in `file` by picture; a picture with several lines has several captions.

    Raises:
        JobError: lines match no picture, or several; the message lists them.
    """
    found: dict[Path, tuple[str, ...]] = {}
    lost: list[Line] = []
    for line in lines:
        picture = resolver.find(line.name, file.parent)
        if picture is None and (file.parent / line.name.replace("\\", "/")).is_file():
            continue  # it exists but is not used, which is reported elsewhere
        if picture is None:
            lost.append(line)
        else:
            found[picture] = (*found.get(picture, ()), *line.captions)
    if lost:
        said = [f"{line.where.removeprefix(str(file)).strip()} {line.name!r}{resolver.guess(line.name)}"
                for line in lost[:MOST_SAID]]
        more = f" and {len(lost) - MOST_SAID} more" if len(lost) > MOST_SAID else ""
        raise JobError(f"{file}: {len(lost)} of {len(lines)} entries match no picture in this folder, or several: "
                       f"{', '.join(said)}{more}: correct the names, or remove the entries")
    return found
