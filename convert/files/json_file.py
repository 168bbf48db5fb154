"""Reads untrusted JSON: an object of limited size, depth and number length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import FileError, quote

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"
"""Any JSON value."""

LIMIT = 16 << 20
"""Default size limit in bytes, far above any JSON file that this project reads."""


DIGITS = 20
"""Most digits of an integer: longer than any file size. Millions of digits would be slow to parse."""

_AS_ZERO = {ord(digit): "0" for digit in "123456789"}


def read_object(path: Path, *, limit: int = LIMIT, error: type[FileError] = FileError) -> dict[str, Any]:
    """The JSON object in a file, UTF-8 with or without a byte order mark. Its values are not checked.

    Raises `error` if the file cannot be read, is larger than `limit` bytes or is not a JSON object;
    FileNotFoundError if it does not exist.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as failure:
        raise error(path, f"cannot be read: {getattr(failure, 'strerror', failure)}") from failure
    if len(data) > limit:
        raise error(path, f"is larger than {limit:,} bytes")
    try:
        found = parse(data.decode("utf-8-sig"))
    except ValueError as failure:
        raise error(path, f"is not valid JSON: {quote(str(failure))}") from failure
    if not isinstance(found, dict):
        raise error(path, "is not a JSON object")
    return found


def parse(text: str, **hooks: Any) -> Any:
    """`json.loads`, but raises only ValueError, even for deep nesting and numbers of a million digits."""
    if DIGITS * "0" in text.translate(_AS_ZERO):  # otherwise the plain parser is safe, and twice as fast
        hooks["parse_int"] = _integer
    try:
        return json.loads(text, **hooks)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _integer(digits: str) -> int:
    if len(digits) >= DIGITS:
        raise ValueError("an absurdly large number")
    return int(digits)
