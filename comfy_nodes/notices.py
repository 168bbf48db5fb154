"""Notices to the user: a line in ComfyUI's log and a toast on its page (see web/)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

EVENT = "scribble_lora.notice"
"""Its data: {"text": "…"}."""

Tell = Callable[[str], None]

Outputs = TypeVar("Outputs", bound="tuple[Any, ...]")


class WithText(TypedDict):
    """A node's outputs and texts, in ComfyUI's form."""

    ui: dict[str, list[str]]
    result: tuple[Any, ...]


def tell(text: str) -> None:
    """Show the user one line, in the browser that queued the workflow. An empty text is ignored."""
    if not text:
        return
    logging.warning("Scribble LoRA: %s", text)
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None:
        server.send_sync(EVENT, {"text": text}, server.client_id)


class Told:
    """A `tell` for the work of one node: shows each text only once, and adds the texts to the node's result."""

    def __init__(self) -> None:
        self._texts: dict[str, None] = {}

    def __call__(self, text: str) -> None:
        """Show `text` unless it was shown before."""
        if text and text not in self._texts:
            self._texts[text] = None
            tell(text)

    def beside(self, outputs: Outputs) -> Outputs | WithText:
        """The node's outputs, with any texts shown, which ComfyUI keeps in the history for API clients."""
        return WithText(ui={"text": list(self._texts)}, result=outputs) if self._texts else outputs
