"""Putting an adapter onto a model: all of it or an error. The arithmetic is the host's; every module is counted.

`Patcher` is ComfyUI's `ModelPatcher`, or its `CLIP`, which has one. ComfyUI only logs what it does not apply (a key it
does not know, a shape that does not fit), so all of that is settled before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .adapter import Adapter, Part
from .errors import NodeError

if TYPE_CHECKING:
    from torch import Tensor

KeyMap = Mapping[str, str]
"""prefix -> name of the weight in the host's model"""

LoadLora = Callable[[Mapping[str, "Tensor"], KeyMap], Mapping[str, Any]]
"""`comfy.lora.load_lora`: tensors by name -> patches by weight"""


class Patcher(Protocol):
    def clone(self) -> Any: ...
    def add_patches(self, patches: Mapping[str, Any], strength_patch: float = 1.0) -> Iterable[str]: ...


P = TypeVar("P", bound=Patcher)


def patched(
    patcher: P, weights: Mapping[str, Tensor], keys: KeyMap, part: Part, adapter: Adapter, scale: float, load_lora: LoadLora
) -> P:
    """A clone of `patcher` with `part` added at `scale`; `patcher` itself where there is nothing to do.

    Args:
        weights: the network's state dict.
        keys: the host's map for this network. Names it lacks are not applied by ComfyUI.

    Raises:
        NodeError: not every module of the part fits the network. `patcher` is as it was.
    """
    if scale == 0 or not part.shapes:
        return patcher
    wanted = _targets(weights, keys, part, adapter)
    patches = load_lora(part.tensors, {prefix: keys[prefix] for prefix in part.shapes})
    clone = patcher.clone()
    applied = set(clone.add_patches(patches, scale))
    if applied != wanted:
        raise NodeError(f"{adapter.name}: ComfyUI applied {len(applied & wanted)} of its {len(wanted)} changes, so it was "
                        "left off: please report this with the versions of both")  # fmt: skip
    return clone


def _targets(weights: Mapping[str, Tensor], keys: KeyMap, part: Part, adapter: Adapter) -> set[str]:
    """The names of all weights and biases that must change. Raises where the network is another one."""
    fitting = [prefix for prefix, shape in part.shapes.items() if _fits(weights.get(keys.get(prefix, "")), shape)]
    if len(fitting) < len(part.shapes):
        what = "CLIP" if part is adapter.text_encoder else "MODEL"
        trained_on = "Stable Diffusion 1.5" if adapter.for_sd15 else f"'{adapter.base}', not on Stable Diffusion 1.5"
        raise NodeError(
            f"{adapter.name}: {len(fitting)} of its {len(part.shapes)} modules fit the connected {what}: it was trained on "
            f"{trained_on}: connect a checkpoint of that base, or pick another LoRA"
        )
    found = {keys[prefix] for prefix in part.weights}
    found |= {f"{keys[prefix].removesuffix('.weight')}.bias" for prefix in part.biases}
    missing = sorted(found - weights.keys())
    if missing:
        raise NodeError(f"{adapter.name}: changes {missing[0]}, which is not in the connected model: pick another LoRA")
    return found


def _fits(weight: Tensor | None, shape: tuple[int, ...]) -> bool:
    """Whether a change of this shape can be added. A linear layer may stand for a 1x1 convolution."""
    if weight is None:
        return False
    if not weight.is_floating_point():
        return True  # quantised and packed: the host unpacks it, and its shape says nothing here
    ones = (1,) * (len(shape) - 2)
    return tuple(weight.shape) == shape or (shape[2:] == ones and tuple(weight.shape) == shape[:2])
