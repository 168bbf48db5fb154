"""The parts of diffusers' and transformers' models that the trainer uses, as types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor


class Model(Protocol):
    """A module of torch."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def to(self, *where: torch.device | torch.dtype | str, memory_format: torch.memory_format = ...) -> Self: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]: ...

    def modules(self) -> Iterator[torch.nn.Module]: ...

    def named_modules(self) -> Iterator[tuple[str, torch.nn.Module]]: ...


class UNetConfig(Protocol):
    """Of diffusers' UNet2DConditionModel."""

    cross_attention_dim: int
    """width of the prompt embedding"""
    in_channels: int
    sample_size: int
    """side of the latents it was made for"""


class Predictor(Protocol):
    """What predicts noise: diffusers' UNet2DConditionModel, or it compiled."""

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *,
                 return_dict: bool) -> tuple[Tensor, ...]: ...  # fmt: skip


class UNet(Model, Predictor, Protocol):
    """diffusers' UNet2DConditionModel."""

    @property
    def config(self) -> UNetConfig: ...

    def add_adapter(self, adapter_config: Any, adapter_name: str) -> None: ...

    def enable_gradient_checkpointing(self) -> None: ...

    def set_adapters(self, adapter_names: Sequence[str], weights: Sequence[float]) -> None: ...


class SchedulerConfig(Protocol):
    """Of diffusers' schedulers."""

    prediction_type: str
    num_train_timesteps: int


class Scheduler(Protocol):
    """diffusers' DDPMScheduler."""

    @property
    def config(self) -> SchedulerConfig: ...
