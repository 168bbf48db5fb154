"""The two hosts: how to recognise their folders, and where they look for plugins and models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import UsageError


@dataclass(frozen=True)
class Host:
    """A host: how to recognise its folder, and where it looks for plugins and models."""

    flag: str
    name: str
    marks: tuple[str, ...]
    """files and folders that every installation has"""
    plugins: str
    loras: str
    checkpoints: str
    inner: tuple[str, ...]
    """subfolders that contain it in all-in-one packages"""


WEBUI = Host("--webui", "web UI", ("webui.py", "modules/scripts.py", "extensions"), "extensions", "models/Lora",
             "models/Stable-diffusion", ("webui",))  # fmt: skip
COMFYUI = Host("--comfyui", "ComfyUI", ("main.py", "nodes.py", "comfy", "custom_nodes"), "custom_nodes", "models/loras",
               "models/checkpoints", ("ComfyUI",))  # fmt: skip


def host_folder(host: Host, given: Path) -> Path:
    """The folder with the host's marks: `given`, or the inner folder of an all-in-one package. Else UsageError."""
    try:
        given = given.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # an unknown user, or a loop of links
        raise UsageError(f"{host.flag} {given}: cannot be looked up ({error})") from error
    for place in (given, *(given / name for name in host.inner)):
        if all((place / mark).exists() for mark in host.marks):
            return place
    if not given.is_dir():
        raise UsageError(f"{host.flag} {given}: no such folder")
    lacking = next(mark for mark in host.marks if not (given / mark).exists())
    other = WEBUI if host is COMFYUI else COMFYUI
    found = all((given / mark).exists() for mark in other.marks)
    hint = f"; it looks like a {other.name}: give it with {other.flag}" if found else ""
    raise UsageError(f"{host.flag} {given}: is not a {host.name} folder (it has no {lacking}){hint}")


def around(folder: Path) -> tuple[Host, Path] | None:
    """The host whose plugin folder contains `folder`."""
    home = folder.parent.parent
    fits = (host for host in (WEBUI, COMFYUI) if folder.parent.name == host.plugins)
    return next(((host, home) for host in fits if all((home / mark).exists() for mark in host.marks)), None)
