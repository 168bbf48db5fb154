"""Moved to `identify`; the old functions stay until every importer catches the typed errors instead."""

from collections.abc import Iterable

from . import identify
from .identify import base_of_metadata

__all__ = ["base_of_metadata", "kind_of_keys"]


def kind_of_keys(keys: Iterable[str]) -> str | None:
    names = list(keys)
    kind, base = identify.kind_of_keys(names), identify.base_of_keys(names)
    if base is not None and (kind is None or not kind.hosts_read):
        return f"a LoRA of {base}"
    return kind.name if kind is not None else None
