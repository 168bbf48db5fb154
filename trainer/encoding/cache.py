"""On-disk cache of VAE and text-encoder outputs, keyed by everything that affects them.

There is one folder per context (base, resolution, number formats, versions). It contains shards, safetensors files with the
tensors of up to a few dozen entries. With one file per set, an interrupted run would lose its work and an added picture would
mean encoding all; with one file per picture, thousands of small files would be slow to write and open.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from convert.container import open_container
from convert.errors import Damaged, JobError, NotSafetensors
from convert.files import atomic_path
from convert.files.json_file import parse

Entry = dict[str, Tensor]


class EncodingCache:
    """Entries of one context by digest. `say` receives a line for every damaged shard, which is then removed."""

    def __init__(self, root: Path, context: dict[str, object], say: Callable[[str], None]) -> None:
        text = json.dumps(context, sort_keys=True)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:24]
        self.say = say
        self.writable = True

    def find(self, digests: Sequence[str]) -> Iterator[tuple[str, Entry]]:
        """Yield each of `digests` that is in the cache, once, with its tensors (without the dimension of entries)."""
        wanted = set(digests)
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                names, tensors = _read(path, wanted)
            except (Damaged, NotSafetensors) as error:
                self._discard(path, error)
                continue
            except FileNotFoundError:  # removed by another command in the meantime
                continue
            except (JobError, OSError) as error:  # keep it: it may be readable later
                self.say(f"{error}; encoding its part again")
                continue
            for row, name in enumerate(names):
                if name in wanted:
                    wanted.remove(name)
                    yield name, {key: tensor[row] for key, tensor in tensors.items()}

    def add(self, digests: Sequence[str], tensors: Entry) -> None:
        """Write a shard: `tensors` of (len(digests), ...), row i belonging to digests[i].

        If the disk is full or read-only, the run continues without the cache, after one notice.
        """
        if not self.writable:
            return
        names = json.dumps(list(digests))
        path = self.folder / f"{hashlib.sha256(names.encode()).hexdigest()[:24]}.safetensors"
        try:
            try:
                _write(path, names, tensors)
            except (OSError, JobError):
                if self.folder.exists():
                    raise
                _write(path, names, tensors)  # the cache was deleted in the meantime
        except (OSError, JobError, SafetensorError) as error:
            self.writable = False
            self.say(f"encodings are not cached for the next run: {error}")

    def _discard(self, path: Path, error: Exception) -> None:
        self.say(f"{path}: damaged ({str(error).removeprefix(f'{path}: ')}); encoding its part again")
        try:
            path.unlink(missing_ok=True)
        except OSError as reason:
            self.say(f"{path}: cannot be removed: {reason.strerror}")


def _checksum(names: str, tensors: Entry) -> str:
    digest = hashlib.sha256(names.encode())
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"\0{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(path: Path, names: str, tensors: Entry) -> None:
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        # not save_file: it writes through a file of its own, which a kill would leave behind under a name that nobody knows
        temporary.write_bytes(save(whole, {"digests": names, "sha256": _checksum(names, whole)}))


def _read(path: Path, wanted: set[str]) -> tuple[list[str], Entry]:
    """The digests of a shard and its tensors, verified; without tensors if none is wanted.

    Raises:
        Damaged, NotSafetensors: its contents have changed.
        FileNotFoundError, OSError, JobError: it is missing, or cannot be read.
    """
    from safetensors.torch import load

    if not path.exists():
        raise FileNotFoundError(path)
    metadata = open_container(path).metadata
    if not {"digests", "sha256"} <= metadata.keys():
        raise Damaged(path, "has no list of its entries")
    try:
        names = [str(name) for name in parse(metadata["digests"])]
    except (ValueError, TypeError) as error:
        raise Damaged(path, "its list of entries is broken") from error
    if wanted.isdisjoint(names):
        return [], {}
    tensors = load(path.read_bytes())  # not memory-mapped: Windows would refuse to replace a mapped file
    if _checksum(metadata["digests"], tensors) != metadata["sha256"]:
        raise Damaged(path, "its checksum does not match its bytes")
    return names, tensors
