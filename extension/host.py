"""The one place that asks the web UI: its list of LoRA files, its folders, the loaded model, its page of pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

from . import applying, cards
from .catalog import Catalog

PREFIX = "Scribble LoRA: "


def tell(text: str) -> None:
    """One line in the console, whatever characters that can show."""
    encoding = getattr(sys.stderr, "encoding", None) or "ascii"
    print(_line(text).encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)


def comment(p: Any, text: str) -> None:
    """One line in the console and under the picture."""
    tell(text)
    p.comment(_line(text))


def _line(text: str) -> str:
    return f"{PREFIX}{' '.join(text.splitlines())}"


def networks() -> ModuleType | None:
    """The web UI's own LoRA extension, which knows the files; None where it is switched off."""
    found = sys.modules.get("networks")
    return found if hasattr(found, "available_networks") else None


def catalog(name: str | None = None) -> Catalog:
    """What the web UI lists now; where it lacks `name`, after it has looked again."""
    lora = networks()
    if lora is None:
        raise RuntimeError("the web UI's built-in Lora extension is off: switch it on in the Extensions tab")
    if name is not None and name not in lora.available_networks:
        lora.list_available_networks()
    files = dict(lora.available_networks)
    return Catalog(
        {key: Path(item.filename) for key, item in files.items()},
        {alias: item.name for alias, item in dict(lora.available_network_aliases).items()
         if alias.lower() not in lora.forbidden_network_aliases},
        {short: item.name for short, item in dict(lora.available_network_hash_lookup).items()},
        many_forms=hasattr(lora, "load_lora_for_models"),  # Forge and reForge: ComfyUI's loader
    )  # fmt: skip


def refreshed() -> Catalog:
    """The catalog after the web UI has read its folders again."""
    lora = networks()
    if lora is not None:
        lora.list_available_networks()
    return catalog()


def is_loaded(name: str) -> bool:
    """Whether the web UI's LoRA extension has this file switched on for the running generation."""
    loaded = getattr(networks(), "loaded_networks", ())
    return any(name in (net.name, getattr(net, "mentioned_name", None)) for net in loaded)


def folders() -> list[Path]:
    """The LoRA folders that the web UI lists."""
    from modules import shared

    options = (getattr(shared.cmd_opts, key, None) for key in ("lora_dir", "lyco_dir_backcompat"))
    return [Path(folder) for folder in dict.fromkeys(options) if folder]


def model_kind() -> str:
    """The loaded model's kind as `Adapter.base` names it; "" where none is loaded or nothing is known of it."""
    from modules import sd_models

    model = getattr(sd_models.model_data, "sd_model", None)  # shared.sd_model would load one
    if model is None or not hasattr(model, "is_sdxl"):
        return ""
    flags = (("SDXL", "is_sdxl"), ("SD2", "is_sd2"), ("SD3", "is_sd3"), ("SD1", "is_sd1"))
    return next((kind for kind, flag in flags if getattr(model, flag, False)), applying.OTHER)


def picture_url(lora: Path) -> str:
    """Where the page finds the picture of a file; the web UI serves it from the LoRA folders only."""
    picture = cards.picture(lora)
    if picture is None:
        return ""
    return f"./sd_extra_networks/thumb?filename={quote(picture.as_posix())}&mtime={picture.stat().st_mtime}"
