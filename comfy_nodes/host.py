"""The only file that talks to ComfyUI: its list of LoRA files, and its way to patch a model and a text encoder.

Names of LoRAs come from the host's list and nowhere else; nothing outside its folders is opened. What a function
needs is imported when it is called, so that the host starts as fast as without this pack.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import NodeError

if TYPE_CHECKING:
    from .adapter import Adapter
    from .advice import Advice

UNET_WEIGHT = "diffusion_model.{}.weight"
TEXT_ENCODER_WEIGHT = "clip_l.transformer.{}.weight"
"""Where the host keeps the module with an LDM name; for those that its own map leaves out."""


def lora_names() -> list[str]:
    """What the host offers under `loras`, all of its folders, subfolders included."""
    import folder_paths

    return list(folder_paths.get_filename_list("loras"))


def why_missing(name: object) -> str | None:
    """One sentence where the host's list has no such LoRA, with the names that are close; None where it has."""
    import difflib

    names = lora_names()
    if name in names:
        return None
    if not names:
        return "there are no LoRA files yet: put one into ComfyUI's models/loras folder and press R"
    plain = {_plain(known): known for known in names}
    close = difflib.get_close_matches(_plain(name), plain, n=3, cutoff=0.6)
    same_file = [known for known in plain if known.rpartition("/")[2] == _plain(name).rpartition("/")[2]]
    found = [f"'{plain[known]}'" for known in dict.fromkeys([*same_file, *close])][:3]
    advice = f"did you mean {' or '.join(found)}?" if found else "pick one of the list"
    return f"'{name}' is not in ComfyUI's models/loras folder: {advice} (R reads the folder again)"


def _plain(name: object) -> str:
    """What people mean by a name: without the system's slash, case and ending."""
    return str(name).replace("\\", "/").lower().removesuffix(".safetensors")


def lora_path(name: str) -> Path:
    """The file behind a name of the host's list. Raises `NodeError` for any other name."""
    import folder_paths

    missing = why_missing(name)
    path = None if missing else folder_paths.get_full_path("loras", name)
    if path is None:
        raise NodeError(missing or f"'{name}' is listed by ComfyUI but not there any more: press R to read the folder again")
    return Path(path)


def fingerprint(name: object) -> str:
    """What `IS_CHANGED` answers: another text when the file, or what lies beside it, is another. Never raises.

    A name from a link is not known yet when the host asks; then the link's source decides.
    """
    from . import adapter, advice

    if not isinstance(name, str):
        return "linked"
    try:
        path = lora_path(name)
        return "-".join(map(str, (*adapter.fingerprint(path), *advice.fingerprint(path))))
    except (NodeError, OSError) as error:
        return f"not there: {error}"


def load(name: str) -> Adapter:
    """The adapter behind a name, read once. Raises `NodeError`."""
    from . import adapter

    return adapter.load(lora_path(name), name)


def advice(name: str) -> Advice:
    """The recommended scale and the trigger words of a LoRA of the list. Raises `NodeError` for any other name."""
    from .advice import of_file

    path = lora_path(name)
    try:
        return of_file(path)
    except OSError as error:
        raise NodeError(f"{name}: cannot be read: {error.strerror or error}") from None


def with_unet(model: Any, adapter: Adapter, scale: float) -> Any:
    """A clone of MODEL with the adapter's UNet part at `scale`; the very same MODEL at 0. Raises `NodeError`."""
    if scale == 0 or not adapter.unet.shapes:
        return model
    import comfy.lora

    from .patching import patched

    weights = model.model.state_dict()
    # {} is given because the host's default is one dict that all its callers share
    keys = {**_own_keys("unet", UNET_WEIGHT, weights), **comfy.lora.model_lora_keys_unet(model.model, {})}
    return patched(model, weights, keys, adapter.unet, adapter, scale, comfy.lora.load_lora)


def with_text_encoder(clip: Any, adapter: Adapter, scale: float) -> Any:
    """A clone of CLIP with the adapter's text encoder part at `scale`; the very same CLIP at 0. Raises `NodeError`."""
    if scale == 0 or not adapter.text_encoder.shapes:
        return clip
    if clip is None:
        raise NodeError(
            f"{adapter.name}: has a text encoder part and no CLIP is connected: connect the checkpoint's CLIP, "
            "or set clip_scale to 0 to go without that part"
        )
    import comfy.lora

    from .patching import patched

    weights = clip.cond_stage_model.state_dict()
    keys = {
        **_own_keys("text_encoder", TEXT_ENCODER_WEIGHT, weights),
        **comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}),
    }
    return patched(clip, weights, keys, adapter.text_encoder, adapter, scale, comfy.lora.load_lora)


def _own_keys(scope: str, spelling: str, weights: Mapping[str, Any]) -> dict[str, str]:
    from ..convert.names import module_name
    from ..convert.sd15 import modules

    pairs = ((module_name("kohya", m), spelling.format(m.ldm)) for m in modules().values() if m.scope == scope)
    return {prefix: weight for prefix, weight in pairs if weight in weights}
