"""Tells the web UI of us: called once by scripts/scribble_lora.py when the scripts are loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from modules import script_callbacks, scripts

from . import axes, host, infotext, tab
from .script import TITLE, ScribbleLora

ROOT = Path(__file__).absolute().parents[1]

__all__ = ["ScribbleLora", "register"]


def register() -> None:
    """Hand our callbacks to the web UI.

    From a thread of its own, whose call stack is short: at every callback the web UI reads the source of the whole stack,
    which at its start took 50 ms for ours.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(_register).result()


def _register() -> None:
    script_callbacks.on_before_ui(_before_ui)
    script_callbacks.on_ui_tabs(_tabs)
    script_callbacks.on_infotext_pasted(_pasted)


def _tried(what: str, work: Callable[[], Any]) -> Any:
    """The result, or None with one line in the console: a callback that raises fills it with a traceback."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - the web UI goes on without this part
        host.tell(f"{what}: {type(error).__name__}: {error}")
        return None


def _before_ui() -> None:
    # Forge leaves the folder of every extension on sys.path, where ours would hide another's `trainer` or `convert`.
    sys.path[:] = [place for place in sys.path if os.path.abspath(place) != str(ROOT)]
    _tried("no axes in the X/Y/Z plot", lambda: axes.register(scripts.scripts_data))


def _tabs() -> list[tuple[Any, str, str]]:
    built = _tried("no Import tab", tab.build)
    return [] if built is None else [(built, TITLE, "scribble_lora")]


def _pasted(text: str, params: dict[str, Any]) -> None:
    def work() -> None:
        catalog = host.catalog()
        missing = infotext.pasted(params, catalog.resolve, catalog.by_hash)
        if missing:
            host.tell(missing)
        else:  # the dropdown knows it by its entry
            params[infotext.ADAPTER] = catalog.entry(params[infotext.ADAPTER])

    if infotext.ADAPTER in params:
        _tried("the pasted infotext was not read", work)
