"""The LoRA files that ComfyUI lists under models/loras: names, paths, pictures and recommendations.

Names come only from the host's list, so no file outside its folders is opened.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import NodeError

if TYPE_CHECKING:
    from ..convert.files.card import Advice
    from .adapter import Adapter

SUFFIXES = (".safetensors", ".sft")

PICKLES = (".pt", ".bin", ".ckpt", ".pth", ".pkl", ".pt2")
"""Endings of PyTorch files. ComfyUI lists them too, but they are never opened here: they can run programs."""

PICTURES = (".preview.png", ".png", ".preview.jpg", ".jpg", ".preview.jpeg", ".jpeg", ".preview.webp", ".webp")
"""Endings of preview pictures beside a LoRA, as written by the web UI and model managers."""


def names() -> list[str]:
    """The safetensors files that the host lists under `loras`: all of its folders, subfolders included."""
    return [name for name in _listed() if name.lower().endswith(SUFFIXES)]


def _listed() -> list[str]:
    import folder_paths

    return list(folder_paths.get_filename_list("loras"))


def full_name(name: object) -> str:
    """The listed name that `name` refers to: itself, or the only one that differs in slashes, case or ending.

    Raises:
        NodeError: there is no such name, or more than one. The message lists similar names.
    """
    known = names()
    if name in known:
        return str(name)
    same = [other for other in known if _plain(other) == _plain(name)]
    if len(same) == 1:
        return same[0]
    raise NodeError(_why_missing(name, known, same))


def _why_missing(name: object, known: list[str], same: list[str]) -> str:
    if str(name).lower().endswith(PICKLES) and name in _listed():
        return (f"'{name}' is a PyTorch file, which is never opened here, because it can run programs: use ComfyUI's own "
                "Load LoRA for it, or pick a .safetensors file")  # fmt: skip
    if not known:
        return "there are no LoRA files yet: put one into ComfyUI's models/loras folder and press R"
    plain = {_plain(other): other for other in known}
    close = difflib.get_close_matches(_plain(name), plain, n=3, cutoff=0.6)
    same_file = [other for other in plain if other.rpartition("/")[2] == _plain(name).rpartition("/")[2]]
    found = [f"'{other}'" for other in dict.fromkeys([*same, *(plain[key] for key in [*same_file, *close])])][:3]
    advice = f"did you mean {' or '.join(found)}?" if found else "pick one from the list"
    return f"'{name}' is not in ComfyUI's models/loras folder: {advice} (R reads the folder again)"


def _plain(name: object) -> str:
    """A name normalised for comparison: forward slashes, no case, no ending."""
    plain = str(name).replace("\\", "/").lower()
    return next((plain.removesuffix(suffix) for suffix in SUFFIXES if plain.endswith(suffix)), plain)


def path_of(name: str) -> Path:
    """The file with this name. Raises `NodeError` as `full_name` does."""
    import folder_paths

    found = full_name(name)
    path = folder_paths.get_full_path("loras", found)
    if path is None:
        raise NodeError(f"'{found}' is listed by ComfyUI but no longer there: press R to read the folder again")
    return Path(path)


def picture_of(name: str) -> Path | None:
    """The picture beside a LoRA, if there is one. Raises `NodeError` as `full_name` does."""
    path = path_of(name)
    return next((picture for picture in map(path.with_suffix, PICTURES) if picture.is_file()), None)


def fingerprint(*names: object) -> str:
    """The result of `IS_CHANGED`: differs if a file, or its card or configuration, has changed. Never raises.

    A name from a link is not known yet at that time (None); then the link's source decides.
    """
    from . import adapter, advice

    marks: list[object] = []
    for name in names:
        try:
            path = path_of(name) if isinstance(name, str) else None
            marks += (*adapter.fingerprint(path), *advice.fingerprint(path)) if path else ["linked"]
        except (NodeError, OSError) as error:
            marks.append(f"missing: {error}")
    return "-".join(map(str, marks))


def load(name: str) -> Adapter:
    """The adapter with this name, read once. Raises `NodeError`."""
    from . import adapter

    return adapter.load(path_of(name), full_name(name))


def advice(name: str) -> Advice:
    """The recommended scale and the trigger words of a LoRA in the list. Raises `NodeError` for any other name."""
    from .advice import of_file

    path = path_of(name)
    try:
        return of_file(path)
    except OSError as error:
        raise NodeError(f"{name}: cannot be read: {error.strerror or error}") from None
