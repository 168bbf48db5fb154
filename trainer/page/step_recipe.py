"""Step 2, Recipe: preset, base, name, the main settings, every other option of the command line, and the cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from convert.errors import UsageError
from trainer.page import markup
from trainer.page.answers import answer, answering
from trainer.page.bases import checkpoints, hosts
from trainer.page.commands import Wish, dry_run, training_arguments
from trainer.page.context import Context
from trainer.page.options import Option, options
from trainer.presets import CHARACTER, DEMO, PAPER, PRESETS, STYLE
from trainer.recipe import DEFAULT_BASE, MINIATURE

LABELS = {STYLE: "style, from your pictures", CHARACTER: "character or object, from your pictures",
          PAPER: "the paper's doodles, on Stable Diffusion 1.5", DEMO: "demo: doodles on the miniature"}  # fmt: skip
BASES = [("Stable Diffusion 1.5, downloaded from the hub (4 GB, once)", DEFAULT_BASE),
         ("the embedded miniature: tiny, needs no GPU, for trying out", MINIATURE)]  # fmt: skip
WITHOUT_PICTURES = (PAPER, DEMO)
WIDTH = 300  # minimum width of an option's control, in pixels


@dataclass(frozen=True)
class RecipeStep:
    """The controls that other steps read."""

    preset: gr.Radio
    base: gr.Dropdown
    controls: list[Any]
    """inputs of `wish`, after the folder and the trigger words"""
    flags: list[str]
    host: gr.Dropdown

    def wish(self, folder: str, trigger: str, preset: str, base: str, name: str, samples: str, sheets: float, prompts: str,
             *values: str | None) -> Wish:  # fmt: skip
        """The controls' values as one record."""
        given = {flag: value or "" for flag, value in zip(self.flags, values, strict=True)}
        if preset not in WITHOUT_PICTURES and not folder.strip():
            raise UsageError("no folder of pictures is given: choose one in step 1, or a preset with its own drawings")
        return Wish(data=folder, trigger=trigger, preset=preset, base="" if preset == DEMO else base, name=name,
                    samples=samples, sheets=int(sheets or 0), prompts=prompts, options=given)

    def values(self, wish: Mapping[str, Any]) -> list[Any]:
        """The controls' values for a stored wish, the folder and the trigger words first."""
        given = wish.get("options", {})
        names = ("data", "trigger", "preset", "base", "name", "samples", "sheets", "prompts")
        return [*(wish[name] if wish.get(name) not in (None, "") else gr.skip() for name in names),
                *(given.get(flag, "") for flag in self.flags)]


def build(page: Context, folder: Any, trigger: Any) -> RecipeStep:
    gr.Markdown("## 2. Recipe")
    preset = gr.Radio([(LABELS.get(name, name), name) for name in PRESETS], value=STYLE, label="Preset",
                      info="all options below can change it")
    base = gr.Dropdown(BASES, value=DEFAULT_BASE, allow_custom_value=True, label="Base",
                       info="the model to train on: one of these, or the path of a Stable Diffusion 1.5 checkpoint in a "
                       "folder that you named; the demo has its own")
    with gr.Row():
        host = gr.Dropdown(hosts(page.folders), value="", allow_custom_value=True, label="Folder of your web UI or ComfyUI",
                           info="adds its Stable Diffusion 1.5 checkpoints to Base", scale=3)
        find = gr.Button("Find its checkpoints", scale=1)
    name = gr.Textbox(label="Name of the LoRA", value="mystyle", max_lines=1)
    samples = gr.Textbox(label="Length: total training pictures, with repeats", max_lines=1,
                         placeholder="3000 for your own pictures, 1000 on the miniature")
    sheets = gr.Slider(0, 10, value=4, step=1, label="Number of sample sheets during training")
    prompts = gr.Textbox(label="Prompts for these samples, one per line", placeholder="three of the captions", lines=3)
    known = options()
    with gr.Accordion("All options", open=False):
        gr.Markdown("Empty options keep the preset's value.")
        fields = _option_fields(known)
    cost = gr.Button("Check the data and the cost")
    said = answer()
    report = gr.Textbox(label="Output of the dry run", lines=4, max_lines=60, interactive=False, visible=False,
                        elem_classes=["report"])
    controls = [preset, base, name, samples, sheets, prompts, *fields]
    step = RecipeStep(preset, base, controls, [option.flag for option in known], host)

    @answering(2)
    def find_checkpoints(text: str) -> tuple[Any, ...]:
        found = checkpoints(page.folders.name(text))
        choices = [*BASES, *((path.name, str(path)) for path in found)]
        words = f"{len(found)} checkpoints of Stable Diffusion 1.5 were added to Base"
        return markup.good(words), gr.update(choices=choices, value=str(found[0])) if found else gr.skip()

    @answering(2)
    def ask(*values: Any) -> tuple[Any, ...]:
        wish = step.wish(*values)
        ended = dry_run(training_arguments(wish, page.folders, page.places))
        if ended.error:
            return markup.bad(ended.error), gr.update(value=ended.printed, visible=bool(ended.printed))
        return markup.good("This is what training would do."), gr.update(value=ended.printed, visible=True)

    find.click(find_checkpoints, host, [said, base])
    cost.click(ask, [folder, trigger, *controls], [said, report], concurrency_limit=1)
    return step


def _option_fields(known: list[Option]) -> list[Any]:
    """A control for each option, under the headings of `--help`."""
    groups: dict[str, list[Option]] = defaultdict(list)
    for option in known:
        groups[option.group].append(option)
    fields: list[Any] = []
    for title, members in groups.items():
        with gr.Accordion(title, open=False), gr.Row():
            fields += [_field(option) for option in members]
    return fields


def _field(option: Option) -> Any:
    if option.choices:
        return gr.Dropdown([("the preset's", ""), *option.choices], value="", label=option.flag, info=option.help,
                           min_width=WIDTH)
    return gr.Textbox(label=option.flag, info=option.help, max_lines=1, min_width=WIDTH)
