"""Encodes pictures with the VAE, in batches whose composition does not change the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.base.load import Base
from trainer.base.models import VAE, Gaussian
from trainer.data.records import Example
from trainer.encoding.formats import moved, storage_dtype
from trainer.memory import halving

VIEWS_AT_ONCE = {"cuda": 8, "cpu": 2}
"""Batch size for 512 x 512 pictures (about 2 GB on a GPU); smaller for larger pictures, larger for smaller ones."""
MOST_VIEWS = 16






def picture_batch(examples: Sequence[Example], side: int) -> np.ndarray:
    """uint8 (B, height, width, 3) of pictures with the same training shape: (side, side), or a bucket of that area."""
    return np.stack([example.pixels(side) for example in examples])


class Posterior:
    """The VAE's posterior of pictures and, if `views` is 2, of their mirror images, times the scaling factor.

    Uses fp16 on CUDA, and fp32 after the first batch in which fp16 overflows (`say` receives a line); fp32 elsewhere. The
    base's own VAE is not changed; a copy is used.
    """

    def __init__(self, base: Base, device: torch.device, side: int, *, views: int, say: Callable[[str], None],
                 dtype: torch.dtype | None = None, shape: tuple[int, int] | None = None) -> None:  # fmt: skip
        """shape: height and width of the pictures, about side * side pixels; None: (side, side)."""
        self.device, self.views, self.say, self._original = device, views, say, base.vae
        self._dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
        self._vae: VAE | None = None
        config = base.vae.config
        down = 2 ** (len(config.block_out_channels) - 1)
        height, width = shape or (side, side)
        self.shape = (views, config.latent_channels, height // down, width // down)
        at_once = VIEWS_AT_ONCE.get(device.type, 2) * 512**2 // side**2
        self.batch = max(min(at_once, MOST_VIEWS) // views, 1)
        """Pictures per call; powers of two, so that shards consist of whole batches."""
        self._at_once = self.batch * views  # views computed at once; halved if memory runs out

    def __call__(self, pictures: np.ndarray) -> tuple[Tensor, Tensor]:
        """uint8 (B, height, width, 3), B at most `batch` -> mean and std, each (B, views, 4, h, w), on the CPU.

        The batch is padded to its full size: kernels depend on it, and a picture's encoding must not depend on its batch.
        """
        count = len(pictures)
        whole = np.concatenate([pictures, np.repeat(pictures[-1:], self.batch - count, axis=0)])
        x = torch.from_numpy(whole).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1  # mean 0.5, std 0.5
        both = torch.stack([x, x.flip(-1)][: self.views], dim=1).flatten(0, 1)  # (B * views, 3, height, width)
        mean, std = self._encode(both)
        if self._dtype != torch.float32 and not (mean.isfinite().all() and std.isfinite().all()):
            self.say("this base's VAE overflows in half precision: encoding in fp32, which is slower")
            self._dtype, self._vae = torch.float32, None
            mean, std = self._encode(both)
        mean, std = (t.unflatten(0, (self.batch, self.views))[:count] for t in (mean, std))
        return mean.to("cpu", storage_dtype(self.device)), std.to("cpu", storage_dtype(self.device))

    @torch.no_grad()
    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of pictures (B, 3, height, width), in halves if memory runs out."""

        def encode(at_once: int) -> list[Gaussian]:
            if self._vae is None:
                self._vae = moved(self._original, self.device, self._dtype)
            vae = self._vae
            return [vae.encode(some).latent_dist for some in x.to(self._dtype).split(at_once)]

        parts, self._at_once = halving(encode, self._at_once, what="encoding a single picture", advice="close other programs "
                                       "that use the GPU, or give a smaller --resolution")
        factor = self._original.config.scaling_factor
        return (torch.cat([p.mean.float() for p in parts]) * factor, torch.cat([p.std.float() for p in parts]) * factor)








