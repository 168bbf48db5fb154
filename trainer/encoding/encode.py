"""Encodes each picture's VAE posterior and each caption's prompt embedding once, so that training needs neither model.

The posterior's mean and standard deviation are stored, not a sample: each step draws a new x_0 = mean + std * noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from convert.errors import JobError, UsageError
from trainer.base.load import Base
from trainer.data.records import Example
from trainer.encoding.cache import EncodingCache
from trainer.encoding.encoded_set import EncodedSet, packed
from trainer.encoding.formats import storage_dtype, versions
from trainer.encoding.text import caption_digest, chunked, encode_captions, encode_rows, skipped, tokenize
from trainer.encoding.vae import Posterior, picture_batch
from trainer.recipe import Recipe

Say = Callable[[str], None]
ROWS_PER_SHARD = 1024
"""Caption chunks in one file of the cache: 120 MB in half precision."""


class Latents(TypedDict):
    """The fields of an `EncodedSet` for pictures."""

    mean: Tensor
    std: Tensor
    shapes: NotRequired[tuple[tuple[int, int], ...]]


class Captions(TypedDict):
    """The fields for captions."""

    embeddings: Tensor
    caption_index: Tensor
    captions: NotRequired[Tensor]
    caption_count: NotRequired[Tensor]
    first_chunk: NotRequired[Tensor]
    chunks: NotRequired[Tensor]


class Weights(TypedDict, total=False):
    """The fields for weights and repeats."""

    mask: Tensor
    weight: Tensor
    repeats: tuple[int, ...]
    reg: tuple[bool, ...]


def encode_dataset(examples: Sequence[Example], base: Base, *, recipe: Recipe, device: torch.device | str, cache: Path,
                   say: Say) -> EncodedSet:  # fmt: skip
    """Encode `examples` with the base's VAE and text encoder on `device`; the result is on it too (`EncodedSet.to`).

    Entries in the folder `cache` are not encoded again; `say` receives one-line notices. The base keeps its models.

    Raises:
        UsageError: `--resolution` does not suit this base.
        JobError: a picture cannot be read, or its encoding is not finite.
    """
    device, pictures = torch.device(device), list(examples)
    side = recipe.resolution or base.resolution
    down = 2 ** (len(base.vae.config.block_out_channels) - 1)
    if side % (8 * down):  # the UNet halves the latents three times
        raise UsageError(f"--resolution {side}: expected a multiple of {8 * down} for this base")
    store = cache / "encoded"
    latents = _pictures(pictures, base, side, recipe.flip, device, store, say)
    captions = _captions(pictures, base, device, store, say, as_ids=recipe.text_encoder)
    return EncodedSet(**latents, **captions, **_weights(pictures, side, down, "shapes" in latents)).to(device)


def _weights(examples: list[Example], side: int, down: int, packing: bool) -> Weights:
    """Masks, loss weights, repeats and regularisation flags; empty if all pictures are equal in these."""
    fields: Weights = {}
    if any(example.masked for example in examples):
        shapes = [example.shape(side) for example in examples]
        masks = [example.mask(side, down) for example in examples]
        tensors = [torch.ones(1, h // down, w // down) if mask is None else torch.from_numpy(mask)[None]
                   for mask, (h, w) in zip(masks, shapes, strict=True)]
        fields["mask"] = packed(tensors) if packing else torch.stack(tensors)
    if any(example.weight != 1 for example in examples):
        fields["weight"] = torch.tensor([example.weight for example in examples])
    if any(example.repeats != 1 for example in examples):
        fields["repeats"] = tuple(example.repeats for example in examples)
    if any(example.reg for example in examples):
        fields["reg"] = tuple(example.reg for example in examples)
    return fields


def _captions(examples: list[Example], base: Base, device: torch.device, cache: Path, say: Say, *,
              as_ids: bool) -> Captions:  # fmt: skip
    """The `EncodedSet`'s fields for captions, on the CPU. as_ids: token ids, for a text encoder that is trained."""
    distinct = [*dict.fromkeys(text for example in examples for text in example.captions if text), ""] if examples else []
    row = {caption: index for index, caption in enumerate(distinct)}
    ids = chunked(distinct, base.tokenizer)
    rows = torch.cat(ids) if ids else tokenize([], base)
    embeddings = rows if as_ids else _embeddings(ids, base, device, cache, say)
    counts = torch.tensor([len(example.captions) for example in examples], dtype=torch.int64)
    every = torch.tensor([row[text] for example in examples for text in example.captions], dtype=torch.int64)
    fields: Captions = {"embeddings": embeddings, "caption_index": every}
    if (counts > 1).any():
        fields |= {"caption_index": counts.cumsum(0) - counts, "captions": every, "caption_count": counts}
    chunks = torch.tensor([len(some) for some in ids], dtype=torch.int64)
    if (chunks > 1).any():
        fields |= {"first_chunk": chunks.cumsum(0) - chunks, "chunks": chunks}
    return fields


def _embeddings(ids: list[Tensor], base: Base, device: torch.device, cache: Path, say: Say) -> Tensor:
    """Prompt embeddings of all chunks in order, (M, tokens, width) on the CPU, from the cache if it has them."""
    store = EncodingCache(cache, {"of": "captions", "base": base.identity, **skipped(base), **versions(device)}, say)
    rows = {caption_digest(row): row for some in ids for row in some}  # keyed by token ids, so tokenizers do not mix
    found = {digest: entry["embedding"] for digest, entry in store.find(list(rows))}
    lacking = [digest for digest in rows if digest not in found]
    for begin in range(0, len(lacking), ROWS_PER_SHARD):
        some = lacking[begin : begin + ROWS_PER_SHARD]
        made = encode_rows(torch.stack([rows[digest] for digest in some]), base, device).cpu()
        found |= dict(zip(some, made, strict=True))
        store.add(some, {"embedding": made})
    order = [caption_digest(row) for some in ids for row in some]
    return torch.stack([found[digest] for digest in order]) if order else encode_captions([], base, device).cpu()


def _pictures(examples: list[Example], base: Base, side: int, flip: bool, device: torch.device, cache: Path,
              say: Say) -> Latents:  # fmt: skip
    """The `EncodedSet`'s fields for pictures, on the CPU, encoded shape by shape."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index, example in enumerate(examples):
        by_shape.setdefault(example.shape(side), []).append(index)
    if len(by_shape) <= 1:
        mean, std = _of_one_shape(examples, base, side, next(iter(by_shape), (side, side)), flip, device, cache, say)
        return {"mean": mean, "std": std}
    of_row: dict[int, tuple[Tensor, Tensor]] = {}
    for shape, rows in sorted(by_shape.items()):
        mean, std = _of_one_shape([examples[row] for row in rows], base, side, shape, flip, device, cache, say)
        of_row |= dict(zip(rows, zip(mean, std, strict=True), strict=True))
    means, stds = zip(*(of_row[row] for row in range(len(examples))), strict=True)
    return {"mean": packed(means), "std": packed(stds), "shapes": tuple((mean.shape[-2], mean.shape[-1]) for mean in means)}


def _of_one_shape(examples: list[Example], base: Base, side: int, shape: tuple[int, int], flip: bool, device: torch.device,
                  cache: Path, say: Say) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean and std, each (N, V, 4, h, w) on the CPU, from the cache if it has them."""
    posterior = Posterior(base, device, side, views=2 if flip else 1, say=say, shape=shape)
    context = {"of": "pictures", "base": base.identity, "side": side, "flip": flip, **versions(device)}
    if shape != (side, side):
        context["shape"] = list(shape)
    store = EncodingCache(cache, context, say)
    places: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        places.setdefault(example.digest, []).append(index)
    mean = torch.empty(len(examples), *posterior.shape, dtype=storage_dtype(device))
    std = torch.empty_like(mean)

    def put(digest: str, entry: dict[str, Tensor]) -> None:
        mean[places[digest]], std[places[digest]] = entry["mean"], entry["std"]

    found = set()
    for digest, entry in store.find(list(places)):
        put(digest, entry)
        found.add(digest)
    lacking = [examples[where[0]] for digest, where in places.items() if digest not in found]
    if found:
        say(f"{len(found)} of {len(places)} pictures{_of_shape(shape, side)} were encoded before")
    for digests, tensors in _encoded(lacking, posterior, side):
        store.add(digests, tensors)
        for row, digest in enumerate(digests):
            put(digest, {key: tensor[row] for key, tensor in tensors.items()})
    return mean, std


def _of_shape(shape: tuple[int, int], side: int) -> str:
    return "" if shape == (side, side) else f" of {shape[1]}\N{MULTIPLICATION SIGN}{shape[0]}"


def _encoded(examples: list[Example], posterior: Posterior, side: int) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
    """Encode shard by shard; while the VAE computes one batch, threads read the pictures of the next."""
    from tqdm import tqdm

    batches = [examples[i : i + posterior.batch] for i in range(0, len(examples), posterior.batch)]
    per_shard = max(64 // posterior.batch, 1)
    rows: list[tuple[Tensor, Tensor]] = []
    done = 0
    with ThreadPoolExecutor(2) as pool, tqdm(total=len(examples), desc="encoding", unit="picture", disable=None) as bar:
        coming: list[Future[np.ndarray]] = [pool.submit(picture_batch, batch, side) for batch in batches[:1]]
        for number, batch in enumerate(batches):
            coming += [pool.submit(picture_batch, following, side) for following in batches[number + 1 : number + 2]]
            mean, std = posterior(coming.pop(0).result())
            for row, example in enumerate(batch):
                if not (mean[row].isfinite().all() and std[row].isfinite().all()):
                    raise JobError(f"{example.source}: the base's VAE gives values that are not finite: is it damaged?")
            rows.append((mean, std))
            bar.update(len(batch))
            if len(rows) == per_shard or number == len(batches) - 1:
                shard = {"mean": torch.cat([m for m, _ in rows]), "std": torch.cat([s for _, s in rows])}
                yield [example.digest for example in examples[done : done + len(shard["mean"])]], shard
                done += len(shard["mean"])
                rows = []
