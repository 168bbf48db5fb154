"""Step 1, Pictures: a folder, the table of the training data, and captions edited beside each picture as it is cropped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from convert.errors import JobError, UsageError
from trainer.base.facts import picture_side
from trainer.data.picture import Picture
from trainer.page import markup
from trainer.page.answers import answer, answering
from trainer.page.captions import add_trigger, caption_of, own_text, write_caption
from trainer.page.commands import Wish, recipe_arguments, recipe_of
from trainer.page.context import Context
from trainer.page.pictures import Look, look, thumbnail

SHOWN_AT_ONCE, ABREAST = 8, 2  # pictures
ALL, WITHOUT = "all", "without a caption"


@dataclass
class Shown:
    """The pictures shown in one tab. before: their own texts when they were shown."""

    look: Look | None = None
    resolution: int = 0
    folder: str = ""
    first: int = 0
    which: str = ALL
    pictures: list[Picture] = field(default_factory=list)
    before: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PicturesStep:
    """The controls that other steps read."""

    folder: gr.Dropdown
    trigger: gr.Textbox
    show: gr.Button
    listen: Any
    """(inputs of preset and base) -> None: wires the button, once those controls exist"""


def build(page: Context) -> PicturesStep:
    gr.Markdown("## 1. Pictures")
    folder = gr.Dropdown(page.folders.choices(), value="", allow_custom_value=True, label="Folder of your pictures",
                         info="choose one or paste its path; captions are read from files beside the pictures")
    trigger = gr.Textbox(label="Trigger words", info="added before every caption, and used in prompts later, for example: "
                         "in mystyle", max_lines=1)
    with gr.Row():
        show = gr.Button("Show the pictures", variant="primary")
        again = gr.Button("Add the trigger words to all captions")
    said, table = answer(), gr.HTML()
    state = gr.State(Shown())
    with gr.Column(visible=False) as gallery:
        which = gr.Radio([ALL, WITHOUT], value=ALL, label="Pictures to show")
        where = gr.Markdown()
        rows: list[Any] = []
        for _ in range(SHOWN_AT_ONCE // ABREAST):
            with gr.Row():
                for _ in range(ABREAST):
                    with gr.Column(min_width=320), gr.Row():
                        rows += [gr.HTML(elem_classes=["thumb"], scale=1, min_width=96),
                                 gr.Textbox(lines=3, label="Caption", scale=3, min_width=180)]  # fmt: skip
        with gr.Row():
            back, save, on = gr.Button("Previous"), gr.Button("Save these captions", variant="primary"), gr.Button("Next")
    outputs = [said, table, state, gallery, where, *rows]
    handlers = Handlers(page)
    texts = rows[1::2]
    save.click(handlers.save, [state, *texts], [said, state], concurrency_limit=1)
    again.click(handlers.write_trigger, [state, trigger], outputs, concurrency_limit=1)
    on.click(lambda shown: handlers.turn(shown, SHOWN_AT_ONCE), state, outputs)
    back.click(lambda shown: handlers.turn(shown, -SHOWN_AT_ONCE), state, outputs)
    which.input(handlers.choose, [state, which], outputs)

    def listen(preset: Any, base: Any) -> None:
        show.click(handlers.show, [folder, trigger, preset, base, which], outputs)

    return PicturesStep(folder, trigger, show, listen)


class Handlers:
    """The buttons' handlers; each returns the step's outputs."""

    def __init__(self, page: Context) -> None:
        self.page = page
        count = 5 + 2 * SHOWN_AT_ONCE
        self.show = answering(count)(self._show)
        self.turn = answering(count)(self._turn)
        self.choose = answering(count)(self._choose)
        self.write_trigger = answering(count)(self._write_trigger)
        self.save = answering(2)(self._save)

    def _show(self, folder: str, trigger: str, preset: str, base: str, which: str) -> tuple[Any, ...]:
        if not folder.strip():
            raise UsageError("no folder is given: choose one, or type its path")
        argv = recipe_arguments(Wish(data=folder, trigger=trigger, preset=preset, base=base), self.page.folders)
        recipe, _ = recipe_of(argv)
        found = look(recipe, self.page.cache)
        shown = Shown(look=found, resolution=picture_side(recipe), folder=folder, which=which)
        lacking = len(found.without_caption())
        words = f"{len(found.pictures)} pictures, {lacking} without a caption"
        return self._outputs(shown, markup.good(words if found.pictures else "drawings: they have no captions to edit"))

    def _choose(self, shown: Shown, which: str) -> tuple[Any, ...]:
        shown.which, shown.first = which, 0
        return self._outputs(shown, "")

    def _turn(self, shown: Shown, by: int) -> tuple[Any, ...]:
        shown.first = max(0, shown.first + by)
        return self._outputs(shown, "")

    def _outputs(self, shown: Shown, said: str) -> tuple[Any, ...]:
        """The table and the pictures from `shown.first` on."""
        if shown.look is None:
            raise UsageError("no pictures are shown yet: choose a folder first")
        every = shown.look.pictures if shown.which == ALL else shown.look.without_caption()
        if shown.first >= len(every):
            shown.first = max(0, (len(every) - 1) // SHOWN_AT_ONCE * SHOWN_AT_ONCE)
        shown.pictures = every[shown.first : shown.first + SHOWN_AT_ONCE]
        shown.before = [own_text(picture.path) for picture in shown.pictures]
        where = f"{shown.first + 1} to {shown.first + len(shown.pictures)} of {len(every)}" if shown.pictures else "none"
        rows: list[Any] = []
        for picture in shown.pictures:
            rows += [gr.update(value=_thumbnail(picture, shown.resolution), visible=True),
                     gr.update(value=caption_of(picture), label=f"Caption of {picture.source}", visible=True)]  # fmt: skip
        rows += [gr.update(visible=False)] * (2 * SHOWN_AT_ONCE - len(rows))
        table = markup.facts(shown.look.table, shown.look.notes, shown.look.problems)
        return (said, table, shown, gr.update(visible=bool(shown.look.pictures)), f"Pictures {where}", *rows)

    def _save(self, shown: Shown, *texts: str) -> tuple[str, Shown]:
        written, refused = 0, []
        for k, picture in enumerate(shown.pictures):
            if texts[k].strip() == (shown.before[k] or caption_of(picture)).strip():
                continue
            try:
                written += write_caption(self.page.folders.inside(picture.path), texts[k], before=shown.before[k])
                shown.before[k] = texts[k].strip()
            except JobError as error:
                refused.append(str(error))
        said = markup.good(f"{written} captions written" if written != 1 else "1 caption written")
        return said + "".join(map(markup.bad, refused)), shown

    def _write_trigger(self, shown: Shown, trigger: str) -> tuple[Any, ...]:
        if not trigger.strip():
            raise UsageError("there are no trigger words to write: type them first")
        if shown.look is None or not shown.look.pictures:
            raise UsageError("no pictures are shown yet: choose a folder first")
        for picture in shown.look.pictures:
            self.page.folders.inside(picture.path)
        written = add_trigger(shown.look.pictures, trigger)
        return self._outputs(shown, markup.good(f"{trigger.strip()!r} was added to {written} captions; the others have it"))


def _thumbnail(picture: Picture, resolution: int) -> str:
    try:
        return markup.thumbnail(thumbnail(picture, resolution), picture.source)
    except JobError as error:
        return markup.bad(error)
