"""Folders like a web UI's and a ComfyUI's, and a LoRA with its card and picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.install.command import MODULE


@pytest.fixture
def webui(tmp_path: Path) -> Path:
    home = tmp_path / "web ui"
    for name in ("modules", "extensions/other", "models/Lora"):
        (home / name).mkdir(parents=True)
    for name in ("webui.py", "modules/scripts.py", "models/Lora/mine.safetensors"):
        (home / name).write_text("mine")
    return home


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    home = tmp_path / "portable/ComfyUI"
    for name in ("comfy", "custom_nodes"):
        (home / name).mkdir(parents=True)
    for name in ("main.py", "nodes.py"):
        (home / name).write_text("")
    return home


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "scribble.safetensors"
    save_file({f"{MODULE}.lora_down.weight": torch.ones(4, 320), f"{MODULE}.lora_up.weight": torch.ones(320, 4),
               f"{MODULE}.alpha": torch.tensor(4.0)}, path)
    path.with_suffix(".json").write_text("{}")
    path.with_suffix(".png").write_bytes(b"picture")
    return path
