"""The tab "Scribble LoRA": look into any file of the LoRA folders, convert it, write its card and picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from modules.ui_components import ToolButton

from ..convert.errors import JobError, UsageError
from . import adapters, applying, cards, host, importing, panel
from .request import LEAST, MOST
from .script import GRADIO, REFRESH

INTRODUCTION = (
    "Import: put a LoRA of any form into the LoRA folder, choose it here, see what it is, and convert it for the web UI. "
    "The original stays as it is."
)


def build() -> Any:
    """The tab as a `gr.Blocks`."""
    with gr.Blocks(analytics_enabled=False) as tab:
        gr.HTML(f"{panel.STYLE}<p>{INTRODUCTION}</p>")
        with gr.Row():
            with gr.Column(scale=3):
                with gr.Row():
                    file = gr.Dropdown([], label="File", elem_id="scribble_lora_file", allow_custom_value=GRADIO > 3)
                    refresh = ToolButton(value=REFRESH, elem_id="scribble_lora_file_refresh", tooltip="Read the folders again")
                found = gr.HTML(elem_id="scribble_lora_check")
                convert = gr.Button("Convert for the web UI", variant="primary", elem_id="scribble_lora_convert")
                converted = gr.HTML(elem_id="scribble_lora_converted")
            with gr.Column(scale=2):
                trigger = gr.Textbox(label="Trigger words", elem_id="scribble_lora_card_trigger")
                scale = gr.Slider(
                    LEAST, MOST, value=0, step=0.05, label="Recommended scale (0: none)", elem_id="scribble_lora_card_scale"
                )
                text = gr.Textbox(label="Description", lines=3, elem_id="scribble_lora_card_description")
                image = gr.Image(label="Picture", type="pil", height=240, elem_id="scribble_lora_card_picture")
                replace = gr.Checkbox(False, label="Replace the picture that is there", elem_id="scribble_lora_card_replace")
                write = gr.Button("Write the card", elem_id="scribble_lora_card_write")
                written = gr.HTML(elem_id="scribble_lora_card_written")
        card = [trigger, scale, text]
        file.change(look, inputs=[file], outputs=[found, *card, image, replace, converted, written])
        refresh.click(listed, outputs=[file])
        tab.load(listed, outputs=[file], show_progress=False, queue=False)
        convert.click(convert_file, inputs=[file], outputs=[file, converted])
        write.click(write_card, inputs=[file, *card, image, replace], outputs=[written])
    return tab


def listed() -> Any:
    """The dropdown's entries as the folders are now."""
    return gr.update(choices=list(importing.files(host.folders())))


def look(name: str | None) -> tuple[Any, ...]:
    """`convert --check`'s table and the card of a file; a picture chosen for another file goes."""
    path = _path(name)
    if path is None:
        return "", "", 0, "", None, False, "", ""
    sound, table = importing.describe(path, str(name))
    card = adapters.examine(path).card
    fields = card.trigger_words, min(card.scale or 0, MOST), card.description
    return panel.preformatted(table, sound=sound), *fields, None, False, panel.message(card.problem), ""


def convert_file(name: str | None) -> tuple[Any, str]:
    """Convert beside the original; the new file is in the list afterwards."""
    path = _path(name)
    if path is None:
        return gr.update(), panel.message("choose a file first")
    adapter = adapters.examine(path)
    if adapter.use is adapters.Use.READY:
        return gr.update(), panel.message(f"{adapter.name} is in the web UI's form already: nothing to do", good=True)
    try:
        report = importing.convert_beside(path, host.catalog().paths)
    except (JobError, UsageError) as error:
        host.tell(adapters.in_words(error, path))
        return gr.update(), panel.message(adapters.in_words(error, path))
    host.refreshed()
    notes = "".join(f"<br>{panel.escape(note)}" for note in report.notes)
    tag = f"<lora:{report.target.stem}:{applying.recommended(adapters.examine(report.target)):g}>"
    done = f"written: {report.target.name}, {report.size:,} bytes; use it as {tag}"
    return listed(), panel.message(done, good=True) + notes


def write_card(name: str | None, trigger: str, scale: float, text: str, image: Any, replace: bool) -> str:
    """Write the card, and the picture where one was given."""
    path = _path(name)
    if path is None:
        return panel.message("choose a file first")
    done, failed = [], ""
    try:
        base = adapters.examine(path).base
        done.append(cards.write(path, base=base, trigger_words=trigger, scale=scale, description=text))
        if image is not None:
            done.append(importing.write_picture(path, image, overwrite=replace))
    except (JobError, OSError) as error:
        failed = adapters.in_words(error, path)
        host.tell(failed)
    said = panel.message(f"written: {', '.join(place.name for place in done)}", good=True) if done else ""
    return "<br>".join(filter(None, (said, panel.message(failed) if failed else "")))


def _path(name: str | None) -> Path | None:
    """Only what the folders hold: a name is looked up, never joined to a path."""
    return importing.files(host.folders()).get(name or "")
