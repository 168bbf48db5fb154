"""DoRA (Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation"): a LoRA gives directions, and a magnitude is
learned for every input column.

W' = m V / ||V|| with V = W + (alpha / rank) B A (equation 5), the norms over an input column of a linear layer (out, in), or an
input channel of a convolution (out, in, k, k). AUTOMATIC1111 v1.10.1, Forge and ComfyUI apply that axis of LyCORIS's
`dora_scale`; peft's norms are of output rows, which no web UI applies. So a column of V is scaled by g = m / ||V||, which is to
scale the layer's input. At LoRA scale t the weight is W + t (W' - W), as in these hosts.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from convert.errors import UsageError
from trainer.miniature import widen

PART = "dora_scale"
"""The magnitude's name in a layer and in a kohya file."""
NAME = "default"
"""peft's name of the adapter"""


def check_columns(layers: Mapping[str, torch.nn.Module], *, narrow: bool = False) -> None:
    """Refuse layers with an input column of zeros: its norm is 0, and hosts divide by it.

    narrow: they are the narrow miniature's UNet's, which is widened for hosts. Raises UsageError, naming the layer.
    """
    for name, layer in layers.items():
        widened_with_zeros = narrow and widen.rule(widen.UNET, name).columns.sparse > 1
        if widened_with_zeros or bool((norms_of(layer.get_parameter("weight")) == 0).any()):
            raise UsageError(f"--dora: {name} has input columns of zeros{' once it is widened' if widened_with_zeros else ''}, "
                             "and hosts would divide by their norms: leave out --dora, or that layer of --targets")


def norms_of(weight: Tensor) -> Tensor:
    """The norm of each input column of a weight, float32 (1, in) or (1, in, 1, 1)."""
    others = [dim for dim in range(weight.ndim) if dim != 1]
    return weight.float().square().sum(dim=others, keepdim=True).sqrt()


def decompose(layer: Any, magnitude: Tensor | None = None) -> None:
    """Make peft's LoRA `layer`, linear or convolution, a DoRA.

    magnitude: (1, in) or (1, in, 1, 1); by default the norms of the layer's own weight, with which it starts as the base.
    """
    with torch.no_grad():
        start = column_norms(layer) if magnitude is None else magnitude.float()
    layer.register_parameter(PART, torch.nn.Parameter(start))
    layer.forward = MethodType(_forward, layer)


def is_decomposed(layer: Any) -> bool:
    return hasattr(layer, PART)


def column_norms(layer: Any) -> Tensor:
    """||V|| of each input column, float32 (1, in) or (1, in, 1, 1)."""
    weight, down, up = layer.get_base_layer().weight, layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    change = (up.float().flatten(1) @ down.float().flatten(1)).view(weight.shape)
    return norms_of(weight.float() + layer.lora_alpha[NAME] / layer.r[NAME] * change)


def _forward(layer: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """The layer's output; the norm takes no gradient (section 4.3 of the paper)."""
    with torch.no_grad():
        norms = column_norms(layer).clamp(min=torch.finfo(torch.float32).tiny)
    scaled = x * (layer.dora_scale / norms).to(x.dtype)
    scale = layer.scaling[NAME]
    share = scale / (layer.lora_alpha[NAME] / layer.r[NAME])  # a number, or one for each picture
    mixed = scaled if isinstance(share, float) and share == 1 else x + share * (scaled - x)
    y: Tensor = layer.get_base_layer()(mixed.to(x.dtype))
    down, up = layer.lora_A[NAME], layer.lora_B[NAME]
    return (y + up(down(scaled.to(down.weight.dtype))) * scale).to(y.dtype)
