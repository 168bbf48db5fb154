"""One table of names: how each form spells a module and its parts. Reading inverts it; nothing is kept by hand twice.

A key is a prefix, a module's name in some spelling, and a suffix that says which part of the adapter it is:

    lora_unet_ | down_blocks_0_attentions_0_proj_in | .lora_down.weight
    unet.      | down_blocks.0.attentions.0.proj_in | .lora.down.weight

Parts: `down` (rank, in[, k, k]), `up` (out, rank[, 1, 1]), `mid` (rank, rank, k, k), `alpha` (),
`magnitude` (DoRA, peft's), `dora_scale` (DoRA, LyCORIS's),
`diff`, `w_norm` (as the weight) and `diff_b`, `b_norm` (out,).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from .sd15 import TEXT_ENCODER, UNET, Module, modules

FORMS = ("kohya", "diffusers", "peft")
"""The forms that can be written."""


class Spelling(NamedTuple):
    """One way to name every module of a scope; `name` answers None for modules it does not exist for."""

    family: str
    scope: str
    prefix: str
    name: Callable[[Module], str | None]


def _dotted(module: Module) -> str:
    return module.name


def _underscored(module: Module) -> str:
    return module.name.replace(".", "_")


def _ldm(module: Module) -> str:
    return module.ldm


def _ldm_underscored(module: Module) -> str:
    return module.ldm.replace(".", "_")


def _short(module: Module) -> str:
    """transformers >= 5 has no `text_model.` level."""
    return module.name[len("text_model.") :]


def _short_underscored(module: Module) -> str:
    return _short(module).replace(".", "_")


def _processor(module: Module) -> str | None:
    """diffusers < 0.22 kept the factors in the attention processor: `attn1.processor.to_q_lora`, `…to_out_lora`."""
    if ".attn" not in module.name:
        return None
    return re.sub(r"\.(attn\d)\.", r".\1.processor.", module.name).replace("to_out.0", "to_out")


def _text_processor(module: Module) -> str | None:
    """The same time's text encoder: `self_attn.to_q_lora`."""
    if ".self_attn." not in module.name:
        return None
    return re.sub(r"\.(q|k|v|out)_proj$", r".to_\1", module.name)


SPELLINGS = (
    # the first row of a family and scope is the one that is written
    Spelling("kohya",      UNET, "lora_unet_", _underscored),
    Spelling("kohya-ldm",  UNET, "lora_unet_", _ldm_underscored),
    Spelling("diffusers",  UNET, "unet.", _dotted),
    Spelling("diffusers",  UNET, "unet.", _processor),
    Spelling("peft",       UNET, "base_model.model.", _dotted),
    Spelling("peft",       UNET, "base_model.model.unet.", _dotted),
    Spelling("peft",       UNET, "unet.base_model.model.", _dotted),
    Spelling("unprefixed", UNET, "", _dotted),
    Spelling("unprefixed", UNET, "", _processor),
    Spelling("comfyui",    UNET, "diffusion_model.", _ldm),
    Spelling("comfyui",    UNET, "model.diffusion_model.", _ldm),
    Spelling("kohya",      TEXT_ENCODER, "lora_te_", _underscored),
    Spelling("kohya",      TEXT_ENCODER, "lora_te_", _short_underscored),
    Spelling("kohya",      TEXT_ENCODER, "lora_te1_", _underscored),
    Spelling("kohya",      TEXT_ENCODER, "lora_te1_", _short_underscored),
    Spelling("diffusers",  TEXT_ENCODER, "text_encoder.", _dotted),
    Spelling("diffusers",  TEXT_ENCODER, "text_encoder.", _short),
    Spelling("diffusers",  TEXT_ENCODER, "text_encoder.", _text_processor),
    Spelling("peft",       TEXT_ENCODER, "base_model.model.", _short),
    Spelling("peft",       TEXT_ENCODER, "base_model.model.", _dotted),
    Spelling("peft",       TEXT_ENCODER, "base_model.model.text_encoder.", _short),
    Spelling("peft",       TEXT_ENCODER, "base_model.model.text_encoder.", _dotted),
    Spelling("peft",       TEXT_ENCODER, "text_encoder.base_model.model.", _short),
    Spelling("peft",       TEXT_ENCODER, "text_encoder.base_model.model.", _dotted),
    Spelling("unprefixed", TEXT_ENCODER, "", _dotted),
    Spelling("unprefixed", TEXT_ENCODER, "", _short),
    Spelling("unprefixed", TEXT_ENCODER, "", _text_processor),
    Spelling("comfyui",    TEXT_ENCODER, "clip_l.transformer.", _ldm),
    Spelling("comfyui",    TEXT_ENCODER, "text_encoders.clip_l.transformer.", _ldm),
    Spelling("comfyui",    TEXT_ENCODER, "cond_stage_model.transformer.", _ldm),
)  # fmt: skip

# (part, style) of each suffix; `*` stands for the adapter name that peft puts there in memory.
SUFFIXES = {
    ".lora_down.weight": ("down", "kohya"),
    ".lora_up.weight": ("up", "kohya"),
    ".lora_mid.weight": ("mid", "kohya"),
    ".dora_scale": ("dora_scale", "any"),
    ".alpha": ("alpha", "any"),
    ".diff": ("diff", "any"),
    ".diff_b": ("diff_b", "any"),
    ".w_norm": ("w_norm", "any"),
    ".b_norm": ("b_norm", "any"),
    ".lora_A.weight": ("down", "peft"),
    ".lora_B.weight": ("up", "peft"),
    ".lora_A.*.weight": ("down", "peft"),
    ".lora_B.*.weight": ("up", "peft"),
    ".lora_magnitude_vector": ("magnitude", "any"),
    ".lora_magnitude_vector.weight": ("magnitude", "any"),
    ".lora_magnitude_vector.*.weight": ("magnitude", "any"),
    ".lora.down.weight": ("down", "diffusers"),
    ".lora.up.weight": ("up", "diffusers"),
    ".lora_linear_layer.down.weight": ("down", "diffusers"),
    ".lora_linear_layer.up.weight": ("up", "diffusers"),
    "_lora.down.weight": ("down", "processor"),
    "_lora.up.weight": ("up", "processor"),
}

WRITTEN = {
    "kohya": {
        "down": ".lora_down.weight", "up": ".lora_up.weight", "mid": ".lora_mid.weight", "alpha": ".alpha",
        "dora_scale": ".dora_scale", "diff": ".diff", "diff_b": ".diff_b", "w_norm": ".w_norm", "b_norm": ".b_norm",
    },
    "diffusers": {
        "down": ".lora.down.weight", "up": ".lora.up.weight", "magnitude": ".lora_magnitude_vector",
    },
    "peft": {
        "down": ".lora_A.weight", "up": ".lora_B.weight", "magnitude": ".lora_magnitude_vector",
    },
}  # fmt: skip
"""Parts that each form has, and their suffix. (The text encoder's in diffusers: see `spell`.)"""

_LABELS = {
    ("kohya", "peft"): "kohya with lora_A/lora_B",
    ("diffusers", "peft"): "diffusers with lora_A/lora_B",
    ("diffusers", "processor"): "diffusers attention processors",
    ("unprefixed", "processor"): "attention processors without prefix",
    ("kohya-ldm", "kohya"): "kohya with LDM names",
    ("comfyui", "kohya"): "ComfyUI trainer",
    ("unprefixed", "peft"): "module names without prefix",
    ("unprefixed", "diffusers"): "module names without prefix",
}


class Key(NamedTuple):
    """What a tensor's name says."""

    module: Module
    part: str
    form: str
    """the form in words: `kohya`, `diffusers`, `peft`, or one of the variants that are only read"""


def parse(key: str) -> Key | None:
    """The meaning of a tensor's name, or None where it names no module of SD1.5 in any known form."""
    match = _suffix_pattern().search(key)
    if match is None:
        return None
    named = _spelled().get(key[: match.start()])
    if named is None:
        return None
    module, family = named
    part, style = SUFFIXES[_star(match.group())]
    form = family if style in (family, "any") else _LABELS.get((family, style), f"{family} with {style} factors")
    return Key(module, part, form)


def spell(form: str, module: Module, part: str) -> str:
    """The name of a part in a writable form, the inverse of `parse`; `KeyError` where the form has no such part."""
    suffix = WRITTEN[form][part]
    if form == "diffusers" and module.scope == TEXT_ENCODER:
        suffix = suffix.replace(".lora.", ".lora_linear_layer.")
    return module_name(form, module) + suffix


def module_name(form: str, module: Module) -> str:
    """The prefix and name of a module in a writable form."""
    row = next(row for row in SPELLINGS if row.family == form and row.scope == module.scope)
    return f"{row.prefix}{row.name(module)}"


@cache
def _spelled() -> dict[str, tuple[Module, str]]:
    """Every spelling of every module -> the module and the family of the spelling."""
    table: dict[str, tuple[Module, str]] = {}
    for row in SPELLINGS:
        for module in modules().values():
            name = row.name(module) if module.scope == row.scope else None
            if name is not None:
                table.setdefault(row.prefix + name, (module, row.family))
    return table


@cache
def _suffix_pattern() -> re.Pattern[str]:
    longest_first = sorted(SUFFIXES, key=len, reverse=True)
    alternatives = "|".join(re.escape(suffix).replace(r"\*", r"[^.]+") for suffix in longest_first)
    return re.compile(f"(?:{alternatives})$")


def _star(suffix: str) -> str:
    return suffix if suffix in SUFFIXES else re.sub(r"^(\.\w+)\.[^.]+\.weight$", r"\1.*.weight", suffix)
