"""Loads a LoRA file for ComfyUI: tensors under kohya's names, which every ComfyUI version reads.

`prefix` below is a kohya module name, `lora_unet_…` or `lora_te_…`; `<prefix>.lora_down.weight` is one of its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..convert import FileError, JobError, Lora, NotFinite, convert_bytes, read
from ..convert.contents import ADAPTER_CONFIG
from ..convert.lora import SD15
from ..convert.miniature import EARLIER, is_of_miniature
from ..convert.names import module_name
from ..convert.sd15 import TEXT_ENCODER, UNET
from .errors import NodeError
from .stamps import Stamp, stamp
from .wording import sentence

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 8
"""Most files kept in memory. A workflow with more adapters rereads some of them."""


@dataclass(frozen=True)
class Part:
    """An adapter's part for one network."""

    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    """prefix -> shape of the weight it patches"""
    weights: frozenset[str]
    """prefixes that change a weight"""
    biases: frozenset[str]
    """prefixes that change a bias"""


@dataclass(frozen=True)
class Adapter:
    """A LoRA file that was read and checked."""

    name: str
    """its name in models/loras, for messages"""
    base: str
    """the model it was trained on; `convert.lora.SD15` for Stable Diffusion 1.x"""
    unet: Part
    text_encoder: Part
    of_miniature: bool
    """trained on this project's miniature, which has Stable Diffusion 1.5's shapes"""

    @property
    def trained_on(self) -> str:
        """The base in words, and what to do if it does not fit the connected model."""
        if self.base == SD15:
            return "Stable Diffusion 1.5: connect a checkpoint of it, or pick another LoRA"
        if self.base == EARLIER:
            return "an earlier miniature, which this project no longer has: train it again with python -m trainer --demo"
        return f"'{self.base}', not on Stable Diffusion 1.5: connect a checkpoint of that base, or pick another LoRA"


def fingerprint(path: Path) -> Stamp:
    """Changes if the file, or the peft configuration beside it (which holds its alpha), is replaced or rewritten."""
    return stamp(path, path.with_name(ADAPTER_CONFIG))


def load(path: Path, name: str) -> Adapter:
    """Read the LoRA at `path`, or return it from memory if the file has not changed. `name` is for messages.

    Raises `NodeError` unless the file is a sound LoRA of Stable Diffusion 1.5 that ComfyUI can apply completely.
    """
    try:
        return _load(path, name, fingerprint(path))
    except JobError as error:
        raise NodeError(sentence(error, name)) from None
    except OSError as error:
        raise NodeError(f"{name}: cannot be read: {error.strerror or error}") from None


@lru_cache(maxsize=KEPT)
def _load(path: Path, name: str, known: Stamp) -> Adapter:
    from safetensors.torch import load as tensors_of
    from torch import inference_mode

    lora = read(path)
    data = convert_bytes(path, to="kohya")
    if fingerprint(path) != known:
        raise FileError(path, "was replaced while it was being read", "queue the workflow again")
    with inference_mode(False):  # the tensors are cached, and a later node may need gradients
        tensors = tensors_of(data)  # copies: with a memory-mapped file, truncating it would crash the host
    _refuse_not_finite(tensors, path)
    unet, text_encoder = _part(lora, UNET, tensors), _part(lora, TEXT_ENCODER, tensors)
    return Adapter(name, lora.base, unet, text_encoder, is_of_miniature(lora.metadata))


def _refuse_not_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    bad = [key for key, tensor in tensors.items() if not bool(tensor.float().isfinite().all())]
    if bad:
        raise NotFinite(path, bad)


def _part(lora: Lora, scope: str, tensors: Mapping[str, Tensor]) -> Part:
    modules = {module_name("kohya", module.module): module for module in lora.in_scope(scope)}
    for prefix, module in modules.items():
        if module.rank and ("diff" in module.parts or "w_norm" in module.parts):
            raise FileError(lora.path, f"{prefix} has factors and a whole difference, and ComfyUI would apply only one of them",
                            "merge it into a checkpoint instead (python -m convert.bake)")  # fmt: skip
    return Part(
        {key: tensor for key, tensor in tensors.items() if key.partition(".")[0] in modules},
        {prefix: module.shape for prefix, module in modules.items()},
        frozenset(p for p, module in modules.items() if module.rank or "diff" in module.parts or "w_norm" in module.parts),
        frozenset(p for p, module in modules.items() if "diff_b" in module.parts or "b_norm" in module.parts),
    )
