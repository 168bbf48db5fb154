"""Loads CLIP's tokenizer from the base's own folder, a path given by the user, or the vocabulary that ships with the miniature.

Every Stable Diffusion 1.5 has the same 49,408 tokens, which single-file checkpoints do not include.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from convert.errors import JobError, UsageError
from trainer.base.models import Tokenizer
from trainer.miniature.vocabulary import BPE, END, SHIPPED, TOKENS, write_vocabulary
from trainer.recipe import home

CONTEXT = 77
"""Tokens that CLIP reads, including start and end."""


def own_tokenizer(folder: Path, max_positions: int) -> Tokenizer:
    """The CLIPTokenizer in a base's own `folder`, with its own padding. Raises JobError if it cannot be read."""
    return _clamped(_read_folder(folder), max_positions)


def clip_tokenizer(path: str, *, max_positions: int, vocabulary: int) -> Tokenizer:
    """CLIPTokenizer for a base without one, or instead of its own. It pads with the end token, like SD1.5's.

    path: the user's `--tokenizer`, or "" for the vocabulary that ships.
    max_positions, vocabulary: the text encoder's; `model_max_length` is set to min(77, max_positions).

    Raises:
        UsageError: `path` is not a tokenizer, or does not fit this text encoder.
    """
    tokenizer = read_tokenizer(home(path)) if path else from_byte_pairs(SHIPPED)
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    whole = vocabulary < TOKENS or (len(tokenizer) >= TOKENS and marks == (TOKENS - 2, TOKENS - 1))
    if len(tokenizer) > vocabulary or not whole:
        raise UsageError(f"--tokenizer {path or BPE}: has {len(tokenizer)} tokens, but the base's text encoder "
                         f"{vocabulary}: give the tokenizer that belongs to this base")
    tokenizer.pad_token = END
    return _clamped(tokenizer, max_positions)


def read_tokenizer(path: Path) -> Tokenizer:
    """The CLIPTokenizer in a folder (or a file of it), or in a `bpe_simple_vocab_16e6.txt.gz`. Raises UsageError."""
    if path.name in ("vocab.json", "merges.txt", "tokenizer.json"):
        path = path.parent
    if (path / "tokenizer").is_dir():
        path = path / "tokenizer"
    try:
        if path.is_dir():
            return _read_folder(path)
        if path.is_file():
            return from_byte_pairs(path)
    except JobError as error:
        raise UsageError(f"--tokenizer {error}") from error
    raise UsageError(f"--tokenizer {path}: there is no such file or folder: expected a tokenizer folder or {BPE}")


def from_byte_pairs(path: Path) -> Tokenizer:
    """A CLIPTokenizer made from CLIP's own byte-pair file. Raises JobError if the file is not CLIP's."""
    with tempfile.TemporaryDirectory() as folder:
        write_vocabulary(path, Path(folder))
        try:
            return _read_folder(Path(folder))
        except JobError as error:
            raise JobError(f"{path}: {str(error).partition(': ')[2]}") from error


def _read_folder(folder: Path) -> Tokenizer:
    from transformers import CLIPTokenizer

    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if not ("tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names):
        raise JobError(f"{folder}: contains no tokenizer: expected vocab.json and merges.txt (or tokenizer.json)")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        marks = tokenizer("a").input_ids
    except Exception as error:  # the tokenizers library raises bare Exception for a malformed file
        raise JobError(f"{folder}: its tokenizer cannot be read: {str(error).splitlines()[0]}") from error
    if tokenizer.bos_token_id is None or [marks[0], marks[-1]] != [tokenizer.bos_token_id, tokenizer.eos_token_id]:
        raise JobError(f"{folder}: is not a CLIP tokenizer: it does not add start and end tokens")
    return tokenizer


def _clamped(tokenizer: Tokenizer, max_positions: int) -> Tokenizer:
    tokenizer.model_max_length = min(CONTEXT, max_positions)
    return tokenizer
