"""Merge a LoRA into the weights while its scale does not change: sampling then costs no more than with the base alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.base.models import UNet
from trainer.lora import adapter, dora


@contextmanager
def merged(unet: UNet, scale: float) -> Iterator[None]:
    """Set the adapter's scale and, until the context ends, replace every weight W by W + scale (alpha / rank) B A.

    Not in half precision, where a small B A would be rounded away, and not for a DoRA, which is more than a sum: both are
    applied unmerged. Needs memory for the merged weights, at most that of the UNet. The old weights are restored bit for bit.
    """
    from peft.tuners.lora import LoraLayer

    adapter.set_scale(unet, scale)
    layers = [layer for layer in unet.modules() if isinstance(layer, LoraLayer)]
    if unet.dtype != torch.float32 or any(map(dora.is_decomposed, layers)):
        yield
        return
    bases = [(layer.get_base_layer(), layer.get_base_layer().weight.data) for layer in layers]
    try:
        with torch.no_grad():
            for layer, (base, weight) in zip(layers, bases, strict=True):
                base.weight.data = weight.clone()
                layer.merge()
        yield
    finally:
        for layer in layers:
            layer.merged_adapters.clear()
        for base, weight in bases:
            base.weight.data = weight
