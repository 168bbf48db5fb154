"""Entry point for AUTOMATIC1111's web UI, which runs this file at start. The code is in extension/.

The repository is loaded by path as the package `scribble_lora`, without running the root `__init__.py` (ComfyUI's entry
point), so that generic names (`convert`, `trainer`, …) do not clash with other extensions. A damaged folder costs one line.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys

_PACKAGE = "scribble_lora"
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _package() -> None:
    """Create the package anew: the web UI's "Reload UI" runs this file again, maybe after an update."""
    for name in [name for name in sys.modules if name.split(".")[0] == _PACKAGE]:
        del sys.modules[name]
    spec = importlib.machinery.ModuleSpec(_PACKAGE, None, is_package=True)
    spec.submodule_search_locations = [_ROOT]
    sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)


def _other_copy() -> str | None:
    """The folder of another copy of this extension that the web UI loaded before this one."""
    from modules import scripts

    others = (data for data in scripts.scripts_data if os.path.basename(data.path) == os.path.basename(__file__))
    return next((str(data.basedir) for data in others), None)


def _panel(error: Exception) -> str:
    """The panel for a bug report; "" if the folder is too damaged to import it."""
    try:
        return str(importlib.import_module(f"{_PACKAGE}.extension.failures").panel("is off", error)) + "\n"
    except Exception:  # noqa: BLE001 - the caller reports the first error
        return ""


try:
    if _other_copy():
        print(f"Scribble LoRA: {_ROOT} is a second copy and stays off; {_other_copy()} is on", file=sys.stderr)
    else:
        _package()
        _register = importlib.import_module(f"{_PACKAGE}.extension.register")
        _register.register()
        ScribbleLora = _register.ScribbleLora
except Exception as error:  # noqa: BLE001 - the web UI continues without us
    _why = " ".join(f"{type(error).__name__}: {error}".split())
    _text = _panel(error)
    _advice = f": {_why}" if _text else f", because its folder is damaged ({_why}): install it again into {_ROOT}"
    print(f"{_text}Scribble LoRA: is off{_advice}", file=sys.stderr)
