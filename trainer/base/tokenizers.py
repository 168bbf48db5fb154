"""CLIP's tokenizer, from wherever this machine has it: the base's own folder, the hub's cache, a package, a path.

Every Stable Diffusion 1.5 has the same 49,408 tokens, and a single-file checkpoint does not carry them.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

from convert.errors import JobError, UsageError
from trainer.recipe import home

CONTEXT = 77
"""Tokens that CLIP reads, start and end marks counted."""

TOKENS = 49408
"""Of CLIP, the last two of them the marks; a text encoder with more has words of its own, taught to it."""

MERGES = 49152 - 256 - 2
"""Byte pairs that CLIP uses of its file's 262,144 (`SimpleTokenizer` of openai/CLIP)."""

CACHED = (  # repository on the hub, folder of the tokenizer in it
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer/"),
    ("openai/clip-vit-large-patch14", ""),
    ("runwayml/stable-diffusion-v1-5", "tokenizer/"),
    ("CompVis/stable-diffusion-v1-4", "tokenizer/"),
)
PACKAGES = ("open_clip", "clip")
BPE = "bpe_simple_vocab_16e6.txt.gz"
END = "<|endoftext|>"


def own_tokenizer(folder: Path, max_positions: int) -> Any:
    """The CLIPTokenizer in a base's own `folder`, its padding kept as it is. Raises JobError if it cannot be read."""
    return _clamped(_read_folder(folder), max_positions)


def clip_tokenizer(path: str, *, max_positions: int, vocabulary: int) -> Any:
    """CLIPTokenizer for a base that brings none, or whose own shall not be used. It pads with the end mark, as SD1.5's.

    path: the user's `--tokenizer`, or "" to look in the hub's cache, in installed packages and then on the hub.
    max_positions, vocabulary: the text encoder's; `model_max_length` becomes min(77, max_positions) whatever it says.

    Raises:
        UsageError: `path` is no tokenizer, or not one for this text encoder.
        JobError: none was found; the message names every place it may come from.
    """
    tokenizer = read_tokenizer(home(path)) if path else _found()
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    whole = vocabulary < TOKENS or (len(tokenizer) >= TOKENS and marks == (TOKENS - 2, TOKENS - 1))
    if len(tokenizer) > vocabulary or not whole:
        raise UsageError(f"--tokenizer {path or 'found here'}: has {len(tokenizer)} tokens and the base's text encoder "
                         f"{vocabulary}: give the tokenizer that belongs to this base")
    tokenizer.pad_token = END
    return _clamped(tokenizer, max_positions)


def read_tokenizer(path: Path) -> Any:
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
    raise UsageError(f"--tokenizer {path}: there is no such file or folder; {_PLACES}")


def byte_pairs(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary (token -> id, 49,408 of them) and merges, out of its byte-pair file, as `SimpleTokenizer` does.

    Raises JobError if the file is not CLIP's.
    """
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise JobError(f"{path}: cannot be read as {BPE}: {str(error) or 'it is cut off'}") from error
    merges = [tuple(line.split()) for line in lines[1 : MERGES + 1]]
    if len(merges) < MERGES or any(len(merge) != 2 for merge in merges):
        raise JobError(f"{path}: holds no {MERGES} byte pairs; {BPE} of CLIP was expected")
    pairs = [(a, b) for a, b in merges]
    characters = _byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in pairs), "<|startoftext|>", END]
    return {token: index for index, token in enumerate(tokens)}, pairs


def from_byte_pairs(path: Path) -> Any:
    """A CLIPTokenizer made of CLIP's own byte-pair file. Raises JobError if the file is not CLIP's."""
    vocabulary, merges = byte_pairs(path)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        text = "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n"
        (Path(folder) / "merges.txt").write_text(text, encoding="utf-8")
        try:
            return _read_folder(Path(folder))
        except JobError as error:
            raise JobError(f"{path}: {str(error).partition(': ')[2]}") from error


def _byte_characters() -> list[str]:
    """GPT-2's `bytes_to_unicode`, ordered as CLIP's vocabulary: printable bytes come first and stand for themselves,
    the other 68 are shifted beyond 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def _read_folder(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if not ("tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names):
        raise JobError(f"{folder}: holds no tokenizer: vocab.json and merges.txt (or tokenizer.json) were expected")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        marks = tokenizer("a").input_ids
    except Exception as error:  # the tokenizers library raises bare Exception for a malformed file
        raise JobError(f"{folder}: its tokenizer cannot be read: {str(error).splitlines()[0]}") from error
    if tokenizer.bos_token_id is None or [marks[0], marks[-1]] != [tokenizer.bos_token_id, tokenizer.eos_token_id]:
        raise JobError(f"{folder}: is no CLIP tokenizer: it puts no start and end mark around a caption")
    return tokenizer


def _clamped(tokenizer: Any, max_positions: int) -> Any:
    tokenizer.model_max_length = min(CONTEXT, max_positions)
    return tokenizer


def _found() -> Any:
    """From the hub's cache, else from an installed package, else from the hub."""
    from huggingface_hub import try_to_load_from_cache

    for repository, folder in CACHED:
        files = [try_to_load_from_cache(repository, folder + name) for name in ("vocab.json", "merges.txt")]
        if all(isinstance(file, str) for file in files):
            return _read_folder(Path(str(files[0])).parent)
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)  # finds it without importing it
        for place in spec.submodule_search_locations or () if spec else ():
            if (file := Path(place) / BPE).is_file():
                return from_byte_pairs(file)
    return _downloaded()


def _downloaded() -> Any:
    from trainer.base.hub import download

    try:
        folder, _ = download("openai/clip-vit-large-patch14", lambda names: ["vocab.json", "merges.txt"], say=lambda line: None)
    except (UsageError, JobError) as error:
        raise JobError(f"CLIP's tokenizer, which a single-file base does not carry, is not on this machine; {_PLACES}"
                       ) from error
    return _read_folder(folder)


_PLACES = (
    "give --tokenizer a tokenizer folder (ComfyUI has one in comfy/sd1_tokenizer) or the file "
    "bpe_simple_vocab_16e6.txt.gz (AUTOMATIC1111's web UI has it in venv/lib/.../site-packages/open_clip or clip), or "
    "`pip install open_clip_torch`, or go online once, so that openai/clip-vit-large-patch14 comes from the hub"
)
