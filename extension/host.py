"""The one place that asks the web UI: its list of LoRA files, its folders, the loaded model, its page of pictures."""

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
    """One line in the console; a character that it cannot show is escaped."""
    _print(_line(text))


def comment(p: generation.Processing, text: str) -> None:
    """One line in the console and under the picture."""
    tell(text)
    p.comment(_line(text))


def toast(text: str) -> None:
    """One line in the console, and on the page wherever the user is looking at it."""
    import gradio as gr

    tell(text)
    gr.Warning(_line(text))


def unforeseen(what: str, error: Exception, arguments: object = ()) -> str:
    """Print the panel of an unforeseen failure; returns the user's one line."""
    _print(failures.panel(what, error, arguments))
    return f"{what}: {failures.line(error)}"


def _print(text: str) -> None:
    encoding = getattr(sys.stderr, "encoding", None) or "ascii"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)


def _line(text: str) -> str:
    return f"{PREFIX}{' '.join(text.splitlines())}"


class LoraExtensionOff(RuntimeError):
    """The web UI's own LoRA extension, which lists and loads the files, is switched off; SD.Next never has it."""

    def __init__(self) -> None:
        off = "the web UI's built-in Lora extension is off: switch it on in the Extensions tab"
        sdnext = "SD.Next is not supported: write <lora:name:scale> into the prompt by hand"
        super().__init__(sdnext if "modules.lora" in sys.modules else off)


def networks() -> ModuleType | None:
    """The web UI's own LoRA extension, which knows the files; None if it is switched off."""
    found = sys.modules.get("networks")
    return found if hasattr(found, "available_networks") else None


def web_ui() -> WebUI:
    """Which web UI this is: Forge and reForge have a copy of ComfyUI's loader, reForge in `ldm_patched`."""
    if not hasattr(networks(), "load_lora_for_models"):
        return WebUI.A1111
    return WebUI.REFORGE if "ldm_patched" in sys.modules else WebUI.FORGE


def files(name: str | None = None) -> LoraFiles:
    """What the web UI lists now; if `name` is not in it, after it has scanned its folders again."""
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
    """The files after the web UI has scanned its folders again."""
    lora = networks()
    if lora is not None:
        lora.list_available_networks()
    return files()


def is_applied(found: Inspected, scale: float | None) -> bool:
    """Whether the web UI has this file switched on, at this scale (None: at any), for the running generation."""
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
    """The names in the LoRA tags that the web UI has parsed for the batch under way."""
    found = getattr(p, "extra_network_data", None) or {}
    return [str(params.positional[0]) for kind in prompts.KINDS for params in found.get(kind, ()) if params.positional]


def broken_layers(name: str) -> int:
    """How many layers A1111 could not apply the file to, in the generation that has just run."""
    from modules import extra_networks

    lora = extra_networks.extra_network_registry.get("lora")
    return int(getattr(lora, "errors", {}).get(name, 0))


def folders() -> list[Path]:
    """The LoRA folders that the web UI lists."""
    from modules import shared

    options = (getattr(shared.cmd_opts, key, None) for key in ("lora_dir", "lyco_dir_backcompat"))
    return [Path(folder) for folder in dict.fromkeys(options) if folder]


def model_kind() -> str:
    """The loaded model's kind, one of `generation.MODELS`; "" if none is loaded or nothing is known of it."""
    from modules import sd_models

    model = getattr(sd_models.model_data, "sd_model", None)  # shared.sd_model would load one
    if model is None or not hasattr(model, "is_sdxl"):
        return ""
    flags = (("SDXL", "is_sdxl"), ("SD2", "is_sd2"), ("SD3", "is_sd3"), ("SD1", "is_sd1"))
    kind = next((kind for kind, flag in flags if getattr(model, flag, False)), generation.OTHER)
    return MINIATURE if kind == "SD1" and _is_miniature(model) else kind


def _is_miniature(model: object) -> bool:
    """Whether the miniature's weights are loaded. False where they cannot be read, and for 8-bit weights.

    Read every time: the web UI loads the next checkpoint into the same objects. Four numbers cost less than a cache of them.
    """
    unet = getattr(getattr(model, "forge_objects", None), "unet", model)  # Forge and reForge; else A1111
    try:
        return is_miniature(unet.model.diffusion_model.out[2].bias.detach().float().tolist())  # type: ignore[attr-defined]
    except (AttributeError, LookupError, RuntimeError, TypeError):
        return False  # another program's layers, or numbers that are not in memory


def picture_url(lora: Path) -> str:
    """Where the page finds the picture of a file; the web UI serves it from the LoRA folders only."""
    picture = cards.picture(lora)
    if picture is None:
        return ""
    return f"./sd_extra_networks/thumb?filename={quote(picture.as_posix())}&mtime={picture.stat().st_mtime}"
