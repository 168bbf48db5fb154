"""`GET /scribble_lora/advice?name=…`: what a LoRA file recommends, for the script in web/ that sets the slider.

Reads only files of the host's own list, and of those only the header and the card.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from typing import Any

from . import host
from .errors import NodeError

PATH = "/scribble_lora/advice"


def register() -> bool:
    """Add the route to the running ComfyUI; False where there is none, or it has the route."""
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if instance is None:
        return False
    if any(getattr(route, "path", None) == PATH for route in instance.routes):
        return False  # a second copy of the pack: the host could not start with the same route twice
    instance.routes.get(PATH)(_answer)
    return True


async def _answer(request: Any) -> Any:
    from aiohttp import web

    name = request.query.get("name", "")
    try:
        advice = await asyncio.get_running_loop().run_in_executor(None, host.advice, name)
    except NodeError as error:
        return web.json_response({"error": str(error)}, status=404)
    return web.json_response(asdict(advice))
