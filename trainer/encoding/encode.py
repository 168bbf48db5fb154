"""Encode once: each picture's VAE posterior and each caption's prompt embedding, so that training needs neither model.

The posterior's mean and standard deviation are kept, not a sample: each step draws x_0 = mean + std * noise afresh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convert.errors import JobError, UsageError
from trainer.base.load import Base
from trainer.data.records import Example
from trainer.encoding.cache import EncodingCache
from trainer.encoding.encoded_set import EncodedSet
from trainer.encoding.formats import storage_dtype, versions
from trainer.encoding.text import caption_digest, encode_captions, skipped, tokenize
from trainer.encoding.vae import Posterior, picture_batch
from trainer.recipe import Recipe

Say = Callable[[str], None]







def encode_dataset(examples: Sequence[Example], base: Base, *, recipe: Recipe, device: torch.device | str, cache: Path,
                   say: Say) -> EncodedSet:  # fmt: skip
    """Encode `examples` with the base's VAE and text encoder on `device`, which the result lives on (`EncodedSet.to`).

    What `cache` (a folder) already holds is not encoded again; `say` gets one-line notices. The base keeps its models.

    Raises:
        UsageError: `--resolution` is none this base can learn.
        JobError: a picture cannot be read, or its encoding is not finite.
    """
    device = torch.device(device)
    side = recipe.resolution or base.resolution
    down = 2 ** (len(base.vae.config.block_out_channels) - 1)
    if side % (8 * down):  # the UNet halves the latents three times
        raise UsageError(f"--resolution {side}: a multiple of {8 * down} was expected for this base")
    mean, std = _pictures(list(examples), base, side, recipe.flip, device, cache / "encoded", say)
    captions = [*dict.fromkeys(example.caption for example in examples if example.caption), ""] if examples else []
    row = {caption: index for index, caption in enumerate(captions)}
    index = torch.tensor([row[example.caption] for example in examples], dtype=torch.int64)
    embeddings = tokenize(captions, base) if recipe.text_encoder else _captions(captions, base, device, cache / "encoded", say)
    return EncodedSet(mean=mean, std=std, caption_index=index, embeddings=embeddings).to(device)




def _captions(captions: list[str], base: Base, device: torch.device, cache: Path, say: Say) -> Tensor:
    """As `encode_captions`, through the cache and on the CPU."""
    store = EncodingCache(cache, {"of": "captions", "base": base.identity, **skipped(base), **versions(device)}, say)
    ids = tokenize(captions, base)
    digests = [caption_digest(row) for row in ids]  # of token ids: another tokenizer is another entry
    found = {digest: entry["embedding"] for digest, entry in store.find(digests)}
    lacking = [caption for caption, digest in zip(captions, digests, strict=True) if digest not in found]
    lacking_digests = list(dict.fromkeys(digest for digest in digests if digest not in found))
    if lacking:
        made = encode_captions(lacking, base, device).cpu()
        rows = {caption_digest(row): made[i] for i, row in enumerate(tokenize(lacking, base))}
        found |= rows
        store.add(lacking_digests, {"embedding": torch.stack([rows[digest] for digest in lacking_digests])})
    return torch.stack([found[digest] for digest in digests]) if digests else encode_captions([], base, device).cpu()


def _pictures(examples: list[Example], base: Base, side: int, flip: bool, device: torch.device, cache: Path,
              say: Say) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean and std, each (N, V, 4, h, w) on the CPU, from the cache where it has them."""
    posterior = Posterior(base, device, side, views=2 if flip else 1, say=say)
    context = {"of": "pictures", "base": base.identity, "side": side, "flip": flip, **versions(device)}
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
        say(f"{len(found)} of {len(places)} pictures were encoded before")
    for digests, tensors in _encoded(lacking, posterior, side):
        store.add(digests, tensors)
        for row, digest in enumerate(digests):
            put(digest, {key: tensor[row] for key, tensor in tensors.items()})
    return mean, std


def _encoded(examples: list[Example], posterior: Posterior, side: int) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
    """Encode shard by shard; while the VAE works on one batch, threads read the next one's pictures."""
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
                    raise JobError(f"{example.source}: the base's VAE makes no finite numbers of it: is it damaged?")
            rows.append((mean, std))
            bar.update(len(batch))
            if len(rows) == per_shard or number == len(batches) - 1:
                shard = {"mean": torch.cat([m for m, _ in rows]), "std": torch.cat([s for _, s in rows])}
                yield [example.digest for example in examples[done : done + len(shard["mean"])]], shard
                done += len(shard["mean"])
                rows = []
