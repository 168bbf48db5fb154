"""The tab "Scribble LoRA": inspect any file in the LoRA folders, convert it, write its card."""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr
from modules.ui_components import ToolButton
from PIL.Image import Image  # at run time too: Gradio evaluates the annotations of handlers

from ..convert.errors import JobError, UsageError
from . import cards, generation, host, import_files, inspection, lora_files, panel
from .accordion import GRADIO, REFRESH
from .arguments import MAX_SCALE, MIN_SCALE
from .inspection import Use, in_words

INTRODUCTION = (
    "Import: put a LoRA of any form into the LoRA folder, choose it here, check it, and convert it for the web UI. "
    "The original file is not changed. The card belongs to the chosen file; after a conversion that is the new file."
)


def build() -> object:
    """The tab as a `gr.Blocks`."""
    with gr.Blocks(analytics_enabled=False) as tab:
        gr.HTML(f"{panel.STYLE}<p>{INTRODUCTION}</p>")
        with gr.Row():
            with gr.Column(scale=3):
                with gr.Row():
                    file = gr.Dropdown([], label="File", elem_id="scribble_lora_file", allow_custom_value=GRADIO > 3)
                    refresh = ToolButton(value=REFRESH, elem_id="scribble_lora_file_refresh", tooltip="Read the folders again")
                converted = gr.HTML(elem_id="scribble_lora_converted")
                convert = gr.Button("Convert for the web UI", variant="primary", elem_id="scribble_lora_convert")
                found = gr.HTML(elem_id="scribble_lora_check")
            with gr.Column(scale=2):
                trigger = gr.Textbox(label="Trigger words", elem_id="scribble_lora_card_trigger")
                scale = gr.Slider(
                    MIN_SCALE, MAX_SCALE, value=0, step=0.05, label="Recommended scale (0: none)",
                    elem_id="scribble_lora_card_scale",
                )
                text = gr.Textbox(label="Description", lines=3, elem_id="scribble_lora_card_description")
                image = gr.Image(label="Picture", type="pil", height=240, elem_id="scribble_lora_card_picture")
                replace = gr.Checkbox(False, label="Replace the existing picture", elem_id="scribble_lora_card_replace")
                write = gr.Button("Write the card", elem_id="scribble_lora_card_write")
                written = gr.HTML(elem_id="scribble_lora_card_written")
        card = [trigger, scale, text]
        shown = [found, *card, image, replace, converted, written]
        file.input(look, inputs=[file], outputs=shown)  # not `change`: a conversion already shows the new file
        refresh.click(listed, outputs=[file])
        tab.load(listed, outputs=[file], show_progress=False, queue=False)
        convert.click(convert_file, inputs=[file], outputs=[file, *shown])
        write.click(write_card, inputs=[file, *card, image, replace], outputs=[written])
    return tab


def listed() -> object:
    """The dropdown with the current files of the folders."""
    return gr.update(choices=list(lora_files.below(host.folders())))


def look(name: str | None, note: str = "") -> tuple[object, ...]:
    """Show a file's card and the table of `convert --check`; clears a picture chosen for another file.

    Args:
        note: HTML shown above the table.
    """
    path = _path(name)
    if path is None:
        return "", "", 0, "", None, False, note, ""
    sound, table = import_files.describe(path, str(name))
    card = inspection.inspect(path, host.web_ui()).card
    fields = card.trigger_words, min(card.scale or 0, MAX_SCALE), card.description
    problem = panel.message(card.problem) if card.problem else ""
    return panel.preformatted(table, sound=sound), *fields, None, False, note + problem, ""


def convert_file(name: str | None) -> tuple[object, ...]:
    """Convert into a new file beside the original, then choose and show the new file."""
    path = _path(name)
    if path is None:
        return gr.update(), *look(None, panel.message("choose a file first"))
    found = inspection.inspect(path, host.web_ui())
    if found.use is Use.READY:
        return gr.update(), *look(name, panel.message(f"{found.name} is already in the web UI's form: {_use(path)}", good=True))
    try:
        report = import_files.convert_beside(path, host.files().paths)
    except import_files.Exists as error:
        note = panel.message(f"{path.name} {error.problem}: {_use(error.path)}", good=True)
        return _show(name, error.path, note)
    except (JobError, UsageError) as error:
        text = f"{path.name}: {in_words(error)}"
        host.tell(text)
        return gr.update(), *look(name, panel.message(text))
    host.rescanned()
    notes = "".join(f"<br>{escape(note.text)}" for note in report.notes)
    done = f"written: {report.target.name}, {report.size:,} bytes: {_use(report.target)}"
    return _show(name, report.target, panel.message(done, good=True) + notes)


def _show(name: str | None, made: Path, note: str) -> tuple[object, ...]:
    files = lora_files.below(host.folders())
    chosen = Path(str(name)).with_name(made.name).as_posix()
    return gr.update(choices=list(files), value=chosen), *look(chosen, note)


def _use(path: Path) -> str:
    scale = generation.recommended(inspection.inspect(path, host.web_ui()))
    return f"use it as <lora:{path.stem}:{scale:g}>"


def write_card(name: str | None, trigger: str, scale: float, text: str, image: Image | None, replace: bool) -> str:
    """Write the card, and the picture if one was given."""
    path = _path(name)
    if path is None:
        return panel.message("choose a file first")
    done, failed = [], ""
    try:
        base = inspection.inspect(path, host.web_ui()).base
        done.append(cards.write(path, base=base, trigger_words=trigger, scale=scale, description=text))
        if image is not None:
            done.append(import_files.write_picture(path, image, overwrite=replace))
    except (JobError, OSError) as error:
        failed = f"{path.name}: {in_words(error)}"
        host.tell(failed)
    said = panel.message(f"written: {', '.join(place.name for place in done)}", good=True) if done else ""
    return "<br>".join(filter(None, (said, panel.message(failed) if failed else "")))


def _path(name: str | None) -> Path | None:
    """The file with this name in the LoRA folders. The name is looked up, never joined to a path."""
    return lora_files.below(host.folders()).get(name or "")
