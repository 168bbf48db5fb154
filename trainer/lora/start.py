"""`--init`: training continues from a LoRA file, which determines rank, alpha and layers. Reads only headers, without torch."""

from __future__ import annotations

import re
from pathlib import Path

from convert import read
from convert.errors import JobError, UsageError
from convert.lora import Lora
from convert.sd15 import TEXT_ENCODER, UNET, modules
from trainer.layers import TARGETS
from trainer.recipe import Fields, flag

DECIDED = ("rank", "alpha", "conv_rank", "conv_alpha", "targets")
"""Fields of the recipe that the file determines."""


def recipe_of(path: Path, given: Fields) -> Fields:
    """The recipe's fields determined by the LoRA at `path`, in any form that `convert` reads.

    given: fields set by the user. Raises UsageError if they contradict the file, JobError if it is not a plain LoRA
    of one rank and alpha (and another one for its 3 x 3 convolutions).
    """
    lora = read(path)
    parts = {part for module in lora.modules.values() for part in module.parts}
    if parts != {"down", "up"}:
        raise JobError(f"--init {path}: has {', '.join(sorted(parts - {'down', 'up'}))} besides its factors: only plain LoRAs "
                       "can be trained further")
    linear, conv = (_strength(lora, path, wide=wide) for wide in (False, True))
    rank, alpha = linear or conv or (0, 0.0)
    fields: Fields = {"rank": rank, "alpha": alpha, "targets": _targets(lora)}
    if conv and conv != (rank, alpha):
        fields |= {"conv_rank": conv[0], "conv_alpha": conv[1]}
    for name in DECIDED:
        if name in given and given[name] != fields.get(name, given[name]):
            raise UsageError(f"{flag(name)} {given[name]}: the LoRA of --init has {fields[name]}: leave this flag out")
    return fields | ({"text_encoder": True} if lora.in_scope(TEXT_ENCODER) else {})


def _strength(lora: Lora, path: Path, *, wide: bool) -> tuple[int, float] | None:
    """Rank and alpha of the layers with filters larger than 1 x 1 (`wide`), or of all others; None if there are none."""
    found = sorted({(module.rank, module.alpha) for module in lora.factors if (module.shape[-1:] == (3,)) == wide})
    if len(found) > 1:
        what = ", ".join(f"{rank}/{alpha:g}" for rank, alpha in found[:4])
        raise JobError(f"--init {path}: its layers differ in rank/alpha ({what}): expected one for all")
    return found[0] if found else None


def _targets(lora: Lora) -> str:
    """The name of the set of the UNet's layers that `lora` patches, or a regular expression for exactly them."""
    patched = {module.module.name for module in lora.in_scope(UNET)}
    layers = [module.name for module in modules().values() if module.scope == UNET and not module.is_norm]
    for name, pattern in TARGETS.items():
        if {layer for layer in layers if re.fullmatch(pattern, layer)} == patched:
            return name
    return "|".join(re.escape(layer) for layer in layers if layer in patched)
