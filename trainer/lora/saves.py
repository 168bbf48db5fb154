"""LoRA files written during a run, in the hosts' form and with the same metadata as the final file."""

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

    def target(self, step: int) -> Path:
        return self.folder / f"{self.name}-{step:06d}.safetensors"

    def __call__(self, step: int) -> None:
        if step == self.total:
            return  # that is --out
        from trainer.lora import export  # loads torch, which the check below does not need

        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.target(step)
        with TemporaryDirectory() as folder:
            export.write_lora(Path(folder), target, self.recipe, self.base, self.dataset, steps=step, total=self.total,
                              started=self.started)

    def resume(self, step: int) -> None:
        """Write the file of the step that the run continues from, if a shorter run ended there and wrote only --out."""
        if not self.target(step).exists():
            self(step)


def check_saves(folder: Path, name: str, recipe: Recipe) -> None:
    """UsageError if there are files of that name whose recipe differs in more than its length: they would be replaced."""
    mine = apart_from_length(json.loads(json.dumps(recipe.published())))
    for path in sorted(folder.glob(f"{name}-[0-9][0-9][0-9][0-9][0-9][0-9].safetensors")):
        if _recipe_in(path) != mine:
            raise UsageError(f"--save-to {folder}: {path.name} is not from this run: give another folder or --overwrite")


def _recipe_in(path: Path) -> Stored:
    """The recipe in a file's metadata, without its length; empty if there is none."""
    try:
        return apart_from_length(json.loads(open_container(path).metadata.get(keys.RECIPE, "{}")))
    except (JobError, ValueError, AttributeError):
        return {}
