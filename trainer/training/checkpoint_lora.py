"""Writes a run's checkpoint as a LoRA file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from convert import convert_file, keys, read
from convert.errors import Damaged, JobError
from trainer.lora.adapter import as_peft
from trainer.recipe import Recipe
from trainer.training.checkpoints import read_factors


def checkpoint_lora(run: Path, step: int, recipe: Recipe, final: Path, target: Path) -> None:
    """Write the factors of optimizer step `step` of folder `run` to `target`, kohya form, with the metadata of `final`.

    Raises:
        JobError: the run has no such checkpoint, or it is damaged or cannot be read.
    """
    from safetensors.torch import save_file

    place = run / "checkpoints" / f"step-{step:06d}"
    try:
        factors = read_factors(place)
    except Damaged as error:
        raise JobError(f"{error}: delete the run's folder to train it again") from error
    said = {key: value for key, value in read(final).metadata.items() if key.startswith(("ss_", "modelspec.", "scribble_"))}
    said |= {keys.STEPS: str(step), keys.RECIPE: json.dumps(recipe.as_dict())}
    with tempfile.TemporaryDirectory() as folder:
        save_file(as_peft(factors, recipe), Path(folder) / "factors.safetensors")
        convert_file(Path(folder) / "factors.safetensors", target, metadata=said, overwrite=True)
