"""Recognises files that cannot be converted: other networks, other bases, files that are not adapters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from .errors import FileError, NotALora, UnknownKeys, WrongBase
from .keys import ARCHITECTURE, BASE
from .miniature import EARLIER

T = TypeVar("T")

LOOKED_AT, KEY_LENGTH = 2000, 1000
"""Most unknown names examined, and characters of each: enough to recognise a file, and fast for a hostile one."""


class Kind(NamedTuple):
    """A kind of file that is recognised by its tensor names and cannot be converted."""

    pattern: str
    name: str
    """with its article"""
    advice: str
    hosts_read: bool = False
    """the web UI loads it from its LoRA folder"""
    comfyui_reads: bool = False
    """so does ComfyUI"""


_AS_IT_IS = "the web UI and ComfyUI load it as it is; python -m convert.reduce makes a LoRA from it"
_CONTROLNET = "put it into the ControlNet folder"

KINDS = (
    Kind(r"\.hada_", "a LoHa (LyCORIS)", _AS_IT_IS, True, True),
    Kind(r"\.lokr_", "a LoKr (LyCORIS)", _AS_IT_IS, True, True),
    Kind(r"\.oft_|\.boft_|oft_blocks|oft_diag", "an OFT network", _AS_IT_IS, True, True),
    Kind(r"\.on_input$", "an IA3 network", "the web UI loads it as it is; ComfyUI does not read it", True),
    Kind(r"\.(a1|a2|b1|b2|bm)\.weight$", "a GLoRA network", _AS_IT_IS, True, True),
    Kind(r"motion_modules?[._]|temporal_transformer", "a motion LoRA or motion module (AnimateDiff)",
         "AnimateDiff's own extension or nodes load it, from their motion LoRA folder"),
    Kind(r"^(unet|text_encoder):\d+:(up|down)", "a LoRA of cloneofsimo's first trainer",
         "its keys number the layers instead of naming them: convert it with that program (lora_diffusion) first"),
    Kind(r"^(image_proj|ip_adapter)\.|to_[kv]_ip\b", "an IP-Adapter, or a FaceID one",
         "load it with an IP-Adapter extension or nodes; its separate LoRA file, if it has one, can be converted"),
    Kind(r"lllite_", "a ControlLLLite", "ControlNet extensions and nodes load it, from their ControlNet folder"),
    Kind(r"^lora_controlnet$|^control_lora", "a ControlNet-LoRA", _CONTROLNET),
    Kind(r"^control_model\.|^controlnet_|zero_convs\.|input_hint_block", "a ControlNet",
         _CONTROLNET),
    Kind(r"^(adapter\.)?body\.\d+\.(block|in_conv|resnets)|^adapter\.(body|conv_in)", "a T2I-Adapter",
         _CONTROLNET),
    Kind(r"^(320|640|768|1280|1024)\.[01]\.|^linear\.\d+\.(weight|bias)$", "a hypernetwork",
         "the web UI loads it from models/hypernetworks"),
    Kind(r"\bemb_params$|string_to_param|^clip_[lg]$", "a textual inversion embedding",
         "put it into the embeddings folder as it is"),
    Kind(r"^(lora_vae_|vae\.|first_stage_model\.\S*lora)|^(encoder|decoder)\.(down|up|mid)\S*lora", "a LoRA of the VAE",
         "neither the web UI nor ComfyUI applies one"),
)  # fmt: skip
"""In order of precedence: the first kind that any key matches is reported."""

CHECKPOINT = Kind(
    r"^model\.diffusion_model\.[\w.]+\.(weight|bias)$|^first_stage_model\.", "a whole checkpoint, not a LoRA",
    "put it into the checkpoint folder",
)  # fmt: skip

PART_OF_CHECKPOINT = Kind(
    r"^((encoder\.)?conv_in|(text_model\.)?embeddings\.token_embedding)\.weight$",
    "a whole UNet, VAE or text encoder, not a LoRA", "give the LoRA's own file",
)

BASES = (
    (r"lora_te3_|text_encoder_3|joint_blocks|joint_transformer|lora_transformer_|\bx_embedder", "SD3"),
    (r"double_blocks|single_blocks|single_transformer_blocks|^transformer\.", "Flux or another transformer"),
    (r"lora_te2_|text_encoder_2|label_emb|add_embedding|conditioner\.", "SDXL"),
    (r"(input_blocks|down_blocks|attentions)\S*transformer_blocks[._]([1-9]|0\d)", "SDXL"),
    (r"text_model[._]encoder[._]layers[._](1[2-9]|[2-9]\d)\b|layers_(1[2-9]|2\d)_", "SD2"),
    (r"lora_unet_blocks_|diffusion_model\.blocks\.|diffusion_model\.layers\.", "another transformer"),
)
"""Names that occur only in LoRAs of another base."""

_CLAIMS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("SDXL", ("sdxl",), ("stable-diffusion-xl",)),
    ("SD2", ("sd_v2",), ("stable-diffusion-v2",)),
    ("SD3", ("sd3",), ("stable-diffusion-3",)),
    ("Flux", ("flux",), ()),
    ("another architecture", ("wan", "hunyuan", "lumina", "chroma", "qwen", "auraflow", "pixart", "ltx", "cosmos", "anima",
                              "z-image", "hidream"), ()),
)  # fmt: skip
"""Base, prefixes of its names in metadata, and substrings."""

KNOWN_BY_WORD = (EARLIER,)
"""Bases with the same modules as Stable Diffusion 1.5, told apart only by `ss_base_model_version`."""

CONTEXT_WIDTHS = {1024: "SD2", 2048: "SDXL"}
"""Width of the prompt embedding -> the base."""


def refusal(path: Path, unknown: Sequence[str], *, others: bool = False) -> FileError:
    """The error for a file with these unknown names; an empty list is a file without tensors.

    `others`: whether the file also has known names.
    """
    if not unknown:
        return FileError(path, "contains no tensors, so it is not a LoRA")
    base = _first(BASES, unknown)
    kind = kind_of_keys(unknown)
    if kind is not None and (base is None or kind.hosts_read):
        return NotALora(path, kind.name, kind.advice, kind.hosts_read, kind.comfyui_reads)
    if base is not None:
        return WrongBase(path, base, f"is a LoRA of {base}")
    return UnknownKeys(path, unknown, others=others)


def is_nothing_known(keys: Sequence[str]) -> bool:
    """Whether these names belong to no known network or base, so that `--skip-unknown` may leave them out."""
    return _first(BASES, keys) is None and kind_of_keys(keys) is None


def kind_of_keys(keys: Iterable[str]) -> Kind | None:
    """The kind of file with these tensor names, if it is a known one."""
    return _first(tuple((kind.pattern, kind) for kind in (*KINDS, CHECKPOINT, PART_OF_CHECKPOINT)), keys)


def _first(rows: Sequence[tuple[str, T]], keys: Iterable[str]) -> T | None:
    names = [key[:KEY_LENGTH] for key in islice(keys, LOOKED_AT)]
    return next((found for pattern, found in rows if any(re.search(pattern, name) for name in names)), None)


def base_of_metadata(metadata: Mapping[str, str]) -> str | None:
    """The base named in the metadata, if it is a known one other than Stable Diffusion 1."""
    if metadata.get("ss_v2") == "True":
        return "SD2"
    for claim in (metadata.get(BASE, ""), metadata.get(ARCHITECTURE, "")):
        word = claim[:100].lower()
        for base, starts, parts in _CLAIMS:
            if word.startswith(starts) or any(part in word for part in parts):
                return base
    return None
