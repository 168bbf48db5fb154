"""Protocols for the parts of ComfyUI's objects that the nodes use: MODEL, CLIP, HOOKS, and the lists nodes exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

InputTypes = dict[str, dict[str, tuple[object, ...]]]
"""The result of `INPUT_TYPES`: "required" or "optional" -> name of the input -> (type, options)."""

Patches = Mapping[str, object]
"""Name of a weight in the host's model -> the host's own description of a change."""

KeyMap = Mapping[str, str]
"""Prefix in the file -> name of the weight in the host's model."""

LoadLora = Callable[[Mapping[str, "Tensor"], KeyMap], Patches]
"""`comfy.lora.load_lora`."""

LoraStack = list[tuple[str, float, float]]
"""LORA_STACK, as many packs exchange it: (name in models/loras, scale of the UNet part, scale of the text encoder part)."""


class Network(Protocol):
    """The host's module around the weights of one network."""

    def state_dict(self) -> Mapping[str, Tensor]: ...


class Patcher(Protocol):
    """The interface that MODEL and CLIP share."""

    def clone(self) -> Self: ...

    def add_patches(self, patches: Patches, strength_patch: float = 1.0) -> Iterable[str]:
        """Returns the names of the patched weights. Unknown names are skipped without an error."""
        ...


class Model(Patcher, Protocol):
    """MODEL: `comfy.model_patcher.ModelPatcher`."""

    @property
    def model(self) -> Network: ...


class Clip(Patcher, Protocol):
    """CLIP: `comfy.sd.CLIP`."""

    @property
    def cond_stage_model(self) -> Network: ...


class Hooks(Protocol):
    """HOOKS: `comfy.hooks.HookGroup`."""

    def add(self, hook: object) -> None: ...

    def clone_and_combine(self, other: Hooks) -> Hooks: ...
