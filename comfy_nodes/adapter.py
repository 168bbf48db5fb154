"""A LoRA file as the host takes it: tensors under kohya's names, which every ComfyUI understands.

`prefix` below is a kohya module name, `lora_unet_…` or `lora_te_…`; `<prefix>.lora_down.weight` is one of its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..convert import JobError, Lora, convert_bytes, read
from ..convert.lora import SD15
from ..convert.names import module_name
from ..convert.read import ADAPTER_CONFIG
from ..convert.sd15 import TEXT_ENCODER, UNET
from .errors import NodeError
from .stamps import Stamp, stamp

if TYPE_CHECKING:
    from torch import Tensor

_WORDS = (
    (r"only (?:LoRAs of )?Stable Diffusion 1\.5 can be converted",
     "this node applies LoRAs of Stable Diffusion 1.5: pick one, or use ComfyUI's own Load LoRA with that base's checkpoint"),
    (r"cannot be written as kohya", "cannot be applied in ComfyUI"),
    (r" \(--check lists them\)", " (the node Scribble LoRA Info lists them)"),
)  # fmt: skip
_SAYS_WHAT_TO_DO = re.compile(r"\b(pick|again|download|load it|merge it|fetch)\b")

KEPT = 4
"""Files in memory at most: a workflow with more adapters than that reads some of them again."""


@dataclass(frozen=True)
class Part:
    """What is for one network."""

    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    """prefix -> shape of the weight it patches"""
    weights: frozenset[str]
    """prefixes that change a weight"""
    biases: frozenset[str]
    """prefixes that change a bias"""


@dataclass(frozen=True)
class Adapter:
    """A file, read and found sound."""

    name: str
    base: str
    """what it was trained on; `convert.lora.SD15` for Stable Diffusion 1.x"""
    unet: Part
    text_encoder: Part

    @property
    def for_sd15(self) -> bool:
        return self.base == SD15


def fingerprint(path: Path) -> Stamp:
    """Changes when the file is replaced or rewritten, or the peft configuration beside it, which holds its alpha."""
    return stamp(path, path.with_name(ADAPTER_CONFIG))


def load(path: Path, name: str) -> Adapter:
    """Read the LoRA at `path`, or take it from memory where the file has not changed since. `name` is for messages.

    Raises `NodeError` where the file is no sound LoRA of Stable Diffusion 1.5 that ComfyUI can apply whole.
    """
    try:
        return _load(path, name, fingerprint(path))
    except JobError as error:
        raise NodeError(in_node_words(str(error), path, name)) from None
    except OSError as error:
        raise NodeError(f"{name}: cannot be read: {error.strerror or error}") from None


def in_node_words(message: str, path: Path, name: str) -> str:
    """`convert`'s sentence, as somebody needs it who has a graph before them and no command line."""
    text = message.replace(str(path), name)
    for pattern, words in _WORDS:
        text = re.sub(pattern, words, text)
    return text if _SAYS_WHAT_TO_DO.search(text) else f"{text}; get this file again, or pick another"


@lru_cache(maxsize=KEPT)
def _load(path: Path, name: str, known: Stamp) -> Adapter:
    from safetensors.torch import load as tensors_of
    from torch import inference_mode

    lora = read(path)
    data = convert_bytes(path, to="kohya")
    if fingerprint(path) != known:
        raise JobError(f"{path}: was replaced while it was read: queue it again")
    with inference_mode(False):  # they stay in memory, and a later user may need gradients
        tensors = tensors_of(data)  # copies: a mapped file that somebody truncates would end the host
    _refuse_not_finite(tensors, path)
    return Adapter(name, lora.base, _part(lora, UNET, tensors), _part(lora, TEXT_ENCODER, tensors))


def _refuse_not_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    bad = [key for key, tensor in tensors.items() if not bool(tensor.float().isfinite().all())]
    if bad:
        raise JobError(
            f"{path}: {len(bad)} of its tensors hold NaN or infinite numbers, so every picture would be black: {bad[0]}; "
            "take another checkpoint of its training or download it again"
        )


def _part(lora: Lora, scope: str, tensors: Mapping[str, Tensor]) -> Part:
    modules = {module_name("kohya", module.module): module for module in lora.in_scope(scope)}
    for prefix, module in modules.items():
        if module.rank and ("diff" in module.parts or "w_norm" in module.parts):
            raise JobError(f"{lora.path}: {prefix} has factors and a whole difference, of which ComfyUI would apply one: "
                           "merge it into a checkpoint instead (python -m convert.bake)")  # fmt: skip
    return Part(
        {key: tensor for key, tensor in tensors.items() if key.partition(".")[0] in modules},
        {prefix: module.shape for prefix, module in modules.items()},
        frozenset(p for p, module in modules.items() if module.rank or "diff" in module.parts or "w_norm" in module.parts),
        frozenset(p for p, module in modules.items() if "diff_b" in module.parts or "b_norm" in module.parts),
    )
