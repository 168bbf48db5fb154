"""The JSON files of a run. Each carries a checksum of its own fields, so damage is found even if it is valid JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.errors import Damaged, FileError
from convert.files import write_json
from convert.files.json_file import read_object

CHECKSUM = "sha256"
NO_CHECKSUM = "has no checksum"
Record = dict[str, Any]
"""The fields of a file whose checksum matches: as this program wrote them."""


def write_record(path: Path, fields: Mapping[str, object]) -> None:
    """Write `fields` (JSON values) and their checksum, whole or not at all."""
    write_json(path, {**fields, CHECKSUM: _checksum(fields)})


def read_record(path: Path) -> Record | None:
    """The fields of a record; None if there is none.

    Raises:
        Damaged: it is not JSON, or its checksum does not match.
        FileError: the system cannot read it; it may be undamaged.
    """
    try:
        fields = read_object(path, error=Damaged)
    except FileNotFoundError:
        return None
    except Damaged as error:
        if isinstance(error.__cause__, OSError):
            raise FileError(path, error.problem) from error
        raise
    stored = fields.pop(CHECKSUM, None)
    if stored is None:
        raise Damaged(path, NO_CHECKSUM)
    if stored != _checksum(fields):
        raise Damaged(path, "its checksum does not match its fields")
    return fields


def file_sha256(path: Path) -> str:
    """sha256, hex, of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(fields: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
