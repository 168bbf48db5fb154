"""Checks that a run's outputs are unchanged, and that only one run writes them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convert.container import open_container
from convert.errors import BadCard, JobError, UsageError
from convert.files.card import card_path, read_card
from convert.tensors import Container
from trainer.runs.lock import output_lock

ANOTHER = "give another --out"


def outputs(out: Path) -> tuple[Path, Path, Path]:
    """The LoRA, A1111's card and the picture that both hosts show."""
    return out, card_path(out), out.with_suffix(".png")


def check_out(out: Path, *, overwrite: bool, mine: bool) -> None:
    """Refuse an `--out` that cannot be written, or that would replace a file of another run, with a UsageError.

    mine: whether the existing files are from this run.
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: expected a name ending in .safetensors: hosts list no others")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}: make it first")
    folders = [str(path) for path in outputs(out) if path.is_dir()]
    if folders:
        raise UsageError(f"--out: {', '.join(folders)} is a folder: give another name")
    taken = [str(path) for path in outputs(out) if path.exists()]
    if taken and not (overwrite or mine):
        raise UsageError(f"--out: {', '.join(taken)}: exists and is not from this run: give another name or --overwrite")


class OutputClaim:
    """The files at `--out` when a run began. Another program may put a file there while the run trains."""

    def __init__(self, out: Path) -> None:
        self._before = {path: _identity(path) for path in outputs(out)}

    def check(self, run: Path) -> None:
        """JobError if a file there has appeared or changed since: it is not overwritten, and the run is kept."""
        changed = [str(path) for path, before in self._before.items() if _identity(path) not in (None, before)]
        if changed:
            raise JobError(f"--out: {', '.join(changed)}: appeared or changed while this run trained, and is kept: the same "
                           f"command with --run {run} and another --out, or with --overwrite, writes this run's LoRA")


@contextmanager
def claim(out: Path) -> Iterator[OutputClaim]:
    """Keep other runs from writing `out` until the end. JobError if another run will write it."""
    with output_lock(out, ANOTHER):
        yield OutputClaim(out)


@dataclass(frozen=True)
class Contents:
    """Digests of a LoRA file's contents without its metadata."""

    data: str
    """sha256 of its tensors' bytes, in file order: the `sshs_model_hash` that it should have"""
    tensors: str
    """sha256 of its tensors' names, dtypes and shapes"""

    @classmethod
    def of(cls, lora: Path) -> Contents:
        """Read all of `lora`. JobError if it is damaged, or cannot be read."""
        container = open_container(lora)
        data = hashlib.sha256()
        ordered = sorted(container.tensors.values(), key=lambda tensor: tensor.offset)
        with open(lora, "rb") as file:
            for tensor in ordered:
                for chunk in tensor.chunks(file):
                    data.update(chunk)
        return cls(data.hexdigest(), _listing(container))


def is_sound_card(out: Path) -> bool:
    """Whether the card beside `out` is missing or can be read."""
    try:
        read_card(out)
    except BadCard:
        return False
    return True


def is_sound_png(path: Path) -> bool:
    """Whether `path` is a PNG with correct checksums."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        return False
    return True


def _listing(container: Container) -> str:
    rows = sorted((name, tensor.dtype, list(tensor.shape)) for name, tensor in container.tensors.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
