"""The only access to the web UI's modules: its list of LoRA files, its folders, the loaded model, its picture URLs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

from ..convert.miniature import MINIATURE, is_miniature
from . import cards, failures, generation, prompts
from .inspection import Inspected
from .lora_files import LoraFiles
from .web_uis import WebUI

PREFIX = "Scribble LoRA: "


def tell(text: str) -> None:
    """Print one line to the console; characters that it cannot encode are escaped."""
    _print(_line(text))


def comment(p: generation.Processing, text: str) -> None:
    """Show one line in the console and under the picture."""
    tell(text)
    p.comment(_line(text))


def toast(text: str) -> None:
    """Show one line in the console and as a toast on the page."""
    import gradio as gr

    tell(text)
    gr.Warning(_line(text))


def unforeseen(what: str, error: Exception, arguments: object = ()) -> str:
    """Print the panel of an unexpected error; returns one line for the user."""
    _print(failures.panel(what, error, arguments))
    return f"{what}: {failures.line(error)}"


def _print(text: str) -> None:
    encoding = getattr(sys.stderr, "encoding", None) or "ascii"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)


def _line(text: str) -> str:
    return f"{PREFIX}{' '.join(text.splitlines())}"


class LoraExtensionOff(RuntimeError):
    """The web UI's built-in Lora extension, which lists and loads the files, is off. SD.Next does not have it."""

    def __init__(self) -> None:
        off = "the web UI's built-in Lora extension is off: switch it on in the Extensions tab"
        sdnext = "SD.Next is not supported: write <lora:name:scale> into the prompt by hand"
        super().__init__(sdnext if "modules.lora" in sys.modules else off)


def networks() -> ModuleType | None:
    """The `networks` module of the web UI's built-in Lora extension; None if that is off."""
    found = sys.modules.get("networks")
    return found if hasattr(found, "available_networks") else None


def web_ui() -> WebUI:
    """Which web UI this is. Forge and reForge have a copy of ComfyUI's loader; reForge's is in `ldm_patched`."""
    if not hasattr(networks(), "load_lora_for_models"):
        return WebUI.A1111
    return WebUI.REFORGE if "ldm_patched" in sys.modules else WebUI.FORGE


def files(name: str | None = None) -> LoraFiles:
    """The web UI's list of LoRA files. If `name` is not in it, the folders are rescanned first."""
    lora = networks()
    if lora is None:
        raise LoraExtensionOff
    found = _files(lora)
    if name is None or found.name_of(name) is not None:
        return found
    lora.list_available_networks()
    return _files(lora)


def _files(lora: ModuleType) -> LoraFiles:
    networks = dict(lora.available_networks)
    return LoraFiles(
        {key: Path(item.filename) for key, item in networks.items()},
        {alias: item.name for alias, item in dict(lora.available_network_aliases).items()
         if alias.lower() not in lora.forbidden_network_aliases},
        {short: item.name for short, item in dict(lora.available_network_hash_lookup).items()},
        web_ui(), tuple(folders()),
    )  # fmt: skip


def rescanned() -> LoraFiles:
    """Rescan the web UI's LoRA folders; returns the new list."""
    lora = networks()
    if lora is not None:
        lora.list_available_networks()
    return files()


def is_applied(found: Inspected, scale: float | None) -> bool:
    """Whether the web UI applies this file at this scale (None for any scale) in the current generation."""
    from modules import sd_models

    lora = networks()
    if lora is None:
        return False
    if web_ui() is WebUI.A1111:
        named = (net for net in lora.loaded_networks if found.name in (net.name, net.mentioned_name))
        return any(scale in (None, net.unet_multiplier) for net in named)
    state = str(sd_models.model_data.sd_model.current_lora_hash)  # Forge's list of [file, scale of the UNet, …], as text
    at = f"[{lora.available_networks[found.name].filename!r}, "
    return (at if scale is None else f"{at}{scale}, ") in state


def parsed_names(p: generation.Processing) -> list[str]:
    """The names in the LoRA tags that the web UI has parsed for the current batch."""
    found = getattr(p, "extra_network_data", None) or {}
    return [str(params.positional[0]) for kind in prompts.KINDS for params in found.get(kind, ()) if params.positional]


def broken_layers(name: str) -> int:
    """How many layers A1111 could not apply the file to in the last generation."""
    from modules import extra_networks

    lora = extra_networks.extra_network_registry.get("lora")
    return int(getattr(lora, "errors", {}).get(name, 0))


def folders() -> list[Path]:
    """The LoRA folders that the web UI lists."""
    from modules import shared

    options = (getattr(shared.cmd_opts, key, None) for key in ("lora_dir", "lyco_dir_backcompat"))
    return [Path(folder) for folder in dict.fromkeys(options) if folder]


def model_kind() -> str:
    """The loaded model's kind, a key of `generation.MODELS`; "" if no model is loaded or its kind is unknown."""
    from modules import sd_models

    model = getattr(sd_models.model_data, "sd_model", None)  # shared.sd_model would load one
    if model is None or not hasattr(model, "is_sdxl"):
        return ""
    flags = (("SDXL", "is_sdxl"), ("SD2", "is_sd2"), ("SD3", "is_sd3"), ("SD1", "is_sd1"))
    kind = next((kind for kind, flag in flags if getattr(model, flag, False)), generation.OTHER)
    return MINIATURE if kind == "SD1" and _is_miniature(model) else kind


def _is_miniature(model: object) -> bool:
    """Whether the miniature's weights are loaded. False if they cannot be read, and for 8-bit weights.

    Not cached: the web UI loads the next checkpoint into the same objects, and only four numbers are read.
    """
    unet = getattr(getattr(model, "forge_objects", None), "unet", model)  # Forge and reForge; else A1111
    try:
        return is_miniature(unet.model.diffusion_model.out[2].bias.detach().float().tolist())  # type: ignore[attr-defined]
    except (AttributeError, LookupError, RuntimeError, TypeError):
        return False  # layers replaced by another extension, or weights that are not in memory


def picture_url(lora: Path) -> str:
    """The URL of a file's preview picture. The web UI serves pictures from the LoRA folders only."""
    picture = cards.picture(lora)
    if picture is None:
        return ""
    return f"./sd_extra_networks/thumb?filename={quote(picture.as_posix())}&mtime={picture.stat().st_mtime}"
