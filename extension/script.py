"""The accordion in txt2img and img2img, and the hooks of a generation. Whatever fails here is said and gone on from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.context import Context
from modules import scripts  # never `from modules.scripts import Script`: the web UI would register that class as ours
from modules.ui_components import ToolButton

from ..convert.errors import JobError, UsageError
from . import adapters, applying, host, importing, infotext, panel
from .adapters import Adapter, Use, in_words
from .catalog import Catalog
from .request import LEAST, MOST, NOBODY, USUAL

TITLE = "Scribble LoRA"
REFRESH = "\U0001f504"

GRADIO = int(gr.__version__.partition(".")[0])

MARKING_SECONDS = 1.0
"""What opening the page may spend on looking into files; start-up looks into none, refresh into all."""


class ScribbleLora(scripts.Script):
    """Applies one LoRA by its tag."""

    def title(self) -> str:
        return TITLE

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        try:
            controls = accordion(self.elem_id)
        except Exception as error:  # noqa: BLE001 - with --api, an error here would end the whole web UI
            host.tell(f"its controls cannot be shown: {type(error).__name__}: {error}")
            return []
        self.infotext_fields = list(zip(controls, infotext.FIELDS))
        self.paste_field_names = list(infotext.FIELDS)
        return controls

    def process(self, p: Any, *args: Any) -> None:
        p.scribble_lora_applied = None
        try:
            p.scribble_lora_applied = applying.process(
                p, args, host.catalog, host.model_kind(), lambda text: host.comment(p, text)
            )
        except Exception as error:  # noqa: BLE001 - the web UI would go on in silence
            host.comment(p, f"nothing was applied: {type(error).__name__}: {error}")

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        applied = getattr(p, "scribble_lora_applied", None)
        if applied is not None and not host.is_loaded(applied.name):
            host.comment(p, f"the web UI did not load {applied.name}: its console says why")


def accordion(elem_id: Callable[[str], str]) -> list[Any]:
    """Build the controls; returns those that are arguments, in `request.parse`'s order."""
    with gr.Accordion(TITLE, open=False, elem_id=elem_id("accordion"), elem_classes=["scribble-lora"]):
        enabled = gr.Checkbox(False, label="Enable", elem_id=elem_id("enable"), elem_classes=["scribble-lora-enable"])
        with gr.Row():
            choices = host.catalog().choices(seconds=0)
            # Gradio 4 refuses a value that is in no list, such as the entry that a paste brings before the marks are there
            adapter = gr.Dropdown(
                choices, value=NOBODY, label="Adapter", elem_id=elem_id("adapter"), allow_custom_value=GRADIO > 3
            )
            refresh = ToolButton(value=REFRESH, elem_id=elem_id("refresh"), tooltip="Read the LoRA folder again")
        scale = gr.Slider(LEAST, MOST, value=USUAL, step=0.05, label="Scale", elem_id=elem_id("scale"))
        trigger = gr.Checkbox(
            False, label="Start the prompt with the adapter's trigger words", elem_id=elem_id("trigger_words")
        )
        facts = gr.HTML(panel.facts(None, ""), elem_id=elem_id("facts"))
        convert = gr.Button("Convert it for the web UI", visible=False, elem_id=elem_id("convert"))
    shown = [facts, convert]
    if Context.root_block is not None:
        Context.root_block.load(marked, outputs=[adapter], show_progress=False, queue=False)
    chosen = adapter.change(show, inputs=[adapter], outputs=shown, show_progress=False)
    chosen.then(show_whole, inputs=[adapter], outputs=shown, show_progress=False)
    adapter.input(start_scale, inputs=[adapter], outputs=[scale], show_progress=False)
    refresh.click(reload, inputs=[adapter], outputs=[adapter, *shown])
    convert.click(convert_chosen, inputs=[adapter], outputs=[adapter, scale, *shown])
    return [enabled, adapter, scale, trigger]


def show(name: str) -> tuple[Any, Any]:
    """The facts of the chosen file, and whether there is something to convert."""
    return _shown(_found(host.catalog(), name))


def marked() -> Any:
    """The dropdown with the marks that start-up had no time for."""
    return gr.update(choices=host.catalog().choices(MARKING_SECONDS))


def show_whole(name: str) -> tuple[Any, Any]:
    """`show` once more, after every number of the file was looked at; a generation then knows of it too."""
    adapter = _found(host.catalog(), name)
    return _shown(adapters.examine_numbers(adapter.path) if adapter is not None else None)


def start_scale(name: str) -> Any:
    """The slider at what the file that was just chosen recommends."""
    adapter = _found(host.catalog(), name)
    return gr.update() if adapter is None else gr.update(value=applying.recommended(adapter))


def reload(name: str) -> tuple[Any, ...]:
    """The dropdown from the folders as they are now."""
    catalog = host.refreshed()
    adapter = _found(catalog, name)
    kept = catalog.entry(adapter.name) if adapter is not None else NOBODY
    return (gr.update(choices=catalog.choices(), value=kept), *_shown(adapter))


def convert_chosen(name: str) -> tuple[Any, ...]:
    """Convert the chosen file beside itself and choose the result."""
    catalog = host.catalog()
    adapter = _found(catalog, name)
    if adapter is None:
        return gr.update(), gr.update(), gr.update(), gr.update()
    try:
        report = importing.convert_beside(adapter.path, catalog.paths)
    except (JobError, UsageError) as error:
        text = in_words(error, adapter.path)
        host.tell(text)
        facts, button = _shown(adapter)
        return gr.update(), gr.update(), panel.message(text) + facts, button
    host.tell(f"{adapter.path.name} -> {report.target.name}: {report.form} -> {report.to}")
    catalog = host.refreshed()
    made = _found(catalog, report.target.stem)
    chosen = gr.update(choices=catalog.choices(), value=report.target.stem)
    return (chosen, start_scale(report.target.stem), *_shown(made))


def _found(catalog: Catalog, entry: str | None) -> Adapter | None:
    return catalog.find(catalog.name_of(entry)) if entry and entry != NOBODY else None


def _shown(adapter: Adapter | None) -> tuple[str, Any]:
    html = panel.facts(adapter, host.model_kind(), host.picture_url(adapter.path) if adapter is not None else "")
    return html, gr.update(visible=adapter is not None and adapter.use is Use.CONVERT)
