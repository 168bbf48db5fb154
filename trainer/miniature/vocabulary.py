"""CLIP's byte-pair vocabulary, which every Stable Diffusion 1.5 uses but single-file checkpoints do not include.

`bpe_simple_vocab_16e6.txt.gz` is OpenAI's own file (MIT, see NOTICE.md).
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

from convert.errors import JobError

BPE = "bpe_simple_vocab_16e6.txt.gz"
SHIPPED = Path(__file__).parent / BPE

TOKENS = 49408
"""CLIP's tokens, the last two being start and end; a text encoder with more has added tokens."""

MERGES = 49152 - 256 - 2
"""Byte pairs that CLIP uses of its file's 262,144 (`SimpleTokenizer` of openai/CLIP)."""

END = "<|endoftext|>"


def byte_pairs(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary (token -> id, 49,408 of them) and merges from its byte-pair file, as in `SimpleTokenizer`.

    Raises JobError if the file is not CLIP's.
    """
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise JobError(f"{path}: cannot be read as {BPE}: {str(error) or 'it is cut off'}") from error
    merges = [tuple(line.split()) for line in lines[1 : MERGES + 1]]
    if len(merges) < MERGES or any(len(merge) != 2 for merge in merges):
        raise JobError(f"{path}: does not have {MERGES} byte pairs; expected CLIP's {BPE}")
    pairs = [(a, b) for a, b in merges]
    characters = _byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in pairs), "<|startoftext|>", END]
    return {token: index for index, token in enumerate(tokens)}, pairs


def write_vocabulary(path: Path, folder: Path) -> None:
    """Write the byte-pair file `path` as vocab.json and merges.txt, transformers' form, into `folder`. Raises JobError."""
    vocabulary, merges = byte_pairs(path)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    text = "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n"
    (folder / "merges.txt").write_text(text, encoding="utf-8")


def _byte_characters() -> list[str]:
    """GPT-2's `bytes_to_unicode` in the order of CLIP's vocabulary: printable bytes come first and map to themselves,
    the other 68 map to characters above 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
