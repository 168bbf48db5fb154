"""The text of Scribble LoRA Info: how to use the file, then `convert --check`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..convert import check
from ..convert.check import table
from . import adapter, advice
from .wording import sentence

SITE_HASH = 12
"""Hex digits of the AutoV3 hash, the sha256 over the tensor bytes by which model sites and the web UI identify a LoRA."""


class Info(NamedTuple):
    """The node's outputs."""

    text: str
    lora_tag: str
    """for the web UI's prompt: `<lora:scribble:0.8>`"""
    hash: str
    """`SITE_HASH` digits; empty for a file that cannot be read"""
    trigger_words: str


def info(path: Path, name: str) -> Info:
    """Describe the LoRA at `path`; `name` is for the text. A broken file is described, not raised."""
    return _info(path, name, (*adapter.fingerprint(path), *advice.fingerprint(path)))


@lru_cache(maxsize=16)
def _info(path: Path, name: str, _: tuple[int, ...]) -> Info:
    audit, found = check(path), advice.of_file(path)
    audit.file = name
    audit.problem = audit.error and sentence(audit.error, name)
    tag = f"<lora:{path.stem}:{1.0 if found.scale is None else found.scale:g}>"
    digest = (audit.hash or "")[:SITE_HASH]
    rows = [
        ("scale", f"{found.scale:g} recommended" if found.scale is not None else "none recommended"),
        ("trigger words", found.trigger_words or "none stated"),
        ("web UI", tag),
        ("AutoV3 hash", digest or "none"),
    ]
    use = "\n".join(f"{label:<14}{value}" for label, value in rows)
    return Info(f"{use}\n{table(audit, advice=False)}", tag, digest, found.trigger_words)
