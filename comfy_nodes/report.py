"""What Scribble LoRA Info shows of a file: `convert --check`, and how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..convert.check import check, table
from .adapter import in_node_words
from .advice import of_file

SITE_HASH = 12
"""Hex digits of the sha256 over the tensor bytes by which model sites and the web UI know a LoRA ("AutoV3")."""


class Info(NamedTuple):
    """The node's outputs."""

    text: str
    lora_tag: str
    """what the web UI's prompt takes: `<lora:scribble:0.8>`"""
    hash: str
    """`SITE_HASH` digits; empty for a file that cannot be read"""
    trigger_words: str


def info(path: Path, name: str) -> Info:
    """Describe the LoRA at `path`; `name` is for the text. A broken file is described, not raised."""
    audit, advice = check(path), of_file(path)
    audit.file = name
    audit.problem = audit.problem and in_node_words(audit.problem, path, name)
    tag = f"<lora:{path.stem}:{1.0 if advice.scale is None else advice.scale:g}>"
    found = (audit.hash or "")[:SITE_HASH]
    rows = [
        ("scale", f"{advice.scale:g} recommended" if advice.scale is not None else "none recommended"),
        ("trigger words", advice.trigger_words or "none stated"),
        ("web UI", tag),
        ("AutoV3 hash", found or "none"),
    ]
    use = "\n".join(f"{label:<14}{value}" for label, value in rows)
    return Info(f"{table(audit)}\n{use}", tag, found, advice.trigger_words)
