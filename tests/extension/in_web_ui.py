"""Run by a web UI's own Python (test_web_uis.py): our controls in its Gradio, our tags in its parser. Prints JSON.

    python in_web_ui.py page FOLDER                 the accordion and the tab, used through a browser's API
    python in_web_ui.py grammar CHECKOUT CASES      CASES: {"names": [...], "prompts": [[before, after], ...]}
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]


def module(name: str, **content: Any) -> ModuleType:
    sys.modules[name] = made = ModuleType(name)
    vars(made).update(content)
    return made


def extension(folder: Path) -> Any:
    """Our package with stand-ins for the web UI's modules, and the real Gradio."""
    import gradio as gr

    networks: dict[str, SimpleNamespace] = {}

    def scan() -> None:
        networks.clear()
        for path in folder.rglob("*.safetensors"):
            networks[path.stem] = SimpleNamespace(name=path.stem, filename=str(path))

    module("networks", available_networks=networks, available_network_aliases={}, forbidden_network_aliases={},
           available_network_hash_lookup={}, loaded_networks=[], list_available_networks=scan)  # fmt: skip
    scan()
    def tool_button(value: str, elem_id: str, tooltip: str) -> Any:
        return gr.Button(value, elem_id=elem_id)

    parts = {
        "scripts": module("modules.scripts", Script=object, AlwaysVisible=object(), scripts_data=[]),
        "ui_components": module("modules.ui_components", ToolButton=tool_button),
        "shared": module("modules.shared", cmd_opts=SimpleNamespace(lora_dir=str(folder))),
        "sd_models": module("modules.sd_models", model_data=SimpleNamespace(sd_model=None)),
    }
    module("modules", **parts)
    spec = importlib.machinery.ModuleSpec("scribble_lora", None, is_package=True)
    spec.submodule_search_locations = [str(ROOT)]
    sys.modules["scribble_lora"] = importlib.util.module_from_spec(spec)
    return {name: importlib.import_module(f"scribble_lora.extension.{name}") for name in ("accordion", "import_tab", "host")}


def page(folder: Path) -> dict[str, Any]:
    """The handlers' answers over HTTP, by name."""
    import gradio as gr
    from gradio_client import Client

    parts = extension(folder)
    parts["host"].toast("outside of any event, as /sdapi/v1/png-info pastes")

    def toasted() -> str:
        parts["host"].toast("in an event, as the paste button does")
        return "toasted"

    with gr.Blocks() as demo:
        note = gr.HTML()
        gr.Button("toast").click(toasted, outputs=[note])
        controls = parts["accordion"].build("Scribble LoRA", lambda name: f"txt2img_{name}")
        with gr.Tab("Scribble LoRA"):
            parts["import_tab"].build()
    _, url, _ = demo.queue().launch(prevent_thread_lock=True, quiet=True, show_error=True, server_name="127.0.0.1")
    client = Client(url, verbose=False)
    functions = demo.fns.values() if isinstance(demo.fns, dict) else demo.fns
    numbers = {getattr(one.fn, "__name__", ""): number for number, one in enumerate(functions)}

    def call(name: str, *values: Any) -> Any:
        return client.predict(*values, fn_index=numbers[name])

    entry = next(one for one in controls[1].choices if "theirs" in str(one))
    entry = entry[0] if isinstance(entry, tuple) else entry
    answers = {
        "gradio": gr.__version__,
        "controls": [type(one).__name__ for one in controls],
        "marked": call("marked"),
        "show": call("show", "scribble"),
        "start_scale": call("start_scale", "scribble"),
        "convert_chosen": call("convert_chosen", entry),
        "look": call("look", "scribble.safetensors"),
        "convert_file": call("convert_file", "theirs.safetensors"),
        "reload": call("reload", "no such file"),
        "toasted": toast(call),
    }
    demo.close()
    return answers


def toast(call: Any) -> Any:
    try:
        return call("toasted")
    except KeyError as error:  # Gradio 3's client, unlike its page, does not know the message that carries a toast
        return "toasted" if error.args == ("log",) else repr(error)


def grammar(checkout: Path, cases: dict[str, Any]) -> dict[str, Any]:
    """The names that the web UI reads in our tags, and the schedules that it makes of prompts without them."""
    sys.path.insert(0, str(checkout))
    extra_networks = importlib.import_module("modules.extra_networks")
    try:
        parser = importlib.import_module("modules.prompt_parser")
    except ImportError as error:
        parser, missing = None, str(error)

    def read(prompt: str) -> list[str]:
        _, found = extra_networks.parse_prompt(prompt)
        return [(one.positional or [""])[0] for one in found["lora"]]

    def schedule(prompt: str) -> Any:
        plain, _ = extra_networks.parse_prompt(prompt)
        [steps] = parser.get_learned_conditioning_prompt_schedules([plain], 10)
        return [[step, parser.parse_prompt_attention(text)] for step, text in steps]

    return {
        "names": {name: read(f"cat <lora:{name}:0.8>") for name in cases["names"]},
        "tags": [read(after) for _, after in cases["prompts"]],
        "schedules": [[schedule(one) for one in pair] for pair in cases["prompts"]] if parser else missing,
    }


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        if sys.argv[1] == "page":
            result = page(Path(sys.argv[2]))
        else:
            result = grammar(Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text(encoding="utf-8")))
    print(json.dumps(result))
