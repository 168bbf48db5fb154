"""LoRA files written while a run goes on, in the hosts' form and with the metadata of the file at its end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from convert import keys
from convert.container import open_container
from convert.errors import JobError, UsageError
from trainer.base.load import Base
from trainer.data.records import Dataset
from trainer.recipe import Recipe, Stored, apart_from_length


@dataclass(frozen=True)
class PeriodicSaves:
    """Writes `<name>-NNNNNN.safetensors` into `folder`, NNNNNN the optimizer step."""

    recipe: Recipe
    base: Base
    dataset: Dataset
    folder: Path
    name: str
    total: int
    started: float

    def __call__(self, step: int) -> None:
        if step == self.total:
            return  # that is --out
        from trainer.lora import export  # loads torch, and the check below needs none

        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{self.name}-{step:06d}.safetensors"
        with TemporaryDirectory() as folder:
            export.write_lora(Path(folder), target, self.recipe, self.base, self.dataset, steps=step, total=self.total,
                              started=self.started)


def check_saves(folder: Path, name: str, recipe: Recipe) -> None:
    """UsageError if files of that name are from another recipe, its length apart: they would be replaced."""
    mine = apart_from_length(json.loads(json.dumps(recipe.published())))
    for path in sorted(folder.glob(f"{name}-[0-9][0-9][0-9][0-9][0-9][0-9].safetensors")):
        if _recipe_in(path) != mine:
            raise UsageError(f"--save-to {folder}: {path.name} is not from this run: give another folder or --overwrite")


def _recipe_in(path: Path) -> Stored:
    """The recipe that a file names, apart from its length; empty if it names none."""
    try:
        return apart_from_length(json.loads(open_container(path).metadata.get(keys.RECIPE, "{}")))
    except (JobError, ValueError, AttributeError):
        return {}
