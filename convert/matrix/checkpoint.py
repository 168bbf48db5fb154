"""Reads the weights of a whole Stable Diffusion 1.5: an LDM or diffusers file, or a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import names
from ..container import open_container
from ..errors import DoesNotFit, FileError
from ..sd15 import TEXT_ENCODER, UNET, modules
from ..tensors import Container, Tensor
from .arrays import Array, to_array

WEIGHTS = {
    UNET: ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
    TEXT_ENCODER: ("model.safetensors", "model.fp16.safetensors"),
}
"""The file of each network in a diffusers folder."""


@dataclass(frozen=True)
class Checkpoint:
    """The files, and the position of each module's weight and bias in them."""

    path: Path
    containers: tuple[Container, ...]
    places: Mapping[str, tuple[int, str]]
    """module name -> index of its container, name of its tensor without `.weight`"""

    def tensor(self, module: str, part: str = "weight") -> Tensor | None:
        """The weight or "bias" of a module."""
        if module not in self.places:
            return None
        index, name = self.places[module]
        return self.containers[index].tensors.get(f"{name}.{part}")

    def weight(self, module: str, shape: tuple[int, ...]) -> Array:
        """A module's weight, float32, in `shape`; a 1x1 convolution may be stored as a linear layer.

        Raises `DoesNotFit` if the checkpoint lacks it or has it in another shape.
        """
        tensor = self.tensor(module)
        if tensor is None:
            raise DoesNotFit(self.path, module, f"lacks {module}", "give a whole checkpoint of Stable Diffusion 1.5")
        if [n for n in tensor.shape if n != 1] != [n for n in shape if n != 1]:
            raise DoesNotFit(self.path, module, f"{module} has shape {list(tensor.shape)}, not {list(shape)}")
        return to_array(tensor).reshape(shape)

    @property
    def scopes(self) -> set[str]:
        """The networks that it contains: `UNET`, `TEXT_ENCODER`."""
        return {modules()[module].scope for module in self.places}


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a .safetensors or pickled checkpoint, one network's file, or a diffusers folder. Raises `FileError`."""
    path = Path(path)
    files = [path] if not path.is_dir() else [file for file in network_files(path).values() if file is not None]
    containers = tuple(open_container(file, pickles=True) for file in files)
    places: dict[str, tuple[int, str]] = {}
    for index, container in enumerate(containers):
        for key in container.tensors:
            stem, dot, part = key.rpartition(".")
            module = names.module_of(stem) if dot and part in ("weight", "bias") else None
            if module is not None:
                places.setdefault(module.name, (index, stem))
    if not places:
        raise FileError(path, "has no layer of Stable Diffusion 1.5", "give a checkpoint (.safetensors) or a diffusers folder")
    return Checkpoint(path, containers, places)


def network_files(folder: Path) -> dict[str, Path | None]:
    """The weight file of each network in a diffusers folder. Raises `FileError` if there is none."""
    found = {
        scope: next((folder / scope / name for name in known if (folder / scope / name).is_file()), None)
        for scope, known in WEIGHTS.items()
    }
    if not any(found.values()):
        expected = " or ".join(f"{scope}/{known[0]}" for scope, known in WEIGHTS.items())
        raise FileError(folder, f"is not a diffusers folder: it has no {expected}")
    return found
