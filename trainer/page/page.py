"""The page: four steps below one another."""

from __future__ import annotations

from typing import Any

import gradio as gr

from trainer.page import markup, step_pictures, step_recipe, step_result, step_train
from trainer.page.context import Context

TITLE = "Scribble LoRA"
ANNOUNCE = """() => { const tell = () => {
    for (const place of document.querySelectorAll(".said:not([role])")) {
        if (place.parentElement.closest(".said")) continue;
        place.setAttribute("role", "status"); place.setAttribute("aria-live", "polite"); }
    for (const group of document.querySelectorAll("fieldset:not([aria-label])")) {
        const title = group.querySelector("[data-testid=block-info]");
        if (title) group.setAttribute("aria-label", title.textContent.trim()); }
    for (const noise of document.querySelectorAll("svg.dropdown-arrow, .sr-only[role=status]"))
        noise.setAttribute("aria-hidden", "true"); };
    tell(); new MutationObserver(tell).observe(document.body, {childList: true, subtree: true}); }"""
"""For screen readers, which Gradio neglects: messages are announced, and groups of choices get a name.

Gradio's own announcements are silenced, because they read out the keys of missing translations."""


def build(page: Context) -> gr.Blocks:
    """The whole page; nothing is started."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gr.HTML(markup.STYLE)
        gr.Markdown(f"# {TITLE}\nTeach Stable Diffusion 1.5 a style or a character from your pictures. Closing this page stops "
                    "no training.")
        pictures = step_pictures.build(page)
        recipe = step_recipe.build(page, pictures.folder, pictures.trigger)
        pictures.listen(recipe.preset, recipe.base)
        controls = [pictures.folder, pictures.trigger, *recipe.controls]
        train = step_train.build(page, recipe.wish, controls)
        step_result.build(page, train.timer, recipe.host)
        blocks.load(None, js=ANNOUNCE)
        blocks.load(lambda: _last(page, recipe), None, controls, show_progress="hidden")
    return blocks


def _last(page: Context, recipe: step_recipe.RecipeStep) -> list[Any]:
    """The options of the last training, to fill in the controls when the page is opened again."""
    wishes = [job.wish for job in page.queue.jobs() if job.wish]
    return recipe.values(wishes[-1]) if wishes else [gr.skip()] * (2 + len(recipe.controls))
