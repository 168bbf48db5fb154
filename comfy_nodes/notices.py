"""What the user should know of work that was done: a line in ComfyUI's log, and a message in its page (see web/)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

EVENT = "scribble_lora.notice"
"""Its data: {"text": "…"}."""

Tell = Callable[[str], None]


def tell(text: str) -> None:
    """Tell the user one line; nothing if it is empty. The page of the browser that queued the workflow shows it."""
    if not text:
        return
    logging.warning("Scribble LoRA: %s", text)
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None:
        server.send_sync(EVENT, {"text": text}, server.client_id)


def once() -> Tell:
    """`tell` for work that applies one file many times: a text is told the first time only."""
    told: set[str] = set()

    def tell_once(text: str) -> None:
        if text not in told:
            told.add(text)
            tell(text)

    return tell_once
