"""Convolutions, where their plain forms copy more than they need or meet a slow kernel.

Legend: B pictures, C channels, h and w of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trainer.kernels.cpu import cpu_kernel

ONE = (1, 1), (1, 1), (0, 0), 1
"""Kernel, stride, padding and groups of a convolution that looks at one position at a time."""
SMALL = 16
"""Positions of a map up to which oneDNN's AVX-512 convolution is 1.7 to 3.3 times as slow in channels_last."""


def point(conv: torch.nn.Conv2d, x: Tensor) -> Tensor:
    """A 1 x 1 convolution as the matrix product it is: no copy where x (B, C, h, w) is channels_last."""
    pictures, _, height, width = x.shape
    tokens = x.permute(0, 2, 3, 1).reshape(pictures * height * width, -1)  # a product of two matrices, not of many small ones
    return functional.linear(tokens, conv.weight.flatten(1), conv.bias).view(pictures, height, width, -1).permute(0, 3, 1, 2)


@cpu_kernel
def small_map(conv: torch.nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of x (B, C, h, w), in NCHW where the map is small. Its weight changes its layout once."""
    if x.shape[2] * x.shape[3] <= SMALL:
        if not conv.weight.is_contiguous():
            conv.weight.data = conv.weight.data.contiguous()
        x = x.contiguous()
    return functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)




