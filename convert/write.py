"""Turns a `Lora` into the tensors, names and configuration of one of the writable forms (`names.FORMS`)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import dtypes, names
from .errors import FileError, FormLacks, quote
from .lora import FULL_PARTS, Lora, LoraModule, commonest
from .metadata import complete
from .peft_config import METADATA_KEY
from .sd15 import TEXT_ENCODER, UNET
from .stream import Output
from .tensors import Tensor
from .words import Note, counted

_DORA_REFUSED = {
    ("kohya", "peft"): (
        "peft's DoRA magnitudes are one per output row of the merged weight, while the web UI normalises per "
        "input column and ComfyUI normalises the base weight, so a kohya file cannot have the same effect",
        "merge it into a checkpoint instead (python -m convert.bake)",
    ),
    ("diffusers", "columns"): (
        "its DoRA magnitudes are one per input column, and peft, which diffusers uses, only has them per output row", "",
    ),
    ("peft", "columns"): ("its DoRA magnitudes are one per input column, and peft only has them per output row", ""),
}  # fmt: skip
"""(form, kind of DoRA) -> why the form cannot represent it, and the remedy."""

_PART_NAMES = {
    "mid": "a Tucker core (lora_mid)", "diff": "a full difference (.diff)", "diff_b": "a bias difference (.diff_b)",
    "w_norm": "a norm's difference (.w_norm)", "b_norm": "a norm's bias difference (.b_norm)",
}  # fmt: skip


def outputs(lora: Lora, form: str, *, dtype: str | None = None, fold: bool = False) -> list[Output]:
    """The tensors to write, including alphas if the form stores them as tensors.

    Args:
        form: one of `names.FORMS`.
        dtype: a safetensors float dtype to cast to; None copies bytes.
        fold: multiply each `up` by the module's scale, so that alpha equals the rank.

    Raises:
        FormLacks: the form cannot represent something in the file.
    """
    refuse_what_the_form_lacks(lora, form)
    result = []
    for module in lora.modules.values():
        for part, tensor in module.parts.items():
            scale = module.scale if fold and part == "up" else 1.0
            result.append(_output(form, module, part, tensor, dtype or tensor.dtype, scale))
        if module.rank and form == "kohya":
            alpha = Tensor.scalar(float(module.rank) if fold else module.alpha)
            result.append(Output(names.spell(form, module.module, "alpha"), alpha, (), "F32"))
    for key, tensor in lora.embeddings.items():
        result.append(Output(key, tensor, tensor.shape, dtype if dtype and tensor.dtype in dtypes.FLOATS else tensor.dtype))
    return result


def refuse_what_the_form_lacks(lora: Lora, form: str) -> None:
    """Raise `FormLacks` if `form` cannot represent something in the file."""
    lacks = what_is_lacking(lora, form)
    if lacks is not None:
        raise lacks


def what_is_lacking(lora: Lora, form: str) -> FormLacks | None:
    """The error of writing `lora` in `form`, None if the form can represent all of it."""
    for module in lora.modules.values():
        reason, advice = _DORA_REFUSED.get((form, module.dora or ""), ("", ""))
        if reason:
            part = "magnitude" if module.dora == "peft" else "dora_scale"
            having = [name for name, other in lora.modules.items() if other.dora == module.dora]
            return FormLacks(lora.path, form, part, having, reason, advice)
    if form == "kohya":
        return None
    if lora.embeddings:
        reason = f"it has no place for an embedding: {quote(next(iter(lora.embeddings)))}"
        return FormLacks(lora.path, form, "embedding", [], reason, "--split-embeddings writes them separately")
    for part, what in _PART_NAMES.items():
        having = [name for name, module in lora.modules.items() if part in module.parts]
        if having:
            more = f" and {len(having) - 1} more" if len(having) > 1 else ""
            return FormLacks(lora.path, form, part, having, f"it has no place for {what}: {having[0]}{more}")
    return None


def _output(form: str, module: LoraModule, part: str, tensor: Tensor, dtype: str, scale: float) -> Output:
    shape = tensor.shape
    if part in ("magnitude", "dora_scale") and form != "kohya":
        out = module.shape[0]
        part, shape = "magnitude", (out,) if len(module.shape) == 2 else (1, out, 1, 1)  # peft's shapes
    return Output(names.spell(form, module.module, part), tensor, shape, dtype, scale)


def folded(lora: Lora) -> Lora:
    """The LoRA that `outputs(fold=True)` writes: every alpha equals the rank."""
    return replace(lora, modules={name: replace(m, alpha=float(m.rank)) for name, m in lora.modules.items()})


def metadata(lora: Lora, name: str, form: str) -> dict[str, str]:
    """The metadata to write in `form`; `name` is the title for a file without one."""
    result = complete(lora, name, form)
    if form == "diffusers":
        flat = {
            f"{scope}.{key}": value
            for scope in (UNET, TEXT_ENCODER)
            for key, value in peft_config(lora.in_scope(scope)).items()
        }
        result[METADATA_KEY] = json.dumps(flat, indent=2, sort_keys=True)
    return result


def peft_config(modules: Iterable[LoraModule]) -> dict[str, Any]:
    """The `LoraConfig` with which peft rebuilds these modules and their scale; empty without modules."""
    found = list(modules)
    if not found:
        return {}
    by_name = {_target(module): module for module in found}
    rank = commonest([module.rank for module in found])
    alpha = commonest([module.alpha for module in found])
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {name: module.rank for name, module in by_name.items() if module.rank != rank},
        "alpha_pattern": {name: _whole(module.alpha) for name, module in by_name.items() if module.alpha != alpha},
        "target_modules": sorted(by_name),
        "use_dora": any(module.dora for module in found),
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def _target(module: LoraModule) -> str:
    """The end of the module's name that transformers 4, with its `text_model.` level, and 5 have in common."""
    name = module.module.name
    return name[len("text_model.") :] if module.module.scope == TEXT_ENCODER else name


def _whole(value: float) -> float:
    return int(value) if value == int(value) and abs(value) < 2**53 else value  # do not write 1e25 as 26 digits


def embedding_files(lora: Lora, target: Path) -> dict[Path, Output]:
    """Path beside `target` -> tensor of each bundled embedding, in the form that the web UI and ComfyUI read.

    Raises `FileError` for an output embedding, which no host reads, and if two tokens would have the same file name.
    """
    files: dict[Path, Output] = {}
    for key, tensor in lora.embeddings.items():
        token, _, vector = key.removeprefix(names.BUNDLED).rpartition(".")
        if vector.endswith("_out") or not token:
            problem = f"no host reads the embedding {quote(key)}"
            raise FileError(lora.path, problem, "convert without --split-embeddings to keep it in the file")
        safe = re.sub(r"[^\w.-]+", "", token).strip(".") or "embedding"
        path = target.with_name(f"{target.stem}.{safe[:80]}.safetensors")
        if path in files:
            raise FileError(lora.path, f"two of its embeddings would both be written to {path.name}")
        files[path] = Output("emb_params", tensor, tensor.shape, tensor.dtype)
    return files


def notes(lora: Lora, form: str, *, fold: bool) -> list[Note]:
    """Notices about this conversion."""
    result = list(lora.notes)
    scaled = any(module.scale != 1.0 for module in lora.factors)
    if form == "diffusers" and scaled and not fold:
        text = f"alpha is stored in the metadata ({METADATA_KEY}), which diffusers older than 0.34 ignores"
        result.append(Note(text, "for those, --fold-alpha multiplies it into the factors"))
    if fold and any(math.frexp(module.scale)[0] != 0.5 for module in lora.factors if module.scale):
        result.append(Note("the scale is not a power of two, so folding it in rounded the factors once"))
    if form == "kohya" and any(module.dora == "rows" for module in lora.modules.values()):
        text = "its DoRA scales are one per output row, which the web UI and ComfyUI do not apply as LyCORIS trained them"
        result.append(Note(text))
    differences = sum(part in FULL_PARTS for module in lora.modules.values() for part in module.parts)
    if differences:
        result.append(Note(f"{counted(differences, 'full difference')} (.diff and the like) copied unchanged"))
    if lora.embeddings:
        text = f"{counted(len(lora.embeddings), 'bundled embedding')} copied, which the web UI reads"
        result.append(Note(text, "--split-embeddings writes each to a separate file"))
    return result
