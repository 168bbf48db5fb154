"""The tensor names that each web UI can map to a layer: taken from their code, and tried with a file of each form."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple


class WebUI(Enum):
    """The web UI we run in; the value is its name in messages."""

    A1111 = "the web UI"
    FORGE = "Forge"
    REFORGE = "reForge"


class Naming(NamedTuple):
    """A naming scheme for layers."""

    words: str
    layer: str
    """pattern of the layer's name, without the part's name"""
    readers: frozenset[WebUI]


_ALL, _FORGES, _REFORGE = frozenset(WebUI), frozenset({WebUI.FORGE, WebUI.REFORGE}), frozenset({WebUI.REFORGE})

_LAYER = r"(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"

# A1111 v1.10.1: load_network in extensions-builtin/Lora/networks.py. Forge and reForge: model_lora_keys_unet and
# model_lora_keys_clip in their copies of ComfyUI's lora.py.
NAMINGS = (
    Naming("kohya",                               r"lora_unet_\w+",                           _ALL),
    Naming("kohya, text encoder",                 r"lora_te1?_text_model_\w+",                _ALL),
    Naming("ComfyUI's trainer",                   r"diffusion_model\.[\w.]+",                 _FORGES),
    Naming("attention processors",                r"(unet\.)?[\w.]+\.processor\.to_\w+",      _FORGES),
    Naming("diffusers, text encoder",             rf"text_encoder\.text_model\.encoder\.layers\.\d+\.{_LAYER}", _FORGES),
    Naming("ComfyUI's trainer, text encoder",     r"text_encoders\.clip_l\.[\w.]+",           _REFORGE),
)  # fmt: skip

_KOHYA_PARTS = r"\.lora_(down|up|mid|A|B)\.weight|\.alpha|\.dora_scale|\.diff|\.diff_b|\.w_norm|\.b_norm"
_COMFY_PARTS = rf"{_KOHYA_PARTS}|(_lora|\.lora|\.lora_linear_layer)\.(down|up)\.weight"
PARTS = {WebUI.A1111: _KOHYA_PARTS, WebUI.FORGE: _COMFY_PARTS, WebUI.REFORGE: _COMFY_PARTS}
"""Patterns of the part's name that each web UI reads."""


def unread(keys: Iterable[str], web_ui: WebUI) -> list[str]:
    """The tensors of a Stable Diffusion 1.5 LoRA that `web_ui` silently drops."""
    names = list(keys)
    layers = "|".join(naming.layer for naming in NAMINGS if web_ui in naming.readers)
    known = re.compile(rf"(?:{layers})(?:{PARTS[web_ui]})")
    dropped = [name for name in names if known.fullmatch(name) is None]
    if web_ui is WebUI.A1111:  # it renames lora_A and lora_B but drops their alpha (network_lora.py)
        present = set(names)
        dropped += [name for name in names if name.endswith(".alpha") and f"{name[:-6]}.lora_A.weight" in present]
    return dropped
