"""A LoRA inside the weights for as long as its scale stays: drawing then costs what the base alone costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.base.models import UNet
from trainer.lora import adapter, dora


@contextmanager
def merged(unet: UNet, scale: float) -> Iterator[None]:
    """Set the adapter's scale, and until the context ends keep W + scale (alpha / rank) B A in place of every weight W.

    In half precision a small B A would be rounded away, and a DoRA is more than a sum: these stay beside the weights. Needs
    memory for the merged weights, at most that of the UNet. The old weights come back bit for bit.
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
