"""Moved to `files.card`; the old name stays until every importer has followed."""

from .files.card import LIMIT, Advice, advice, card_path

__all__ = ["LIMIT", "Advice", "advice", "card_path"]
