"""Registers the extension's callbacks: called once by scripts/scribble_lora.py when the scripts are loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from modules import script_callbacks, scripts

from . import arguments, host, import_tab, infotext, xyz
from .script import TITLE, ScribbleLora

ROOT = Path(__file__).absolute().parents[1]

ARGUMENTS_ROUTE = "/scribble-lora/arguments"

T = TypeVar("T")


class App(Protocol):
    """The part of the web UI's FastAPI app that we use."""

    def add_api_route(self, path: str, endpoint: Callable[[], object], **options: object) -> None: ...


__all__ = ["ScribbleLora", "register"]


def register() -> None:
    """Register our callbacks with the web UI.

    Runs in a separate thread, because its call stack is short: for every callback the web UI reads the source of the whole
    stack, which took 50 ms at start-up.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(_register).result()


def _register() -> None:
    script_callbacks.on_before_ui(_before_ui)
    script_callbacks.on_ui_tabs(_tabs)
    script_callbacks.on_infotext_pasted(_pasted)
    script_callbacks.on_app_started(_app_started)


def _guarded(what: str, work: Callable[[], T]) -> T | None:
    """Run `work`. An error is reported in the console, returns None, and the web UI continues without this part."""
    try:
        return work()
    except host.LoraExtensionOff as error:
        host.tell(f"{what}: {error}")
    except Exception as error:  # noqa: BLE001
        host.tell(host.unforeseen(what, error))
    return None


def _before_ui() -> None:
    # Forge leaves every extension's folder on sys.path, where ours would shadow another extension's `trainer` or `convert`.
    sys.path[:] = [place for place in sys.path if os.path.abspath(place) != str(ROOT)]
    _guarded("no axes in the X/Y/Z plot", lambda: xyz.register(scripts.scripts_data))


def _tabs() -> list[tuple[object, str, str]]:
    built = _guarded("no Import tab", import_tab.build)
    return [] if built is None else [(built, TITLE, "scribble_lora")]


def _pasted(text: str, params: dict[str, object]) -> None:
    def work() -> None:
        files = host.files()
        gone = infotext.pasted(params, lambda name: files.name_of(name) or files.resolve(name), files.by_hash)
        if gone is not None:
            host.toast(f"the pasted picture used {gone}, which {files.why_missing(gone)}")
        else:  # the dropdown's entry may have a mark after the name
            params[infotext.ADAPTER] = files.entry(str(params[infotext.ADAPTER]))

    if infotext.ADAPTER in params:
        _guarded("the pasted infotext was not read", work)


def _app_started(demo: object, app: App) -> None:
    """Document the arguments of an API call in the schema at /docs and /openapi.json."""

    def schema() -> dict[str, object]:
        return arguments.json_schema()

    example = {"application/json": {"schema": arguments.json_schema()}}
    _guarded("its arguments are not in the API's schema", lambda: app.add_api_route(
        ARGUMENTS_ROUTE, schema, methods=["GET"], tags=[TITLE], summary="Arguments of the script Scribble LoRA, by name",
        description='Given as `"alwayson_scripts": {"Scribble LoRA": {"args": [{"enabled": true, "adapter": "…"}]}}`.',
        responses={200: {"description": "JSON Schema of the arguments", "content": example}},
    ))  # fmt: skip
