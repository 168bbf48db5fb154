"""The header of a QuickDraw .npy file, on a server or a disk: what it must say before any byte is taken for a drawing."""

from __future__ import annotations

import io
import struct
import tokenize

import numpy as np
from numpy.lib import format as npy

from convert.errors import JobError
from trainer.data.drawings import ROW_BYTES

LONGEST_HEADER = 10_000  # bytes; numpy's own limit
MOST_ROWS = 10_000_000  # the largest official file has some 340,000


def header_length(name: str, head: bytes, advice: str) -> int:
    """Bytes up to the first row, from a file's first 12 bytes. name, advice: how an error begins and ends."""
    if len(head) < 12 or not head.startswith(npy.MAGIC_PREFIX) or head[6] not in (1, 2, 3):
        found = "a web page" if head.lstrip().startswith(b"<") else "nothing" if not head else "something else"
        raise JobError(f"{name}: expected a .npy file, found {found}: {advice}")
    length = 10 + struct.unpack("<H", head[8:10])[0] if head[6] == 1 else 12 + struct.unpack("<I", head[8:12])[0]
    if length > LONGEST_HEADER:
        raise JobError(f"{name}: its .npy header is {length:,} bytes long, expected some 128: the file is damaged: {advice}")
    return length


def parse_header(name: str, head: bytes, advice: str) -> tuple[int, int]:
    """(rows, byte offset of the first) of a uint8 (N, 784) or (N, 1, 784) array in C order; JobError where it is another.

    head: the whole header, or more of the file. Nothing is ever unpickled. numpy reads the header; version 3 is
    version 2 in UTF-8, the same for a header without field names.
    """
    file = io.BytesIO(head)
    try:
        read = npy.read_array_header_1_0 if npy.read_magic(file)[0] == 1 else npy.read_array_header_2_0
        shape, columns_first, dtype = read(file)
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError, tokenize.TokenError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise JobError(f"{name}: its .npy header cannot be read ({reason}): the file is damaged: {advice}") from error
    row = (ROW_BYTES,) if len(shape) == 2 else (1, ROW_BYTES)
    if dtype != np.uint8 or shape[1:] != row or not 1 <= shape[0] <= MOST_ROWS or columns_first and shape[0] > 1:
        found = "pickled objects" if dtype.hasobject else f"{dtype} {shape}" + " by columns" * columns_first
        raise JobError(f"{name}: expected drawings as uint8 (N, {ROW_BYTES}), found {found}: {advice}")
    return int(shape[0]), file.tell()
