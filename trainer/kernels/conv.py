"""1 x 1 convolutions as the matrix products they are.

Legend: B pictures, C channels, h and w of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ONE = (1, 1), (1, 1), (0, 0), 1
"""Kernel, stride, padding and groups of a convolution that looks at one position at a time."""


def point(conv: torch.nn.Conv2d, x: Tensor) -> Tensor:
    """A 1 x 1 convolution as the matrix product it is: makes no copy if x (B, C, h, w) is channels_last."""
    pictures, _, height, width = x.shape
    tokens = x.permute(0, 2, 3, 1).reshape(pictures * height * width, -1)  # a product of two matrices, not of many small ones
    return functional.linear(tokens, conv.weight.flatten(1), conv.bias).view(pictures, height, width, -1).permute(0, 3, 1, 2)
