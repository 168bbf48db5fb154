"""The accordion in txt2img and img2img: its controls, and what happens when one is used."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr
from gradio.context import Context
from modules.ui_components import ToolButton

from ..convert.errors import JobError, UsageError
from . import generation, host, import_files, inspection, panel
from .arguments import DEFAULT_SCALE, MAX_SCALE, MIN_SCALE, NO_ADAPTER
from .inspection import Inspected, Use, in_words
from .lora_files import LoraFiles

REFRESH = "\U0001f504"

GRADIO = int(gr.__version__.partition(".")[0])

MARKING_SECONDS = 1.0
"""Time limit for inspecting files when the page opens. Start-up inspects none, the refresh button all."""


def build(title: str, elem_id: Callable[[str], str]) -> list[object]:
    """Build the controls; returns those that are script arguments, in the order of `arguments.ARGUMENTS`."""
    with gr.Accordion(title, open=False, elem_id=elem_id("accordion"), elem_classes=["scribble-lora"]):
        enabled = gr.Checkbox(False, label="Enable", elem_id=elem_id("enable"), elem_classes=["scribble-lora-enable"])
        with gr.Row():
            choices = host.files().choices(seconds=0)
            # Gradio 4 rejects a value that is not in the list, such as an entry pasted before the list has its marks
            adapter = gr.Dropdown(
                choices, value=NO_ADAPTER, label="Adapter", elem_id=elem_id("adapter"), allow_custom_value=GRADIO > 3
            )
            refresh = ToolButton(value=REFRESH, elem_id=elem_id("refresh"), tooltip="Read the LoRA folder again")
        scale = gr.Slider(MIN_SCALE, MAX_SCALE, value=DEFAULT_SCALE, step=0.05, label="Scale", elem_id=elem_id("scale"))
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


def show(entry: str) -> tuple[object, object]:
    """The chosen file's facts, and the Convert button if the file needs converting."""
    return _shown(host.files(), entry)


def marked() -> object:
    """The dropdown with the marks that start-up skipped."""
    return gr.update(choices=host.files().choices(MARKING_SECONDS))


def show_whole(entry: str) -> tuple[object, object]:
    """`show` again, after checking every number in the file. The result is kept for the next generation."""
    files = host.files()
    found = files.chosen(entry)
    if found is not None:
        inspection.inspect_numbers(found.path, files.web_ui)
    return _shown(files, entry)


def start_scale(entry: str) -> object:
    """Set the slider to the recommended scale of the file that was just chosen."""
    found = host.files().chosen(entry)
    return gr.update() if found is None else gr.update(value=generation.recommended(found))


def reload(entry: str) -> tuple[object, ...]:
    """Rescan the folders and rebuild the dropdown. A missing adapter stays selected, with a message that explains why."""
    files = host.rescanned()
    name = files.name_of(entry)
    kept = files.entry(name) if name is not None else entry
    choices = files.choices()
    return (gr.update(choices=choices if kept in choices else [*choices, kept], value=kept), *_shown(files, entry))


def convert_chosen(entry: str) -> tuple[object, ...]:
    """Convert the chosen file beside itself and choose the result."""
    files = host.files()
    found = files.chosen(entry)
    if found is None:
        return gr.update(), gr.update(), *_shown(files, entry)
    try:
        report = import_files.convert_beside(found.path, files.paths)
    except (JobError, UsageError) as error:
        text = f"{found.path.name}: {in_words(error)}"
        host.tell(text)
        facts, button = _shown(files, entry)
        return gr.update(), gr.update(), panel.message(text) + facts, button
    host.tell(f"{found.path.name} -> {report.target.name}: {report.form} -> {report.to}")
    files = host.rescanned()
    made = files.spelled(report.target.stem)
    return gr.update(choices=files.choices(), value=made), start_scale(made), *_shown(files, made)


def _shown(files: LoraFiles, entry: str | None) -> tuple[str, object]:
    found = files.chosen(entry)
    if found is None and entry and entry != NO_ADAPTER:
        return panel.missing(entry, files.why_missing(entry)), gr.update(visible=False)
    url = host.picture_url(found.path) if found is not None else ""
    return panel.facts(found, host.model_kind(), url), gr.update(visible=_convertible(found))


def _convertible(found: Inspected | None) -> bool:
    return found is not None and found.use is Use.CONVERT
