"""Checkpoints of Stable Diffusion 1.5 in the folders of web UIs and ComfyUIs that the user named."""

from __future__ import annotations

import re
from pathlib import Path

from convert.container import open_container
from convert.errors import JobError, UsageError
from trainer.page.folders import Folders
from trainer.recipe import DEFAULT_BASE, MINIATURE, home

PLACES = {"models/Stable-diffusion": "--webui", "models/checkpoints": "--comfyui"}
"""Checkpoint folders of the hosts, and the flag of install.py for each host."""
INNER = ("", "webui", "ComfyUI")
"""Subfolders that contain the host in all-in-one packages."""
CROSS_ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
SD15 = (320, 768)  # its shape: SD2's has 1024 columns, and SDXL has no such layer
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?")
MOST = 500


def host_flag(folder: Path) -> str:
    """install.py's flag for the host in `folder`; "" if it is not a host."""
    return next((flag for inner in INNER for place, flag in PLACES.items() if (folder / inner / place).is_dir()), "")


def hosts(folders: Folders) -> list[str]:
    """Those of the named folders that are a web UI's or a ComfyUI's."""
    return [str(folder) for folder in folders.named if host_flag(folder)]


def checkpoints(folder: Path) -> list[Path]:
    """Single-file checkpoints of SD1.5 in the host in `folder`, by name, at most 500; inpainting ones are left out.

    Only headers are read. UsageError if `folder` is not a host's.
    """
    places = [folder / inner / place for inner in INNER for place in PLACES if (folder / inner / place).is_dir()]
    if not places:
        raise UsageError(f"{folder}: is not the folder of a web UI or ComfyUI (it has no {' and no '.join(PLACES)})")
    files = sorted(path for place in places for path in place.rglob("*.safetensors"))
    return [path for path in files[:MOST] if is_sd15(path)]


def is_sd15(path: Path) -> bool:
    """Whether a .safetensors file is a checkpoint of SD1.5, by the shapes in its header."""
    try:
        tensors = open_container(path).tensors
    except (JobError, OSError):
        return False
    first = tensors.get("model.diffusion_model.input_blocks.0.0.weight")
    cross = tensors.get(CROSS_ATTENTION)
    return bool(first and cross and tuple(cross.shape) == SD15 and first.shape[1] == 4)


def checked_base(text: str, folders: Folders) -> str:
    """The value of `--base` for the browser's text: one of the two names, a hub id, or a path in the user's folders."""
    text = text.strip() or DEFAULT_BASE
    if text in (DEFAULT_BASE, MINIATURE):
        return text
    if HUB_ID.fullmatch(text) and not home(text).exists():
        return text
    return str(folders.inside(text))
