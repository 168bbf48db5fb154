"""Applies an adapter to a model completely, or raises. The host does the arithmetic; this counts every module.

ComfyUI only logs the parts that it does not apply (unknown keys, shapes that do not fit), so those are checked first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from ..convert import miniature
from .adapter import Adapter, Part
from .errors import NodeError
from .types import KeyMap, LoadLora, Patcher, Patches

if TYPE_CHECKING:
    from torch import Tensor

OUT_BIAS = "diffusion_model.out.2.bias"
"""The host's name for the fingerprint of a checkpoint (see `convert.miniature`)."""

P = TypeVar("P", bound=Patcher)


def patched(
    patcher: P, weights: Mapping[str, Tensor], keys: KeyMap, part: Part, adapter: Adapter, scale: float, load_lora: LoadLora
) -> P:
    """A clone of `patcher` with `part` added at `scale`; `patcher` itself if there is nothing to add.

    Args:
        weights: the network's state dict.
        keys: the host's key map for this network. ComfyUI ignores names that are not in it.

    Raises:
        NodeError: a module of the part does not fit the network. `patcher` is unchanged.
    """
    if scale == 0 or not part.shapes:
        return patcher
    wanted = targets(weights, keys, part, adapter)
    clone = patcher.clone()
    refuse_partial(clone.add_patches(patches(keys, part, load_lora), scale), wanted, adapter)
    return clone


def patches(keys: KeyMap, part: Part, load_lora: LoadLora) -> Patches:
    """The part in the host's own form, by name of the weight."""
    return load_lora(part.tensors, {prefix: keys[prefix] for prefix in part.shapes})


def refuse_partial(applied: Iterable[str], wanted: set[str], adapter: Adapter) -> None:
    """Raise unless the host applied every change."""
    done = set(applied)
    if done != wanted:
        raise NodeError(f"{adapter.name}: ComfyUI applied {len(done & wanted)} of its {len(wanted)} changes, so it was "
                        "left off: please report this with the versions of both")  # fmt: skip


def targets(weights: Mapping[str, Tensor], keys: KeyMap, part: Part, adapter: Adapter) -> set[str]:
    """The names of all weights and biases that the part changes.

    Only this function decides whether a LoRA fits the connected model, and it compares only shapes (see `notice`).

    Raises:
        NodeError: the LoRA does not fit the network.
    """
    fitting = [prefix for prefix, shape in part.shapes.items() if _fits(weights.get(keys.get(prefix, "")), shape)]
    if len(fitting) < len(part.shapes):
        socket = "CLIP" if part is adapter.text_encoder else "MODEL"
        raise NodeError(f"{adapter.name}: {len(fitting)} of its {len(part.shapes)} modules fit the connected {socket}: it was "
                        f"trained on {adapter.trained_on}")  # fmt: skip
    found = {keys[prefix] for prefix in part.weights}
    found |= {f"{keys[prefix].removesuffix('.weight')}.bias" for prefix in part.biases}
    missing = sorted(found - weights.keys())
    if missing:
        raise NodeError(f"{adapter.name}: changes {missing[0]}, which is not in the connected model: pick another LoRA")
    return found


def notice(weights: Mapping[str, Tensor], adapter: Adapter) -> str:
    """A warning about an adapter whose shapes fit this UNet but which was trained on another model; "" for none."""
    bias = weights.get(OUT_BIAS)
    if bias is None or not bias.is_floating_point():
        return ""
    on_miniature = miniature.is_miniature(bias.float().tolist())
    said = miniature.notice(of_miniature=adapter.of_miniature, on_miniature=on_miniature)
    return said and f"{adapter.name}: {said}"


def _fits(weight: Tensor | None, shape: tuple[int, ...]) -> bool:
    """Whether a change of this shape can be added. A linear layer may stand for a 1x1 convolution."""
    if weight is None:
        return False
    if not weight.is_floating_point():
        return True  # quantised and packed: its shape is known only after the host unpacks it
    ones = (1,) * (len(shape) - 2)
    return tuple(weight.shape) == shape or (shape[2:] == ones and tuple(weight.shape) == shape[:2])
