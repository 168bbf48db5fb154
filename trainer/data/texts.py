"""Reads caption files strictly: UTF-8, or UTF-16 with a byte order mark, and nothing else."""

from __future__ import annotations

import codecs
import json
import unicodedata
from pathlib import Path

from convert.errors import JobError
from convert.files.json_file import Json
from trainer.data.folder import read_regular

MOST_CAPTION = 2**20  # bytes of one picture's captions
MOST_TABLE = 2**28  # bytes of a file with many pictures' captions
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


def read_text(path: Path, limit: int = MOST_CAPTION) -> str:
    """The text of a regular file of at most `limit` bytes. Raises JobError."""
    try:
        data = read_regular(path, limit)
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror or error}") from error
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: expected captions as UTF-8 text, but byte {error.start} is not: save it as UTF-8"
                       ) from error
    control = next((c for c in text if unicodedata.category(c) == "Cc" and c not in "\t\n\r\f\v\x85"), None)
    if control is not None:
        guess = "UTF-16 without a byte order mark" if control == "\0" else "not a text"
        raise JobError(f"{path}: contains the control character U+{ord(control):04X}: it is {guess}: save it as UTF-8 text")
    return text


def read_json(path: Path, limit: int = MOST_TABLE) -> Json:
    """A JSON value. Raises JobError, with the line if it is known."""
    try:
        found: Json = json.loads(read_text(path, limit))
        return found
    except (ValueError, RecursionError) as error:
        raise JobError(f"{path}: is not JSON ({error})") from error
