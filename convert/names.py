"""The spelling of modules and their parts in each form: two tables, used forwards to write and inverted to read.

A key is a prefix, a module's name in some spelling, and a suffix for the part of the adapter:

    lora_unet_ | down_blocks_0_attentions_0_proj_in | .lora_down.weight
    unet.      | down_blocks.0.attentions.0.proj_in | .lora.down.weight

Parts of a LoRA: `down` (rank, in[, k, k]), `up` (out, rank[, 1, 1]), `mid` (rank, rank, k, k), `alpha` (),
`magnitude` (DoRA, peft's), `dora_scale` (DoRA, LyCORIS's), `diff`, `w_norm` (as the weight) and `diff_b`, `b_norm` (out,).
Parts of other networks have LyCORIS's names (`hada_w1_a`, `lokr_w1`, …); for their shapes see `matrix.change`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from .sd15 import TEXT_ENCODER, UNET, Module, modules

FORMS = ("kohya", "diffusers", "peft")
"""The forms that can be written."""

LORA_PARTS = ("down", "up", "mid", "alpha", "magnitude", "dora_scale", "diff", "diff_b", "w_norm", "b_norm")
"""The parts of plain LoRA, LoCon and DoRA; all others belong to other networks."""

BUNDLED = "bundle_emb."
"""Prefix of embeddings that OneTrainer bundles with a LoRA: `bundle_emb.<token>.<vector>`."""


class Spelling(NamedTuple):
    """One way to name every module of a scope; `name` returns None for modules without such a name."""

    form: str
    """the form, in words"""
    style: str
    """the usual style of its factors' suffixes"""
    scope: str
    prefix: str
    name: Callable[[Module], str | None]
    writes: str = ""
    """the form that is written with this row"""


class Suffix(NamedTuple):
    """The suffix of a part."""

    part: str
    text: str
    """`*` stands for the adapter name that peft inserts in memory"""
    style: str = ""
    """as in `Spelling`; "" for parts with only one suffix"""
    writes: tuple[str, ...] = ()
    """the forms that are written with this row; "diffusers unet" is that form for one scope only"""


def _dotted(module: Module) -> str:
    return module.name


def _underscored(module: Module) -> str:
    return module.name.replace(".", "_")


def _underscored_but_last(module: Module) -> str:
    """diffusers' own conversion to kohya keeps one dot too many before a DoRA magnitude: `…_attn1.to_q`."""
    head, _, last = module.name.rpartition(".")
    return f"{head.replace('.', '_')}.{last}"


def _ldm(module: Module) -> str:
    return module.ldm


def _ldm_underscored(module: Module) -> str:
    return module.ldm.replace(".", "_")


def _short(module: Module) -> str:
    """The name in transformers >= 5, without the `text_model.` level."""
    return module.name[len("text_model.") :]


def _short_underscored(module: Module) -> str:
    return _short(module).replace(".", "_")


def _processor(module: Module) -> str | None:
    """The name in diffusers < 0.22, in the attention processor: `attn1.processor.to_q_lora`, `…to_out_lora`."""
    before, attention, projection = module.name.rpartition(".to_")
    return f"{before}.processor.to_{projection.removesuffix('.0')}" if attention else None


def _text_processor(module: Module) -> str | None:
    """The text encoder's name in the same versions: `self_attn.to_q_lora`."""
    before, attention, projection = module.name.rpartition(".self_attn.")
    return f"{before}.self_attn.to_{projection.removesuffix('_proj')}" if attention else None


_KOHYA, _PEFT, _DOTS, _PROCESSOR = "lora_down/lora_up", "lora_A/lora_B", "lora.down/lora.up", "to_q_lora"

_OLD = "diffusers attention processors"

SPELLINGS = (
    Spelling("kohya",                        _KOHYA, UNET, "lora_unet_", _underscored, writes="kohya"),
    Spelling("kohya",                        _KOHYA, UNET, "lora_unet_", _underscored_but_last),
    Spelling("kohya by diffusers",           _KOHYA, UNET, "base_model_model_", _underscored),
    Spelling("kohya by diffusers",           _KOHYA, UNET, "base_model_model_", _underscored_but_last),
    Spelling("kohya with LDM names",         _KOHYA, UNET, "lora_unet_", _ldm_underscored),
    Spelling("kohya with dots",              _KOHYA, UNET, "lora_unet.", _dotted),
    Spelling("SimpleTuner's LyCORIS",        _KOHYA, UNET, "lycoris_", _underscored),
    Spelling("diffusers",                    _DOTS,  UNET, "unet.", _dotted, writes="diffusers"),
    Spelling("diffusers with LDM names",     _DOTS,  UNET, "unet.", _ldm),
    Spelling(_OLD,                           _PROCESSOR, UNET, "unet.", _processor),
    Spelling("peft",                         _PEFT,  UNET, "base_model.model.", _dotted, writes="peft"),
    Spelling("peft",                         _PEFT,  UNET, "base_model.model.unet.", _dotted),
    Spelling("peft",                         _PEFT,  UNET, "unet.base_model.model.", _dotted),
    Spelling("module names without prefix",  _PEFT,  UNET, "", _dotted),
    Spelling("LDM names without prefix",     _PEFT,  UNET, "", _ldm),
    Spelling(f"{_OLD} without prefix",       _PROCESSOR, UNET, "", _processor),
    Spelling("ComfyUI trainer",              _KOHYA, UNET, "diffusion_model.", _ldm),
    Spelling("ComfyUI trainer",              _KOHYA, UNET, "model.diffusion_model.", _ldm),
    Spelling("kohya",                        _KOHYA, TEXT_ENCODER, "lora_te_", _underscored, writes="kohya"),
    Spelling("kohya",                        _KOHYA, TEXT_ENCODER, "lora_te_", _underscored_but_last),
    Spelling("kohya",                        _KOHYA, TEXT_ENCODER, "lora_te_", _short_underscored),
    Spelling("kohya",                        _KOHYA, TEXT_ENCODER, "lora_te1_", _underscored),
    Spelling("kohya",                        _KOHYA, TEXT_ENCODER, "lora_te1_", _short_underscored),
    Spelling("kohya with dots",              _KOHYA, TEXT_ENCODER, "lora_te.", _dotted),
    Spelling("SimpleTuner's LyCORIS",        _KOHYA, TEXT_ENCODER, "lycoris_", _underscored),
    Spelling("SimpleTuner's LyCORIS",        _KOHYA, TEXT_ENCODER, "lycoris_", _short_underscored),
    Spelling("diffusers",                    _DOTS,  TEXT_ENCODER, "text_encoder.", _dotted, writes="diffusers"),
    Spelling("diffusers",                    _DOTS,  TEXT_ENCODER, "text_encoder.", _short),
    Spelling(_OLD,                           _PROCESSOR, TEXT_ENCODER, "text_encoder.", _text_processor),
    Spelling("peft",                         _PEFT,  TEXT_ENCODER, "base_model.model.", _short, writes="peft"),
    Spelling("peft",                         _PEFT,  TEXT_ENCODER, "base_model.model.", _dotted),
    Spelling("peft",                         _PEFT,  TEXT_ENCODER, "base_model.model.text_encoder.", _short),
    Spelling("peft",                         _PEFT,  TEXT_ENCODER, "base_model.model.text_encoder.", _dotted),
    Spelling("peft",                         _PEFT,  TEXT_ENCODER, "text_encoder.base_model.model.", _short),
    Spelling("peft",                         _PEFT,  TEXT_ENCODER, "text_encoder.base_model.model.", _dotted),
    Spelling("module names without prefix",  _PEFT,  TEXT_ENCODER, "", _dotted),
    Spelling("module names without prefix",  _PEFT,  TEXT_ENCODER, "", _short),
    Spelling(f"{_OLD} without prefix",       _PROCESSOR, TEXT_ENCODER, "", _text_processor),
    *(
        Spelling("ComfyUI trainer",          _KOHYA, TEXT_ENCODER, prefix, name)
        for prefix in ("clip_l.transformer.", "text_encoders.clip_l.transformer.", "cond_stage_model.transformer.",
                       "clip_l.", "text_encoders.clip_l.", "text_encoders.", "cond_stage_model.clip_l.transformer.")
        for name in (_dotted, _short)
    ),
)  # fmt: skip

SUFFIXES = (
    Suffix("down", ".lora_down.weight", _KOHYA, ("kohya",)),
    Suffix("up", ".lora_up.weight", _KOHYA, ("kohya",)),
    Suffix("mid", ".lora_mid.weight", _KOHYA, ("kohya",)),
    Suffix("alpha", ".alpha", writes=("kohya",)),
    Suffix("dora_scale", ".dora_scale", writes=("kohya",)),
    Suffix("diff", ".diff", writes=("kohya",)),
    Suffix("diff_b", ".diff_b", writes=("kohya",)),
    Suffix("w_norm", ".w_norm", writes=("kohya",)),
    Suffix("b_norm", ".b_norm", writes=("kohya",)),
    Suffix("down", ".lora.down.weight", _DOTS, ("diffusers unet",)),
    Suffix("up", ".lora.up.weight", _DOTS, ("diffusers unet",)),
    Suffix("down", ".lora_linear_layer.down.weight", _DOTS, ("diffusers text_encoder",)),
    Suffix("up", ".lora_linear_layer.up.weight", _DOTS, ("diffusers text_encoder",)),
    Suffix("down", ".lora_A.weight", _PEFT, ("peft",)),
    Suffix("up", ".lora_B.weight", _PEFT, ("peft",)),
    Suffix("down", ".lora_A.*.weight", _PEFT),
    Suffix("up", ".lora_B.*.weight", _PEFT),
    Suffix("magnitude", ".lora_magnitude_vector", writes=("diffusers unet", "peft")),
    Suffix("magnitude", ".lora_magnitude_vector.weight", writes=("diffusers text_encoder",)),
    Suffix("magnitude", ".lora_magnitude_vector.*.weight"),
    Suffix("down", "_lora.down.weight", _PROCESSOR),
    Suffix("up", "_lora.up.weight", _PROCESSOR),
    *(Suffix(f"hada_{name}", f".hada_{name}") for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(Suffix(f"lokr_{name}", f".lokr_{name}") for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    *(Suffix(name, f".{name}.weight") for name in ("a1", "a2", "b1", "b2", "bm")),
    Suffix("oft_blocks", ".oft_blocks"),
    Suffix("rescale", ".rescale"),
    Suffix("on_input", ".on_input"),
)

IA3_WEIGHT = "weight"
"""The only part with the suffix `.weight`, which checkpoints use too: read only with kohya's prefixes."""


class Key(NamedTuple):
    """The meaning of a tensor's name."""

    module: Module
    part: str
    form: str
    """the form, in words"""


def parse(key: str) -> Key | None:
    """The meaning of a tensor's name, or None if it names no module of SD1.5 in a known form."""
    stem, _, rest = key.partition(".")
    row = _flat().get(stem)
    if row is not None and f".{rest}" in _suffixes():
        return _key(*row, _suffixes()[f".{rest}"])
    if row is not None and rest == IA3_WEIGHT:
        return Key(row[0], IA3_WEIGHT, row[1].form)
    tail = _tail(key)
    for suffix in _by_tail().get(tail, ()) or _in_memory(key, tail):
        if key.endswith(suffix.text):
            row = _spelled().get(key[: -len(suffix.text)])
            return _key(*row, suffix) if row is not None else None
    return None


def module_of(name: str) -> Module | None:
    """The module with this name, without a suffix, in any spelling, as in a checkpoint."""
    row = _spelled().get(name)
    return row[0] if row is not None else None


def _tail(key: str) -> str:
    """The end of a key from its last dot, or from the dot before if it ends in `.weight`."""
    last = key.rfind(".")
    return key[key.rfind(".", 0, last) if key[last:] == ".weight" else last :] if last > 0 else ""


def _in_memory(key: str, tail: str) -> tuple[Suffix, ...]:
    """The suffix of `<module>.lora_A.<adapter name>.weight`, including the adapter name."""
    before = key[: -len(tail)]
    suffix = _suffixes().get(f"{before[before.rfind('.') :]}.*.weight") if tail.endswith(".weight") else None
    return (suffix._replace(text=suffix.text.replace(".*.weight", tail)),) if suffix is not None else ()


def _key(module: Module, spelling: Spelling, suffix: Suffix) -> Key:
    if suffix.style in ("", spelling.style):
        return Key(module, suffix.part, spelling.form)
    joined = "and" if " with " in spelling.form else "with"
    return Key(module, suffix.part, f"{spelling.form} {joined} {suffix.style}")


def spell(form: str, module: Module, part: str) -> str:
    """The name of a part in a writable form, the inverse of `parse`. Raises `KeyError` if the form lacks the part."""
    return module_name(form, module) + parts_of(form, module.scope)[part]


@cache
def module_name(form: str, module: Module) -> str:
    """The prefix and name of a module in a writable form."""
    row = next(row for row in SPELLINGS if row.writes == form and row.scope == module.scope)
    return f"{row.prefix}{row.name(module)}"


@cache
def parts_of(form: str, scope: str) -> dict[str, str]:
    """The parts that a writable form can represent -> their suffix."""
    return {row.part: row.text for row in SUFFIXES if form in row.writes or f"{form} {scope}" in row.writes}


@cache
def _spelled() -> dict[str, tuple[Module, Spelling]]:
    """Every spelling of every module -> the module and the row of the table."""
    table: dict[str, tuple[Module, Spelling]] = {}
    for row in reversed(SPELLINGS):  # so that of two equal spellings the first row wins
        table.update((row.prefix + name, (module, row)) for name, module in _named(row.name, row.scope).items())
    return table


@cache
def _named(name: Callable[[Module], str | None], scope: str) -> dict[str, Module]:
    """A scope's modules by their name from one of the functions above."""
    named = ((name(module), module) for module in modules().values() if module.scope == scope)
    return {text: module for text, module in named if text is not None}


@cache
def _flat() -> dict[str, tuple[Module, Spelling]]:
    """The spellings without a dot, which end at a key's first dot."""
    return {name: row for name, row in _spelled().items() if "." not in name and row[1].prefix}


@cache
def _suffixes() -> dict[str, Suffix]:
    return {row.text: row for row in SUFFIXES}


@cache
def _by_tail() -> dict[str, list[Suffix]]:
    """Every suffix by its `_tail`, the longest first, so that none matches the end of a longer one."""
    table: dict[str, list[Suffix]] = {}
    for row in sorted(SUFFIXES, key=lambda row: -len(row.text)):
        table.setdefault(_tail(f"x{row.text}"), []).append(row)
    return table
