"""Patches a model and a text encoder with ComfyUI's own key maps and LoRA loader.

ComfyUI's modules are imported when a function is called, so that this pack does not slow down its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from . import notices
from .errors import NodeError
from .types import Clip, KeyMap, Model, Network

if TYPE_CHECKING:
    from torch import Tensor

    from .adapter import Adapter

TEXT_ENCODER_WEIGHT = "clip_l.transformer.{}.weight"
"""Pattern of the host's name for the weight of a module with this LDM name."""

M = TypeVar("M", bound=Model)
C = TypeVar("C", bound=Clip)


def with_unet(model: M, adapter: Adapter, scale: float, tell: notices.Tell = notices.tell) -> M:
    """A clone of MODEL with the adapter's UNet part at `scale`; the same MODEL at 0. Raises `NodeError`.

    tell: receives notices about an adapter that was applied.
    """
    if scale == 0 or not adapter.unet.shapes:
        return model
    import comfy.lora

    from .patching import notice, patched

    weights = model.model.state_dict()
    done = patched(model, weights, unet_keys(model.model), adapter.unet, adapter, scale, comfy.lora.load_lora)
    tell(notice(weights, adapter))
    return done


def with_text_encoder(clip: C | None, adapter: Adapter, scale: float) -> C | None:
    """A clone of CLIP with the adapter's text encoder part at `scale`; the same CLIP at 0. Raises `NodeError`."""
    if scale == 0 or not adapter.text_encoder.shapes:
        return clip
    if clip is None:
        raise NodeError(
            f"{adapter.name}: has a text encoder part and no CLIP is connected: connect the checkpoint's CLIP "
            "(in Scribble LoRA Loader, clip_scale 0 leaves that part off)"
        )
    import comfy.lora

    from .patching import patched

    network = clip.cond_stage_model
    weights = network.state_dict()
    keys = text_encoder_keys(network, weights)
    return patched(clip, weights, keys, adapter.text_encoder, adapter, scale, comfy.lora.load_lora)


def unet_keys(network: Network) -> KeyMap:
    """Kohya's module names of the UNet -> names of the host's weights."""
    import comfy.lora

    keys: KeyMap = comfy.lora.model_lora_keys_unet(network, {})  # its default argument is one dict shared by all callers
    return keys


def text_encoder_keys(network: Network, weights: Mapping[str, Tensor]) -> KeyMap:
    """Kohya's module names of the text encoder -> names of the host's weights. The host's own map lacks the norms."""
    import comfy.lora

    from ..convert.names import module_name
    from ..convert.sd15 import TEXT_ENCODER, modules

    ours = {module_name("kohya", m): TEXT_ENCODER_WEIGHT.format(m.ldm) for m in modules().values() if m.scope == TEXT_ENCODER}
    in_model = {prefix: weight for prefix, weight in ours.items() if weight in weights}
    return {**in_model, **comfy.lora.model_lora_keys_clip(network, {})}
