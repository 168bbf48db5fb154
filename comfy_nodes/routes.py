"""HTTP routes for the script in web/: advice, description and picture of a LoRA.

    GET /scribble_lora/advice?name=…&name=…   {"scale": 0.8 or null, "trigger_words": "…"}; the words of all names joined
    GET /scribble_lora/info?name=…            {"text": "…", "picture": true or false}
    GET /scribble_lora/picture?name=…         the picture beside the file

Reads only files in the host's own list and the cards and pictures beside them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from . import lora_files
from .errors import NodeError
from .template import joined

if TYPE_CHECKING:
    from aiohttp.web import Request, StreamResponse

ROOT = "/scribble_lora"


def register() -> bool:
    """Add the routes to the running ComfyUI. False if no server is running, or it already has them."""
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if instance is None:
        return False
    if any(str(getattr(route, "path", "")).startswith(ROOT) for route in instance.routes):
        return False  # a second copy of the pack: the host fails to start if a route is added twice
    for name, answer in (("advice", _advice), ("info", _info), ("picture", _picture)):
        instance.routes.get(f"{ROOT}/{name}")(_served(answer))
    return True


def _served(answer: Callable[[list[str]], object]) -> Callable[[Request], object]:
    """A handler that runs `answer` outside the host's event loop. Replies with JSON, a file for a path, or 404 for an error."""

    async def handler(request: Request) -> StreamResponse:
        from aiohttp import web

        names = request.query.getall("name", [])
        try:
            found = await asyncio.get_running_loop().run_in_executor(None, answer, names)
        except (NodeError, OSError) as error:
            return web.json_response({"error": str(error)}, status=404)
        return web.FileResponse(found) if isinstance(found, Path) else web.json_response(found)

    return handler


def _advice(names: list[str]) -> dict[str, object]:
    all_of_them = [lora_files.advice(name) for name in names]
    if not all_of_them:
        raise NodeError("name: is missing")
    return {"scale": all_of_them[0].scale, "trigger_words": joined(advice.trigger_words for advice in all_of_them)}


def _info(names: list[str]) -> dict[str, object]:
    from .report import info

    name = lora_files.full_name(names[0] if names else "")
    return {"text": info(lora_files.path_of(name), name).text, "picture": lora_files.picture_of(name) is not None}


def _picture(names: list[str]) -> Path:
    picture = lora_files.picture_of(names[0] if names else "")
    if picture is None:
        raise NodeError("this LoRA has no picture beside it")
    return picture
