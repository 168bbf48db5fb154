"""A picture file of the user with its captions and training settings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from trainer.data.buckets import Shape, bucket_of
from trainer.data.images import BROKEN, broken, read_bytes, read_rgb

PROCESSING = b"upright, on white, sRGB with grey profiles and gamma, bicubic, centre\0"  # part of every digest


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture file. It is read on every access; JobError if that fails."""

    path: Path
    source: str
    category: str
    captions: tuple[str, ...]
    """one of them is drawn each time the picture is used"""
    caption: str
    """the first one, with its tags in the file's order"""
    size: tuple[int, int]
    """width and height of the file, in pixels, upright"""
    repeats: int = 1
    weight: float = 1.0
    reg: bool = False
    mask_path: Path | None = None
    alpha_mask: bool = False
    bucket_step: int = 0
    """0: always a square"""
    max_aspect: float = 4.0
    only_shape: Shape | None = None
    """height and width in pixels, instead of a bucket's"""

    def raw(self) -> np.ndarray:
        return np.asarray(read_rgb(self.path))

    def shape(self, resolution: int) -> Shape:
        if self.only_shape:
            return self.only_shape
        if not self.bucket_step:
            return resolution, resolution
        return bucket_of(*self.size, resolution, self.bucket_step, self.max_aspect)

    def pixels(self, resolution: int) -> np.ndarray:
        """The picture resized to cover its shape (Pillow's bicubic) and cropped at the centre."""
        return np.asarray(_fit(read_rgb(self.path), self.shape(resolution), Image.Resampling.BICUBIC))

    @property
    def masked(self) -> bool:
        return self.mask_path is not None or self.alpha_mask

    def mask(self, resolution: int, down: int) -> np.ndarray | None:
        """Weights of the loss at each latent, 0..1, float32 (height / down, width / down); None: 1 everywhere.

        White areas count, black ones do not, grey in between (kohya's --masked_loss, OneTrainer's masks). With `alpha_mask`
        the opaque areas count.
        """
        grey = self._mask_image()
        if grey is None:
            return None
        shape = self.shape(resolution)
        fitted = np.asarray(_fit(grey, shape, Image.Resampling.BOX), dtype=np.float32) / 255
        return fitted.reshape(shape[0] // down, down, shape[1] // down, down).mean(axis=(1, 3))

    def _mask_image(self) -> Image.Image | None:
        """The mask at the picture's size; a mask of another size is stretched to it."""
        if self.mask_path:
            grey = read_rgb(self.mask_path).convert("L")
        elif self.alpha_mask:
            try:
                with Image.open(self.path) as image:
                    if not image.has_transparency_data:
                        return None
                    grey = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
            except BROKEN as error:
                raise broken(self.path, error) from error
        else:
            return None
        return grey if grey.size == self.size else grey.resize(self.size, Image.Resampling.BOX)

    @cached_property
    def digest(self) -> str:
        return digest_of(read_bytes(self.path))

    @property
    def identity(self) -> str:
        """Everything that affects training on it, for the run's fingerprint."""
        parts = [self.digest, *self.captions]
        if self.repeats != 1 or self.reg:
            parts.append(f"repeats {self.repeats}, regularisation {self.reg}")
        if self.mask_path:
            parts.append(hashlib.sha256(read_bytes(self.mask_path)).hexdigest())
        return "\0".join(parts) + "\0"


def digest_of(data: bytes) -> str:
    return hashlib.sha256(PROCESSING + data).hexdigest()


def _fit(image: Image.Image, shape: Shape, method: Image.Resampling) -> Image.Image:
    return ImageOps.fit(image, shape[::-1], method=method, centering=(0.5, 0.5))
