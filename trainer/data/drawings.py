"""From a QuickDraw bitmap to a training picture: section 2.2 of the paper, in the paper's order."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

SIDE = 28  # pixels
ROW_BYTES = SIDE * SIDE
PROCESSING = b"28x28, RGB, bicubic, inverted\0"  # part of every digest: a change of `process` must change it


def process(bitmap: np.ndarray, resolution: int) -> np.ndarray:
    """uint8 (28, 28), white on black -> uint8 (resolution, resolution, 3), black on white (section 2.2).

    "We first map our 28x28x1 bitmap data into [...] RGB images. Then we resize images to 512x512x3 using bicubic
    interpolation [...] we invert colours of all images." The mirroring and the normalisation that follow are drawn
    and done where pictures are encoded. Bicubic is Pillow's, clipped to 0..255 (so is torchvision's on PIL images).
    """
    rgb = Image.fromarray(np.ascontiguousarray(bitmap)).convert("RGB")
    large = rgb.resize((resolution, resolution), Image.Resampling.BICUBIC)
    return np.asarray(ImageOps.invert(large))
