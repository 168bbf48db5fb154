"""The extension's pure modules, and a stand-in for a web UI: a recording Gradio, `modules` and `networks`."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


COMPONENTS = ("Accordion", "Blocks", "Button", "Checkbox", "Column", "Dropdown", "HTML", "Image", "Row", "Slider", "Textbox")
PURE = ("arguments", "cards", "failures", "generation", "import_files", "infotext", "inspection", "lora_files", "panel",
        "prompts", "web_uis")  # fmt: skip
"""The modules that import no host."""


class Component:
    """Any Gradio component, container or Blocks: its arguments, and the events bound to it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options, self.events = arguments, options, {}

    def __enter__(self) -> Component:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __getattr__(self, event: str) -> Any:
        if event not in ("change", "input", "click", "load"):
            raise AttributeError(event)

        def bind(handler: Any, **options: Any) -> SimpleNamespace:
            self.events.setdefault(event, []).append((handler, options))
            return SimpleNamespace(then=bind)

        return bind


class Script:
    """`modules.scripts.Script`"""

    def elem_id(self, name: str) -> str:
        return f"script_{name}"


class Processing(SimpleNamespace):
    """The hooks' processing object, with its prompts set up."""

    def __init__(self, *prompts: str, batch_size: int = 1, **more: Any) -> None:
        super().__init__(all_prompts=list(prompts), all_negative_prompts=[""] * len(prompts), main_prompt=prompts[0],
                         extra_generation_params={}, comments=[], batch_size=batch_size, width=128, height=128,
                         **more)  # fmt: skip

    def comment(self, text: str) -> None:
        self.comments.append(text)

    def run(self, script: Any, *args: Any, expand: Any = None, late: Any = None, load: Any = None) -> Processing:
        """The web UI's order of hooks in `process_images_inner`.

        Args:
            expand: another extension's change to the prompts after our `process`.
            late: another extension's change to a batch's prompts after our `before_process_batch`.
            load: the web UI's loading of a batch's LoRAs.
        """
        script.process(self, *args)
        if expand is not None:
            self.all_prompts = [expand(prompt) for prompt in self.all_prompts]
        for number in range(len(self.all_prompts) // self.batch_size):
            places = slice(number * self.batch_size, (number + 1) * self.batch_size)
            self.prompts = self.all_prompts[places]
            script.before_process_batch(self, *args, batch_number=number, prompts=self.prompts)
            self.prompts = [late(prompt) for prompt in self.prompts] if late is not None else self.prompts
            tags = re.findall(r"<lora:([^>]+)>", self.prompts[0])
            self.extra_network_data = {"lora": [SimpleNamespace(positional=tag.split(":")) for tag in tags]}
            if load is not None:
                load(list(self.prompts))
            script.process_batch(self, *args, batch_number=number, prompts=self.prompts)
            script.postprocess_batch(self, *args, batch_number=number, images=None)
        return self


class WebUI:
    """The stand-in's modules, for `sys.modules`, and the messages that it received from the extension."""

    def __init__(self, folder: Path, gradio: str = "3.41.2") -> None:
        self.folder, self.root = folder, Component()
        self.callbacks: dict[str, Any] = {}
        self.errors: dict[str, int] = {}
        self.stack_depths: list[int] = []
        self.toasts: list[str] = []
        self.gradio = _module("gradio", update=lambda **changes: changes, __version__=gradio, Warning=self.toasts.append)
        vars(self.gradio).update(dict.fromkeys(COMPONENTS, Component))
        self.scripts = _module("modules.scripts", Script=Script, AlwaysVisible=object(), scripts_data=[])
        self.networks = _module(
            "networks", available_networks={}, available_network_aliases={}, forbidden_network_aliases={},
            available_network_hash_lookup={}, loaded_networks=[], list_available_networks=self.list_networks,
        )  # fmt: skip
        self.model = SimpleNamespace(is_sd1=True, is_sd2=False, is_sdxl=False, is_sd3=False)
        self.list_networks()

    def list_networks(self) -> None:
        networks = self.networks.available_networks
        networks.clear()
        for path in sorted(self.folder.rglob("*.safetensors")):
            networks[path.stem] = SimpleNamespace(name=path.stem, filename=str(path))

    def modules(self) -> dict[str, ModuleType]:
        names = ("before_ui", "ui_tabs", "infotext_pasted", "app_started")
        callbacks = {f"on_{name}": self._recorder(name) for name in names}
        parts = {
            "scripts": self.scripts,
            "script_callbacks": _module("modules.script_callbacks", **callbacks),
            "ui_components": _module("modules.ui_components", ToolButton=Component),
            "shared": _module("modules.shared", cmd_opts=SimpleNamespace(lora_dir=str(self.folder))),
            "sd_models": _module("modules.sd_models", model_data=SimpleNamespace(sd_model=self.model)),
            "extra_networks": _module(
                "modules.extra_networks", extra_network_registry={"lora": SimpleNamespace(errors=self.errors)}
            ),
        }
        context = _module("gradio.context", Context=SimpleNamespace(root_block=self.root))
        return {
            "gradio": self.gradio, "gradio.context": context, "networks": self.networks,
            "modules": _module("modules", **parts), **{f"modules.{name}": part for name, part in parts.items()},
        }  # fmt: skip

    def _recorder(self, name: str) -> Any:
        def record(callback: Any) -> None:
            self.callbacks[name] = callback
            self.stack_depths.append(len(inspect.stack(0)))

        return record


    def start(self) -> SimpleNamespace:
        """As the web UI does at its start and at "Reload UI": run our script; returns the extension's modules."""
        names = runpy.run_path(str(ROOT / "scripts/scribble_lora.py"))
        parts = {name.rpartition(".")[2]: part for name, part in sys.modules.items() if name.startswith("scribble_lora.ext")}
        return SimpleNamespace(names=names, Script=names.get("ScribbleLora"), **parts)

    def load(self, prompts: list[str]) -> None:
        """As A1111 does with the tags of a batch: it uses the first prompt's, for files that it lists."""
        found = re.findall(r"<lora:([^:>]+):([\d.]+)", prompts[0])
        self.networks.loaded_networks[:] = [
            SimpleNamespace(name=name, mentioned_name=name, unet_multiplier=float(scale))
            for name, scale in found if name in self.networks.available_networks
        ]  # fmt: skip

    def generate(self, script: Any, *args: Any, prompts: tuple[str, ...] = ("cat",), **more: Any) -> Processing:
        """A generation of these prompts, one a batch."""
        return Processing(*prompts).run(script, *args, load=self.load, **more)

    @staticmethod
    def processing(*prompts: str, **more: Any) -> Processing:
        return Processing(*prompts, **more)


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module


@pytest.fixture(scope="module")
def core() -> Iterator[SimpleNamespace]:
    """The pure modules, loaded as the web UI loads them: by path, as `scribble_lora`, with no host installed."""
    spec = importlib.machinery.ModuleSpec("scribble_lora", None, is_package=True)
    spec.submodule_search_locations = [str(ROOT)]
    sys.modules["scribble_lora"] = importlib.util.module_from_spec(spec)
    yield SimpleNamespace(**{name: importlib.import_module(f"scribble_lora.extension.{name}") for name in PURE})
    for name in [name for name in sys.modules if name.split(".")[0] == "scribble_lora"]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A LoRA folder: a file that works, one to convert, and one that is a web page."""
    down, up = torch.ones(4, 320), torch.ones(320, 4)
    kohya = "lora_unet_" + UNET.replace(".", "_")
    metadata = {"scribble_scale": "0.7", "modelspec.trigger_phrase": "a scribble of"}
    save_file({f"{kohya}.lora_down.weight": down, f"{kohya}.lora_up.weight": up, f"{kohya}.alpha": torch.tensor(4.0)},
              tmp_path / "scribble.safetensors", metadata=metadata)
    save_file({f"unet.{UNET}.lora.down.weight": down, f"unet.{UNET}.lora.up.weight": up}, tmp_path / "theirs.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"<html>")
    return tmp_path


@pytest.fixture
def webui(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebUI]:
    """A web UI with `folder`, in `sys.modules` for one test."""
    stand_in = WebUI(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the extension takes this folder out of it, in place
    for name, module in stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    yield stand_in
    for name in [name for name in sys.modules if name.split(".")[0] == "scribble_lora"]:
        del sys.modules[name]
