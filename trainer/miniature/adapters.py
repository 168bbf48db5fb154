"""Converts LoRAs of the miniature between the narrow network and the one widened to SD1.5's shapes.

A narrow LoRA can always be widened. A wide one can be narrowed only if its copies are equal, as after `widened`. One that was
trained on the wide checkpoint has different numbers in the copies (Adam's steps are per element) and no narrow equivalent.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from convert import keys
from convert.errors import JobError
from convert.lora import SD15, Lora, LoraModule
from convert.miniature import KEY, MINIATURE
from convert.sd15 import UNET, Module
from convert.stream import write_container
from convert.tensors import Tensor as Bytes
from convert.write import metadata, outputs
from trainer.miniature import widen
from trainer.miniature.narrow import NAME, TEXT_LAYERS
from trainer.miniature.widen import Factors, Rule

TOLERANCE = 1e-3
"""Largest difference between copies, relative to the tensor's largest number: float16 rounds equal copies equally."""

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}

Change = Callable[[Rule, Tensor], Tensor]

_PARTS: dict[str, tuple[Change, Change]] = {  # part -> narrow to wide, wide to narrow
    "up": (Rule.up, Rule.narrow_up),
    "down": (Rule.down, Rule.narrow_down),
    "mid": (lambda _, core: core, lambda _, core: core),
    "magnitude": (Rule.magnitude, Rule.narrow_magnitude),
    "dora_rows": (Rule.magnitude, Rule.narrow_magnitude),
    "dora_columns": (Rule.column_magnitude, Rule.narrow_column_magnitude),
    **dict.fromkeys(("diff", "diff_b", "w_norm", "b_norm"), (Rule.weight, Rule.narrow_weight)),
}


def widened(lora: Lora, by: Factors = widen.SD15) -> Lora:
    """Widen the narrow miniature's LoRA, so that every host reads it as an SD1.5 LoRA."""
    modules = {name: _module(module, module.module.shape, partial(_wide, rule=_rule(module.module, by)))
               for name, module in lora.modules.items()}
    return replace(lora, modules=modules, base=SD15,
                   metadata={**lora.metadata, KEY: MINIATURE, keys.BASE: SD15})


def narrowed(lora: Lora, by: Factors = widen.SD15) -> Lora:
    """The inverse of `widened`. Raises JobError if `lora` was trained on the wide checkpoint itself."""
    modules = {}
    for name, module in lora.modules.items():
        rule = _rule(module.module, by)
        if module.module.scope != UNET and _layer(module.module) >= TEXT_LAYERS:
            raise _not_narrow(lora, name)
        shape = tuple(n // factor for n, factor in zip(module.shape, (rule.rows.factor, rule.columns.factor)))
        modules[name] = _module(module, (*shape, *module.shape[2:]), partial(_narrow, rule=rule, lora=lora, name=name))
    kept = {key: value for key, value in lora.metadata.items() if key != KEY}
    return replace(lora, modules=modules, base=NAME, metadata={**kept, keys.BASE: NAME})


def lora_bytes(lora: Lora, name: str, form: str = "kohya") -> bytes:
    """The LoRA as a file in one of `convert`'s forms, with the title `name` if its metadata has none."""
    buffer = io.BytesIO()
    write_container(buffer, outputs(lora, form), metadata(lora, name, form))
    return buffer.getvalue()


def _rule(module: Module, by: Factors) -> Rule:
    return widen.rule(widen.UNET if module.scope == UNET else widen.TEXT, module.name, by)


def _layer(module: Module) -> int:
    """The layer of the text encoder, 0 for its final norm."""
    pieces = module.name.split(".")
    return int(pieces[pieces.index("layers") + 1]) if "layers" in pieces else 0


def _module(module: LoraModule, shape: tuple[int, ...], change: Callable[[str, Tensor], Tensor]) -> LoraModule:
    parts = {}
    for part, stored in module.parts.items():
        kind = f"dora_{module.dora}" if part == "dora_scale" else part
        tensor = change(kind, _tensor(stored)).to(_DTYPES[stored.dtype]).contiguous()
        data = tensor.view(torch.uint8).numpy().tobytes()
        parts[part] = Bytes(stored.dtype, tuple(tensor.shape), len(data), data=data)
    return replace(module, shape=shape, parts=parts)


def _wide(kind: str, narrow: Tensor, rule: Rule) -> Tensor:
    return _PARTS[kind][0](rule, narrow)


def _narrow(kind: str, wide: Tensor, rule: Rule, lora: Lora, name: str) -> Tensor:
    to_wide, to_narrow = _PARTS[kind]
    narrow = to_narrow(rule, wide)
    if (to_wide(rule, narrow) - wide).abs().max() > TOLERANCE * wide.abs().max():
        raise _not_narrow(lora, name)
    return narrow


def _not_narrow(lora: Lora, module: str) -> JobError:
    return JobError(f"{lora.path}: was trained on a full-size checkpoint (in {module} the copies of a channel differ), so it "
                    "does not fit the narrow miniature: give --base the checkpoint that it was trained on")


def _tensor(stored: Bytes) -> Tensor:
    if stored.dtype not in _DTYPES:
        raise JobError(f"{stored.file}: its factors are {stored.dtype}: expected fp32, fp16 or bf16")
    raw = torch.frombuffer(bytearray(stored.read()), dtype=_DTYPES[stored.dtype])
    return raw.reshape(stored.shape).float()
