"""The encoded data set: latents and prompt embeddings, from which the loop takes its micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SHARE = 0.25
"""Share of a GPU's free memory that an encoded set may use; the rest is for the UNet and its activations."""


@dataclass(frozen=True)
class EncodedSet:
    """N pictures and C distinct captions, the last of them empty: all data that the training loop uses.

    V views of each picture: itself, and its mirror image if the recipe flips. The latents are multiplied by the VAE's scaling
    factor, in fp16 for a GPU, fp32 for the CPU. Pictures of several shapes are stored as rows (1, h * w), padded with zeros to
    the largest; captions of several chunks as several rows of `embeddings`.
    """

    mean: Tensor
    """(N, V, 4, h, w), mean of the VAE's posterior"""
    std: Tensor
    """(N, V, 4, h, w)"""
    caption_index: Tensor
    """(N,) int64, row of the picture's caption; with `captions`, index of its first one in that list"""
    embeddings: Tensor
    """(C, tokens, width), CLIP's last hidden states; if the text encoder is trained, its input: (C, tokens) int64"""
    shapes: tuple[tuple[int, int], ...] = ()
    """latent height and width of each picture; () if all have the stored shape"""
    captions: Tensor | None = None
    """(M,) int64, the captions of all pictures, concatenated; None if each picture has one"""
    caption_count: Tensor | None = None
    """(N,) int64"""
    first_chunk: Tensor | None = None
    """(C,) int64, a caption's first row of `embeddings`; None if each caption is one chunk"""
    chunks: Tensor | None = None
    """(C,) int64 on the CPU"""
    mask: Tensor | None = None
    """(N, 1, h, w), loss weights of each latent, stored like `mean`; None if all are 1"""
    weight: Tensor | None = None
    """(N,) float32, weight of each picture's loss; None if all are 1"""
    repeats: tuple[int, ...] = ()
    """how often each picture occurs in an epoch; () for once each"""
    reg: tuple[bool, ...] = ()
    """whether a picture is for regularisation; () if none is"""

    def __len__(self) -> int:
        return len(self.caption_index)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.mean, self.std, self.caption_index, self.embeddings))

    def to(self, device: torch.device | str) -> EncodedSet:
        """Move to `device`; if a CUDA device has too little memory, the pictures stay in pinned host memory."""
        device = torch.device(device)
        small = {name: value.to(device) for name in ("caption_index", "embeddings", "captions", "caption_count", "first_chunk",
                                                     "mask", "weight") if (value := getattr(self, name)) is not None}
        if self.mean.device.type == "cpu" and device.type == "cuda" and self.nbytes > SHARE * _free(device):
            return replace(self, mean=self.mean.pin_memory(), std=self.std.pin_memory(), **small)
        return replace(self, mean=self.mean.to(device), std=self.std.to(device), **small)

    @property
    def uniform(self) -> bool:
        """Whether all pictures have the same shape and all captions one chunk."""
        return not self.shapes and self.chunks is None

    @property
    def largest(self) -> int:
        """The row of one of the largest pictures."""
        areas = [height * width for height, width in self.shapes] or [0]
        return areas.index(max(areas))

    def alike(self, picture: Tensor, dropped: Tensor, choice: Tensor) -> list[tuple[Tensor, tuple[int, ...], int]]:
        """The rows of a draw, on the CPU, grouped by shape and number of chunks: rows (int64), latent shape (() for the stored
        one), chunks. The order within a group is the draw's."""
        rows = torch.arange(len(picture))
        if self.uniform:
            return [(rows, (), 1)]
        lengths = torch.ones_like(picture)
        if self.chunks is not None:
            lengths = self.chunks[self._caption(picture, dropped, choice, self._on_cpu()).cpu()]
        keys = [(self.shapes[p] if self.shapes else (), int(n)) for p, n in zip(picture.tolist(), lengths, strict=True)]
        return [(torch.tensor([row for row, key in enumerate(keys) if key == wanted]), *wanted) for wanted in sorted(set(keys))]

    def take(self, picture: Tensor, view: Tensor, dropped: Tensor, choice: Tensor | None = None, *,
             shape: Sequence[int] = (), chunks: int = 1) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Mean, std (B, 4, h, w), embeddings (B, chunks * tokens, width) for (B,) int64 `picture` and `view`, on the device.

        dropped: (B,) bool, replaces the caption by the empty one. choice: (B,) float, from 0 to below 1, selects one of a
        picture's captions. All pictures must have this latent `shape` (() for the stored one) and all captions `chunks` chunks.
        """
        place = self.mean.device
        stored = picture.to(place), view.to(place)
        mean, std = (unpacked(t[stored].to(self.embeddings.device, non_blocking=True), shape) for t in (self.mean, self.std))
        caption = self._caption(picture, dropped, choice, self)
        if self.first_chunk is None:
            return mean, std, self.embeddings[caption]
        rows = self.first_chunk[caption][:, None] + torch.arange(chunks, device=caption.device)
        return mean, std, self.embeddings[rows].flatten(1, 2)

    def loss_weight(self, picture: Tensor, view: Tensor, shape: Sequence[int] = ()) -> Tensor | None:
        """Loss weights, (B, 1, h, w) or (B, 1, 1, 1), on the device; None if all are 1."""
        weight = None if self.weight is None else self.weight[picture.to(self.weight.device)].view(-1, 1, 1, 1)
        if self.mask is None:
            return weight
        mask = unpacked(self.mask[picture.to(self.mask.device)], shape)
        mask = torch.where(view.to(mask.device).view(-1, 1, 1, 1).bool(), mask.flip(-1), mask)
        return mask if weight is None else mask * weight

    def _caption(self, picture: Tensor, dropped: Tensor, choice: Tensor | None, at: EncodedSet) -> Tensor:
        """(B,) the row of each picture's caption."""
        index = at.caption_index
        picture = picture.to(index.device)
        caption = index[picture]
        if at.captions is not None and at.caption_count is not None:
            assert choice is not None
            nth = (choice.to(index.device) * at.caption_count[picture]).long()
            caption = at.captions[caption + nth]
        return caption.masked_fill(dropped.to(index.device), self.distinct - 1)

    @property
    def distinct(self) -> int:
        """Number of distinct captions, including the empty one."""
        return len(self.embeddings) if self.chunks is None else len(self.chunks)

    def _on_cpu(self) -> EncodedSet:
        """The caption tables on the CPU, copied once."""
        if self.caption_index.device.type == "cpu":
            return self
        if "cpu_tables" not in self.__dict__:
            captions, count = ((None if t is None else t.cpu()) for t in (self.captions, self.caption_count))
            self.__dict__["cpu_tables"] = replace(self, caption_index=self.caption_index.cpu(), captions=captions,
                                                  caption_count=count)
        tables_on_cpu: EncodedSet = self.__dict__["cpu_tables"]
        return tables_on_cpu


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors (..., h, w) of several shapes -> (N, ..., 1, n), each padded with zeros to the largest h * w."""
    flat = [tensor.flatten(-2).unsqueeze(-2) for tensor in tensors]
    longest = max(tensor.shape[-1] for tensor in flat)
    return torch.stack([torch.nn.functional.pad(tensor, (0, longest - tensor.shape[-1])) for tensor in flat])


def unpacked(stored: Tensor, shape: Sequence[int]) -> Tensor:
    """Packed tensors (..., 1, n) -> (..., h, w); unchanged for shape ()."""
    if not shape:
        return stored
    height, width = shape
    return stored.flatten(-2)[..., : height * width].unflatten(-1, (height, width))


def _free(device: torch.device) -> int:
    """Free memory of a CUDA device in bytes."""
    return int(torch.cuda.mem_get_info(device)[0])
