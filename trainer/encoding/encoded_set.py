"""The encoded data set: latents and prompt embeddings, where the loop takes its batches from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SHARE = 0.25
"""Of a GPU's free memory an encoded set may fill this much; the rest is for the UNet and its activations."""


@dataclass(frozen=True)
class EncodedSet:
    """N pictures and C distinct captions, the last of them empty: all that a training loop touches.

    V views of each picture: itself, and its mirror image where the recipe flips. The latents' numbers are multiplied by
    the VAE's scaling factor, and fp16 for a GPU, fp32 for the CPU.
    """

    mean: Tensor
    """(N, V, 4, h, w), of the VAE's posterior"""
    std: Tensor
    """(N, V, 4, h, w)"""
    caption_index: Tensor
    """(N,) int64, row of `embeddings`"""
    embeddings: Tensor
    """(C, tokens, width), CLIP's last hidden states; if the text encoder learns, its input: (C, tokens) int64"""

    def __len__(self) -> int:
        return len(self.caption_index)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.mean, self.std, self.caption_index, self.embeddings))

    def to(self, device: torch.device | str) -> EncodedSet:
        """On `device`; where a CUDA device has no room, pictures in pinned host memory and the rest on the device."""
        device = torch.device(device)
        captions = {"caption_index": self.caption_index.to(device), "embeddings": self.embeddings.to(device)}
        if self.mean.device.type == "cpu" and device.type == "cuda" and self.nbytes > SHARE * _free(device):
            return replace(self, mean=self.mean.pin_memory(), std=self.std.pin_memory(), **captions)
        return replace(self, mean=self.mean.to(device), std=self.std.to(device), **captions)

    def take(self, picture: Tensor, view: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, std (B, 4, h, w), embeddings (B, tokens, width) for (B,) int64 `picture` and `view`, on the device.

        dropped: (B,) bool, whose caption is the empty one instead.
        """
        device, place = self.embeddings.device, self.mean.device
        picture, view = picture.to(place), view.to(place)
        mean, std = (t[picture, view].to(device, non_blocking=True) for t in (self.mean, self.std))
        caption = self.caption_index[picture.to(device)].masked_fill(dropped.to(device), len(self.embeddings) - 1)
        return mean, std, self.embeddings[caption]


def _free(device: torch.device) -> int:
    """Bytes of memory that a CUDA device has left."""
    return int(torch.cuda.mem_get_info(device)[0])
