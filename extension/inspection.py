"""Inspects a file in the LoRA folders: its form, its base, and whether the web UI can use it. Reads each header once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from ..convert.check import check
from ..convert.container import open_container
from ..convert.errors import Damaged, FileError, JobError, NotALora, UnknownKeys, WrongBase, quote
from ..convert.files.card import card_path
from ..convert.lora import SD15, Lora
from ..convert.miniature import EARLIER, EARLIER_IS_GONE, is_of_miniature
from ..convert.names import BUNDLED
from ..convert.read import read
from ..convert.sd15 import TEXT_ENCODER, UNET
from ..convert.tensors import Container
from ..convert.write import what_is_lacking
from . import cards
from .cards import Card
from .web_uis import WebUI, unread

_BASE_WORDS = {"SD1": "Stable Diffusion 1.5", EARLIER: "an earlier miniature"}

RENAMED = ".corrupted"
"""Suffix that Forge appends to the name of a file that it cannot read."""


class Use(Enum):
    """Whether the web UI can use the file."""

    READY = "ready"
    CONVERT = "convert"
    """sound, but the web UI does not read all of its tensors"""
    OTHER_BASE = "other base"
    """for another model than Stable Diffusion 1.5, see `base`"""
    UNCHECKED = "unchecked"
    """a kind of network that only the web UI itself can read"""
    BROKEN = "broken"


@dataclass(frozen=True)
class Inspected:
    """The result for one file; unknown fields have their defaults."""

    path: Path
    use: Use
    why: str = ""
    """the problem, worded to follow the file's name; "" for none"""
    form: str = ""
    base: str = ""
    """the kind of model it is for: SD1, SD2, SDXL, … or the name in the file's metadata"""
    rank: int = 0
    alpha: float = 0.0
    unet: int = 0
    """patched modules"""
    text_encoder: int = 0
    of_miniature: bool = False
    """trained on Scribble LoRA's miniature, which has Stable Diffusion 1.5's shapes"""
    card: Card = Card()
    numbers_checked: bool = False
    """every number was checked, not only the header"""

    @property
    def name(self) -> str:
        """Its name in a tag."""
        return self.path.stem

    @property
    def base_words(self) -> str:
        """`base`, worded for a sentence."""
        return "Scribble LoRA's miniature" if self.of_miniature else _BASE_WORDS.get(self.base, self.base)


Stamp = tuple[int, ...]
Key = tuple[Path, Stamp, WebUI]

_MOST = 4096
_KNOWN: OrderedDict[Key, Inspected] = OrderedDict()
"""Results, oldest first; those of `inspect_numbers` replace those of `inspect`."""


def stamp(path: Path) -> Stamp:
    """Changes when the file or its card does."""
    numbers: list[int] = []
    for place in (path, card_path(path)):
        try:
            status = place.stat()
            numbers += status.st_mtime_ns, status.st_size
        except OSError:
            numbers += -1, -1
    return tuple(numbers)


def inspect(path: Path, web_ui: WebUI = WebUI.A1111) -> Inspected:
    """Inspect `path`; reread only if it or its card has changed. Never raises for a bad file."""
    key = path, stamp(path), web_ui
    found = _KNOWN.get(key)
    return found if found is not None else _remember(key, _inspect(path, web_ui))


def inspect_numbers(path: Path, web_ui: WebUI = WebUI.A1111) -> Inspected:
    """`inspect`, and check every number if the header is sound: seconds for a large file. `inspect` returns it from then on."""
    key = path, stamp(path), web_ui
    found = inspect(path, web_ui)
    if found.use not in (Use.READY, Use.CONVERT) or found.numbers_checked:
        return found
    error = check(path).error
    if error is not None:
        found = replace(found, use=Use.BROKEN, why=in_words(error))
    return _remember(key, replace(found, numbers_checked=True))


def known(path: Path, web_ui: WebUI = WebUI.A1111) -> Inspected | None:
    """`inspect(path)` if the result is in memory, else None. Without any results yet the disk is not touched."""
    return _KNOWN.get((path, stamp(path), web_ui)) if _KNOWN else None


def _remember(key: Key, found: Inspected) -> Inspected:
    _KNOWN[key] = found
    while len(_KNOWN) > _MOST:
        _KNOWN.popitem(last=False)
    return found


def _inspect(path: Path, web_ui: WebUI) -> Inspected:
    if path.suffix.lower() != ".safetensors":
        return Inspected(path, Use.UNCHECKED, "is a pickle, which only the web UI itself reads")
    away = path.with_name(f"{path.name}{RENAMED}")
    if away.is_file() and not path.exists():
        return Inspected(path, Use.BROKEN, renamed(away))
    try:
        container = open_container(path)
    except JobError as error:
        return Inspected(path, Use.BROKEN, in_words(error))
    try:
        found = _of_lora(path, read(path), container, web_ui)
    except JobError as error:
        found = _refused(path, error)
    return replace(found, of_miniature=is_of_miniature(container.metadata), card=cards.read(path, container.metadata))


def renamed(away: Path) -> str:
    """The message about a file that Forge renamed."""
    return f"Forge could not read it and has renamed it {away.name}: download or copy it again"


def _of_lora(path: Path, lora: Lora, container: Container, web_ui: WebUI) -> Inspected:
    if lora.base != SD15 and any(module.shape != module.module.shape for module in lora.modules.values()):
        return _of_other_base(path, lora.base)
    found = Inspected(
        path, Use.READY, form=lora.form, base="SD1", rank=lora.rank, alpha=lora.alpha,
        unet=len(lora.in_scope(UNET)), text_encoder=len(lora.in_scope(TEXT_ENCODER)),
    )  # fmt: skip
    lacks = what_is_lacking(lora, "kohya")
    if lacks is not None:
        return replace(found, use=Use.BROKEN, why=f"has no effect in the web UI: {lacks.reason}")
    embeddings = [key for key in container.tensors if key.startswith(BUNDLED)]
    dropped = unread((key for key in container.tensors if not key.startswith(BUNDLED)), web_ui)
    if not dropped and (not embeddings or web_ui is WebUI.A1111):
        return found
    if not dropped:
        return replace(found, why=f"includes an embedding, which {web_ui.value} does not read; the LoRA itself is applied")
    which = "which" if len(dropped) == len(container.tensors) else f"{len(dropped)} of whose {len(container.tensors)} tensors"
    why = f"is a file in the form \"{lora.form}\", {which} {web_ui.value} does not read: convert it first"
    return replace(found, use=Use.CONVERT, why=why)


def _refused(path: Path, error: JobError) -> Inspected:
    """The result for a file that `read` rejects, from the error's type and fields."""
    match error:
        case WrongBase():
            return _of_other_base(path, error.base)
        case NotALora(hosts_read=True):
            return Inspected(path, Use.UNCHECKED, f"is {error.kind}, which only the web UI itself reads")
        case UnknownKeys() if any(key.startswith("lora_") for key in error.keys):
            return Inspected(path, Use.UNCHECKED, f"may be applied only in part: it has {_unknown(error.keys)}")
        case UnknownKeys():
            return Inspected(path, Use.BROKEN, f"is not a LoRA of Stable Diffusion 1.5: it has {_unknown(error.keys)}")
        case NotALora():
            return Inspected(path, Use.BROKEN, f"is {error.kind}: {error.advice}")
        case _:
            return Inspected(path, Use.BROKEN, in_words(error))


def _unknown(keys: Sequence[str]) -> str:
    return f"{len(keys)} unknown tensor names, such as {quote(keys[0])}"


def _of_other_base(path: Path, base: str) -> Inspected:
    found = Inspected(path, Use.OTHER_BASE, base=base)
    if base == EARLIER:
        return replace(found, why=EARLIER_IS_GONE)
    return replace(found, why=f"is a LoRA of {found.base_words}, not of Stable Diffusion 1.5")


def in_words(error: Exception) -> str:
    """An error for the page, worded to follow the file's name, without advice about the command line."""
    if isinstance(error, Damaged):
        return f"{error.problem}: download or copy it again"
    return error.problem if isinstance(error, FileError) else str(error)
