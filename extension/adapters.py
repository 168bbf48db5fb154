"""What a file in the LoRA folders is, and whether the web UI can use it. Only headers are read, each once."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from pathlib import Path

from ..convert import foreign, write
from ..convert.card import card_path
from ..convert.check import check
from ..convert.container import Container, open_container
from ..convert.errors import JobError
from ..convert.lora import SD15, Lora
from ..convert.read import UnknownKeys, read
from ..convert.sd15 import TEXT_ENCODER, UNET
from . import cards
from .cards import Card

MINIATURE = "scribble_miniature"
"""What our trainer writes as the base of a LoRA of its embedded model."""

_BASE_WORDS = {MINIATURE: "Scribble LoRA's own miniature model"}


class Use(Enum):
    """Can the web UI use the file?"""

    READY = "ready"
    CONVERT = "convert"
    """sound, in a form that the web UI does not read"""
    OTHER_BASE = "other base"
    """not for Stable Diffusion 1.5; `base` says for what"""
    UNCHECKED = "unchecked"
    """a kind of network that only the web UI itself knows"""
    BROKEN = "broken"


@dataclass(frozen=True)
class Adapter:
    """A file, understood as far as it goes."""

    path: Path
    use: Use
    why: str = ""
    """what is wrong or not known, after "<name>: "; empty where all is well"""
    form: str = ""
    base: str = ""
    """the kind of model it is for: SD1, SD2, SDXL, … or the file's own word"""
    rank: int = 0
    alpha: float = 0.0
    unet: int = 0
    """patched modules"""
    text_encoder: int = 0
    card: Card = Card()

    @property
    def name(self) -> str:
        """What a tag calls it."""
        return self.path.stem

    @property
    def base_words(self) -> str:
        """`base`, for a sentence."""
        return _BASE_WORDS.get(self.base, "Stable Diffusion 1.5" if self.base == "SD1" else self.base)


Stamp = tuple[int, ...]


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


def examine(path: Path) -> Adapter:
    """What `path` is; read anew only when it or its card has changed. Raises nothing for a bad file."""
    now = stamp(path)
    adapter = _examine(path, now)
    flaw = _FLAWS.get((path, now))
    return replace(adapter, use=Use.BROKEN, why=flaw) if flaw else adapter


def examine_numbers(path: Path) -> Adapter:
    """`examine`, and where the header is sound every number too, which takes seconds for a large file; known from then on."""
    now = stamp(path)
    adapter = _examine(path, now)
    if adapter.use in (Use.READY, Use.CONVERT) and (path, now) not in _FLAWS:
        audit = check(path)
        _FLAWS[path, now] = "" if audit.sound else in_words(JobError(audit.problem), path)
    return examine(path)


def known(path: Path) -> Adapter | None:
    """`examine(path)` where that costs nothing, else None. At the host's start not even the disk is asked."""
    return _SEEN.get((path, stamp(path))) if _SEEN else None


_SEEN: dict[tuple[Path, Stamp], Adapter] = {}
_FLAWS: dict[tuple[Path, Stamp], str] = {}
"""Files whose numbers were looked at -> what is wrong with them; few, as each was chosen by somebody."""


@lru_cache(maxsize=4096)
def _examine(path: Path, now: Stamp) -> Adapter:
    if path.suffix.lower() != ".safetensors":
        adapter = Adapter(path, Use.UNCHECKED, "is a pickle, which only the web UI itself can look into")
    else:
        try:
            container = open_container(path)
            adapter = replace(_of_header(path, container), card=cards.read(path, container.metadata))
        except JobError as error:
            adapter = Adapter(path, Use.BROKEN, in_words(error, path))
    if len(_SEEN) >= 4096:
        _SEEN.clear()
    _SEEN[path, now] = adapter
    return adapter


def _of_header(path: Path, container: Container) -> Adapter:
    base = foreign.base_of_metadata(container.metadata)
    if base:
        return _of_other_base(path, base)
    if any(key.startswith("bundle_emb.") for key in container.tensors):
        return Adapter(path, Use.UNCHECKED, "has an embedding inside, which only the web UI itself reads")
    try:
        lora = read(path)
    except JobError as error:
        return _refused(path, container, error)
    if lora.base != SD15 and any(module.shape != module.module.shape for module in lora.modules.values()):
        return _of_other_base(path, lora.base)
    found = Adapter(
        path, Use.READY, form=lora.form, base="SD1", rank=lora.rank, alpha=lora.alpha,
        unet=len(lora.in_scope(UNET)), text_encoder=len(lora.in_scope(TEXT_ENCODER)),
    )  # fmt: skip
    return _judged(found, lora, container)


def _judged(found: Adapter, lora: Lora, container: Container) -> Adapter:
    """A LoRA of SD1.5: does the web UI read its keys, and if not, can it be converted?"""
    try:
        write.refuse_what_the_form_lacks(lora, "kohya")
    except JobError as error:
        return replace(found, use=Use.BROKEN, why=f"has no effect in the web UI: {in_words(error, found.path)}")
    if all(_host_reads(key) for key in container.tensors):
        return found
    return replace(
        found, use=Use.CONVERT, why=f"is a file in the form \"{lora.form}\", which the web UI does not read: convert it first"
    )


def _host_reads(key: str) -> bool:
    """Whether the LoRA extension of A1111 v1.10.1 finds a module for this key (`load_network` in its networks.py)."""
    named = key.startswith(("lora_unet_", "lora_te_text_model_", "lora_te1_text_model_"))
    parts = r"\.(lora_(down|up|mid|A|B)\.weight|alpha|dora_scale|diff|diff_b|w_norm|b_norm)$"
    return named and re.search(parts, key) is not None


def _refused(path: Path, container: Container, error: JobError) -> Adapter:
    kind = foreign.kind_of_keys(container.tensors) or ""
    of_base = re.search(r"is a LoRA of ([^;]+);", str(error)) or re.match(r"a LoRA of (.+)", kind)
    if of_base:
        return _of_other_base(path, of_base.group(1))
    if re.match(r"an? (LoHa|LoKr|OFT|IA3|GLoRA)", kind):
        return Adapter(path, Use.UNCHECKED, f"is {kind}, which only the web UI itself reads")
    if isinstance(error, UnknownKeys) and any(key.startswith("lora_") for key in container.tensors):
        return Adapter(path, Use.UNCHECKED, f"may not be applied whole: {in_words(error, path)}")
    return Adapter(path, Use.BROKEN, in_words(error, path))


def _of_other_base(path: Path, base: str) -> Adapter:
    found = Adapter(path, Use.OTHER_BASE, base=base)
    return replace(found, why=f"is a LoRA of {found.base_words}, not of Stable Diffusion 1.5")


def in_words(error: Exception, path: Path) -> str:
    """An error's message without the path in front; the name is said by who shows it."""
    return str(error).removeprefix(f"{path}: ").replace(str(path), path.name)
