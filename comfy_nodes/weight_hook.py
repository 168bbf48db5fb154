"""The hook that applies an adapter: like ComfyUI's own `WeightHook`, but it applies all of the adapter or raises.

For the UNet, ComfyUI's hook reads only kohya's names, and it silently skips all other keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import comfy.hooks
import comfy.lora

from . import host, notices
from .adapter import Adapter
from .patching import notice, patches, refuse_partial, targets
from .types import Network

if TYPE_CHECKING:
    from typing_extensions import Self


class HookedPatcher(Protocol):
    """The part of `ModelPatcher`, of MODEL or CLIP, that a hook uses."""

    @property
    def model(self) -> Network: ...

    def add_hook_patches(self, hook: object, patches: object, strength_patch: float) -> Iterable[str]: ...


class AdapterHook(comfy.hooks.WeightHook):  # type: ignore[misc]  # the host has no types here
    """Applies `adapter` while a conditioning that carries this hook is sampled or encoded."""

    adapter: Adapter

    @classmethod
    def of(cls, adapter: Adapter, scale: float, clip_scale: float) -> Self:
        """The hook of an adapter; keyframes multiply its scales."""
        hook = cls(strength_model=scale, strength_clip=clip_scale)
        hook.adapter = adapter
        return hook

    def add_hook_patches(
        self, model: HookedPatcher, model_options: Mapping[str, Any], target_dict: Mapping[str, Any], registered: Any
    ) -> bool:
        """Called by the host for each network. Raises `NodeError` if the adapter does not fit it."""
        if not self.should_register(model, model_options, target_dict, registered):
            return False
        weights = model.model.state_dict()
        if target_dict.get("target") == comfy.hooks.EnumWeightTarget.Clip:
            part, scale, keys = self.adapter.text_encoder, self._strength_clip, host.text_encoder_keys(model.model, weights)
        else:
            part, scale, keys = self.adapter.unet, self._strength_model, host.unet_keys(model.model)
        if scale == 0 or not part.shapes:
            model.add_hook_patches(hook=self, patches={}, strength_patch=scale)
        else:
            wanted = targets(weights, keys, part, self.adapter)
            applied = model.add_hook_patches(
                hook=self, patches=patches(keys, part, comfy.lora.load_lora), strength_patch=scale
            )
            refuse_partial(applied, wanted, self.adapter)
            if part is self.adapter.unet:
                notices.tell(notice(weights, self.adapter))
        registered.add(self)
        return True

    def clone(self) -> Self:
        """A copy for another group of hooks."""
        copy: Self = super().clone()
        copy.adapter = self.adapter
        return copy
