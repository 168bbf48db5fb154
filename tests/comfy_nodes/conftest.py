"""The node pack, loaded as ComfyUI loads it, and a small stand-in for the parts of ComfyUI that it uses.

The stand-in keeps `ModelPatcher`'s contract (clone, add_patches, the names of SD1.5's weights) on a narrow network; its
arithmetic is the one line that ComfyUI's `LoRAAdapter.calculate_weight` has for plain factors.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from convert.sd15 import modules

ROOT = Path(__file__).parents[2]
PACK = "/host/custom_nodes/scribble-lora"
"""A folder name with a hyphen, which is how ComfyUI names the module of a pack: by its path."""


@pytest.fixture(scope="session", autouse=True)
def pack() -> Any:
    """The root `__init__.py`, executed under the name that ComfyUI would give it."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == PACK]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def part(pack):
    """`part("scales")` is the pack's module of that name."""
    return lambda name: importlib.import_module(f"{PACK}.comfy_nodes.{name}")


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """For all tests here."""


class Network(torch.nn.Module):
    """Weights by LDM name under a prefix, as `ModelPatcher.model` and `CLIP.cond_stage_model` show them."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__()
        self.weights = weights

    def state_dict(self, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        return dict(self.weights)


class Patcher:
    """`ModelPatcher`, and `CLIP`, whose `cond_stage_model` is the same thing by another name."""

    def __init__(self, model: Network, patches: dict[str, list[Any]] | None = None):
        self.model = self.cond_stage_model = model
        self.patches = patches or {}

    def clone(self) -> Patcher:
        return type(self)(self.model, {key: list(value) for key, value in self.patches.items()})

    def add_patches(self, patches: dict[str, Any], strength_patch: float = 1.0) -> list[str]:
        known = [key for key in patches if key in self.model.state_dict()]
        for key in known:
            self.patches.setdefault(key, []).append((strength_patch, patches[key]))
        return known

    def merged(self, key: str) -> torch.Tensor:
        """The weight as the sampler sees it, float32."""
        weight = self.model.weights[key].float().clone()
        for strength, (up, down, alpha) in self.patches.get(key, ()):
            scale = strength * (alpha / down.shape[0])
            weight += (scale * (up.float().flatten(1) @ down.float().flatten(1))).reshape(weight.shape)
        return weight


def load_lora(tensors: dict[str, torch.Tensor], to_load: dict[str, str]) -> dict[str, Any]:
    """`comfy.lora.load_lora` for plain factors."""
    return {
        weight: (tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"], tensors[f"{name}.alpha"].item())
        for name, weight in to_load.items()
        if f"{name}.lora_up.weight" in tensors
    }


def key_map(scope: str, prefix: str, place: str):
    """`comfy.lora.model_lora_keys_unet` and `_clip`, which add to the given map; the second leaves out norms."""

    known = [m for m in modules().values() if m.scope == scope and not (scope == "text_encoder" and m.is_norm)]

    def keys(model: Network, given: dict[str, str]) -> dict[str, str]:
        given.update({prefix + m.name.replace(".", "_"): place.format(m.ldm) for m in known})
        return {name: weight for name, weight in given.items() if weight in model.weights}

    return keys


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A host with one folder of LoRAs, which is returned."""
    folder = tmp_path / "loras"
    folder.mkdir()
    paths = types.ModuleType("folder_paths")
    paths.get_filename_list = lambda kind: sorted(  # type: ignore[attr-defined]
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".safetensors", ".pt")
    )
    paths.get_full_path = lambda kind, name: str(folder / name) if (folder / name).is_file() else None  # type: ignore[attr-defined]
    lora = types.ModuleType("comfy.lora")
    lora.load_lora = load_lora  # type: ignore[attr-defined]
    lora.model_lora_keys_unet = key_map("unet", "lora_unet_", "diffusion_model.{}.weight")  # type: ignore[attr-defined]
    lora.model_lora_keys_clip = key_map("text_encoder", "lora_te_", "clip_l.transformer.{}.weight")  # type: ignore[attr-defined]
    comfy = types.ModuleType("comfy")
    comfy.lora = lora  # type: ignore[attr-defined]
    for name, module in (("folder_paths", paths), ("comfy", comfy), ("comfy.lora", lora)):
        monkeypatch.setitem(sys.modules, name, module)
    return folder


@pytest.fixture
def patcher():
    """`patcher(weights)` is the stand-in for MODEL or CLIP over these weights."""
    return lambda weights: Patcher(Network(weights))
