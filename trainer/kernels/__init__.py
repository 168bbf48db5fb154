"""The UNet's forward pass in fewer, larger operations: equal up to rounding, with the same modules and names.

peft's modules keep the factors and give them their names. Inside a `Fused` context, SD1.5's attentions and 1 x 1 convolutions
are computed in another way; after it, for sampling and saving, the UNet is as before (except for the layout of its weights in
memory).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.base.models import UNet
from trainer.kernels.attention import FusedProcessor
from trainer.kernels.attention_backend import attention_backend
from trainer.kernels.conv import ONE, point
from trainer.lora import dora

if TYPE_CHECKING:  # slow to load
    from diffusers.models.attention_processor import Attention, AttnProcessor


def training_kernels(unet: UNet, device: torch.device, *, attention: str, compile: str) -> AbstractContextManager[object]:
    """The context for training's passes: `Fused`; on a CPU, where peft's own modules are as fast, an empty one.

    attention: as in `Fused`; compile: with "on", a CPU computes as a GPU does.
    """
    return nullcontext() if device.type == "cpu" and compile != "on" else Fused(unet, attention=attention)


class Fused:
    """A context in which `unet` (diffusers' UNet2DConditionModel with peft's LoRA) uses the fused operations.

    attention: the kernel to try first, a choice of `attention_backend`.
    """

    def __init__(self, unet: UNet, *, attention: str = "auto") -> None:
        from diffusers.models.attention_processor import Attention

        unet.to(memory_format=torch.channels_last)
        self._unet, self._attention = unet, attention
        self._backend: AbstractContextManager[None] = nullcontext()
        self._depth = 0
        self._processors: list[tuple[Attention, AttnProcessor, FusedProcessor]] = []
        for module in unet.modules():
            if isinstance(module, Attention) and _plain(module):
                cross = module.is_cross_attention
                self._processors.append((module, module.processor, FusedProcessor(module, cross=cross)))
        self._forwards = list(_replacements(unet))

    def __enter__(self) -> Fused:
        self._depth += 1
        if self._depth == 1:
            self._install()
        return self

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._remove()

    def _install(self) -> None:
        self._backend = attention_backend(self._unet.device, self._attention)
        self._backend.__enter__()
        for attention, _, fused in self._processors:
            attention.processor = fused
        for module, forward in self._forwards:
            module.forward = forward

    def _remove(self) -> None:
        self._backend.__exit__(None, None, None)
        for attention, before, _ in self._processors:
            attention.processor = before
        for module, _ in self._forwards:
            del module.forward


def _plain(attention: Attention) -> bool:
    """Whether it is of SD1.5's kind: no norms inside, no residual, one head count for q, k and v; no DoRA."""
    if any(dora.is_decomposed(layer) for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])):
        return False
    return (attention.group_norm is None and attention.spatial_norm is None and attention.norm_q is None
            and attention.norm_k is None and not attention.residual_connection and attention.rescale_output_factor == 1
            and attention.added_kv_proj_dim is None and attention.inner_dim == attention.inner_kv_dim
            and attention.to_q.in_features == attention.query_dim)


def _replacements(unet: UNet) -> Iterator[tuple[torch.nn.Module, Callable[[Tensor], Tensor]]]:
    """Modules of `unet`, each with the function to call instead of its `forward`.

    They are bound methods of one function, so that the compiler makes one graph for all blocks of a size.
    """
    for module in unet.modules():
        if type(module) is torch.nn.Conv2d and (module.kernel_size, module.stride, module.padding, module.groups) == ONE:
            yield module, MethodType(point, module)
