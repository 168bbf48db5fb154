"""Protocols for the parts of diffusers' and transformers' models that the trainer uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:  # inspecting a base does not need torch
    import torch
    from torch import Tensor

Config = dict[str, Any]
"""A model's, tokenizer's or scheduler's configuration, as in its JSON file."""


class Model(Protocol):
    """A torch module."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool = ...) -> Self: ...

    def to(self, *where: torch.device | torch.dtype | str, memory_format: torch.memory_format = ...) -> Self: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]: ...

    def modules(self) -> Iterator[torch.nn.Module]: ...

    def named_modules(self) -> Iterator[tuple[str, torch.nn.Module]]: ...


class Network(Model, Protocol):
    """A network that peft can put a LoRA on: the UNet or the text encoder."""

    def add_adapter(self, adapter_config: object, adapter_name: str) -> None: ...


class UNetConfig(Protocol):
    """Configuration of diffusers' UNet2DConditionModel."""

    cross_attention_dim: int
    """width of the prompt embedding"""
    in_channels: int
    sample_size: int
    """side of its usual latents"""


class Predictor(Protocol):
    """Predicts noise: diffusers' UNet2DConditionModel, plain or compiled."""

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *,
                 return_dict: bool) -> tuple[Tensor, ...]: ...  # fmt: skip


class UNet(Network, Predictor, Protocol):
    """diffusers' UNet2DConditionModel."""

    @property
    def config(self) -> UNetConfig: ...

    def load_lora_adapter(self, source: object, **options: object) -> None: ...

    def enable_gradient_checkpointing(self) -> None: ...

    def set_adapters(self, adapter_names: Sequence[str], weights: Sequence[float]) -> None: ...


class VAEConfig(Protocol):
    """Configuration of diffusers' AutoencoderKL."""

    block_out_channels: Sequence[int]
    latent_channels: int
    scaling_factor: float


class Gaussian(Protocol):
    """The posterior of encoded pictures."""

    mean: Tensor
    """(B, 4, h, w)"""
    std: Tensor

    def sample(self) -> Tensor: ...


class Encoding(Protocol):
    latent_dist: Gaussian


class VAE(Model, Protocol):
    """diffusers' AutoencoderKL."""

    @property
    def config(self) -> VAEConfig: ...

    def encode(self, x: Tensor) -> Encoding: ...

    def decode(self, z: Tensor, return_dict: bool) -> tuple[Tensor, ...]: ...


class TextConfig(Protocol):
    """Configuration of transformers' CLIPTextModel."""

    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    max_position_embeddings: int


class TextOutput(Protocol):
    """CLIPTextModel's output."""

    last_hidden_state: Tensor
    """(B, tokens, width)"""
    hidden_states: Sequence[Tensor]
    """of every layer, if requested"""


class TextLayers(Protocol):
    layers: torch.nn.ModuleList


class TextEncoder(Network, Protocol):
    """transformers' CLIPTextModel."""

    encoder: TextLayers

    @property
    def config(self) -> TextConfig: ...

    def __call__(self, input_ids: Tensor, *, output_hidden_states: bool = ...) -> TextOutput: ...


class Tokens(Protocol):
    """A tokenizer's output."""

    input_ids: Any
    """a list for each text, or (B, tokens) int64 if `return_tensors` is "pt" """


class Tokenizer(Protocol):
    """transformers' CLIPTokenizer."""

    model_max_length: int
    """tokens in a chunk, including the start and end tokens"""
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    pad_token: str

    def __len__(self) -> int: ...

    def convert_tokens_to_ids(self, token: str) -> int: ...

    def __call__(self, text: Sequence[str] | str, **options: object) -> Tokens: ...


class SchedulerConfig(Protocol):
    """Configuration of diffusers' schedulers."""

    prediction_type: str
    num_train_timesteps: int


class Scheduler(Protocol):
    """diffusers' DDPMScheduler."""

    @property
    def config(self) -> SchedulerConfig: ...

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...
