"""Step 4, Result: picture, card, drawing, verdict, a place in the user's web UI or ComfyUI, the command that does the same."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gradio as gr

from convert.errors import BadCard, JobError, UsageError
from trainer.page import commands, evaluation, markup
from trainer.page.answers import answer, answering
from trainer.page.bases import host_flag, hosts
from trainer.page.card import Card, read_card, write_card
from trainer.page.context import Context
from trainer.page.jobs import UNDER_WAY, Job, State
from trainer.page.reports import address

HOST = "host"
"""Gradio's concurrency group for changes to a web UI or ComfyUI: one at a time."""


def build(page: Context, timer: gr.Timer, known_host: gr.Dropdown) -> None:
    """known_host: the folder of the user's web UI or ComfyUI, if given in step 2."""
    gr.Markdown("## 4. Result")
    handlers = Handlers(page)
    lora, said, seen = gr.Dropdown([], allow_custom_value=True, label="Finished LoRA"), answer(), gr.State(([], "", ""))
    picture = gr.HTML(elem_classes=["drawn"])
    place = gr.Textbox(label="File", interactive=False, max_lines=2)
    command = gr.Textbox(label="Equivalent command", interactive=False, lines=3, max_lines=8)
    with gr.Accordion("Card, as shown and used by the web UI and ComfyUI", open=False):
        words = gr.Textbox(label="Activation text (trigger words)", max_lines=1)
        weight = gr.Number(label="Preferred weight (scale)", minimum=0, maximum=2, step=0.05)
        description, notes = gr.Textbox(label="Description", lines=2), gr.Textbox(label="Notes", lines=2)
        save, saved = gr.Button("Save the card"), answer()
    with gr.Accordion("Draw with it", open=False):
        prompt = gr.Textbox(label="Prompt", max_lines=2)
        scales = gr.Textbox(label="LoRA scales, with commas or first:last:step", value="0,0.5,0.8,1", max_lines=1)
        seeds = gr.Slider(1, 8, value=2, step=1, label="Seeds")
        draw, drawn = gr.Button("Draw (in the queue)"), answer()
    drawing = gr.HTML(elem_classes=["drawn", "bar"])
    with gr.Accordion("Which scale is best? Evaluate it", open=False):
        gr.Markdown("Draws at every scale and compares each with the base. It is queued like a training. It is fair if "
                    "training held pictures out: `--held-out 0.3` under *All options*.")
        measured = gr.Textbox(label="Scales to measure, with commas or first:last:step", value="0:1:0.1", max_lines=1)
        count = gr.Slider(2, 40, value=20, step=1, label="Pictures at each scale")
        with gr.Row():
            evaluate, take = gr.Button("Evaluate (in the queue)"), gr.Button("Use the recommended scale")
        judged = answer()
    verdict = gr.HTML(elem_classes=["drawn", "bar"])
    with gr.Accordion("Install it into my web UI or ComfyUI", open=False):
        hosts_known = hosts(page.folders)
        host = gr.Dropdown(hosts_known, value=hosts_known[-1] if hosts_known else "", allow_custom_value=True,
                           label="Folder of the web UI or ComfyUI to install into")  # fmt: skip
        with gr.Row():
            install, remove = gr.Button("Install"), gr.Button("Uninstall everything")
        placed = answer()
    card = [words, weight, description, notes]
    gr.on([lora.change], handlers.show, lora, [said, picture, place, command, *card], show_progress="hidden")
    save.click(handlers.save, [lora, *card], saved)
    draw.click(handlers.draw, [lora, prompt, scales, seeds], drawn)
    evaluate.click(handlers.evaluate, [lora, measured, count], judged)
    take.click(handlers.take, lora, [judged, *card], concurrency_limit=1)
    known_host.change(None, known_host, host, js="text => text")
    install.click(handlers.install, [lora, host], placed, concurrency_limit=1, concurrency_id=HOST)
    remove.click(handlers.remove, host, placed, concurrency_limit=1, concurrency_id=HOST)
    timer.tick(handlers.refresh, [lora, seen], [lora, drawing, verdict, seen], show_progress="hidden")


class Handlers:
    """The buttons' handlers, for the chosen LoRA."""

    def __init__(self, page: Context) -> None:
        self.page = page
        self.show, self.take = answering(8)(self._show), answering(5)(self._take)
        self.save, self.draw, self.evaluate = (answering(1)(act) for act in (self._save, self._draw, self._evaluate))
        self.install, self.remove = answering(1)(self._install), answering(1)(self._remove)

    def refresh(self, id: str | None, seen: tuple[list[str], str, str]) -> tuple[Any, ...]:
        """Offer newly finished LoRAs, and show the state of the newest drawing and evaluation."""
        finished, jobs = self.page.queue.finished(), self.page.queue.jobs()
        ids, name = [job.id for job in finished], next((job.name for job in jobs if job.id == id), "")
        newest = {job.kind: (job, self.page.queue.state(job)) for job in jobs if job.name == name}
        samples, evaluations = newest.get("sample"), newest.get(evaluation.KIND)
        now = (ids, _stamp(samples), _stamp(evaluations))
        if now == tuple(seen):
            return (gr.skip(),) * 4
        kept = {} if id in ids else {"value": ids[0] if ids else None}
        offered = gr.skip() if ids == seen[0] else gr.update(choices=[(job.name, job.id) for job in finished], **kept)
        drawn = gr.skip() if now[1] == seen[1] else _drawing(samples, name)
        return offered, drawn, gr.skip() if now[2] == seen[2] else _verdict(evaluations), now

    def _show(self, id: str | None) -> tuple[Any, ...]:
        job = self._job(id)
        drawn = markup.drawn(job.out.with_suffix(".png"), f"{job.name}: one prompt, seeds by scales")
        try:
            said, card = "", read_card(job.out)
        except BadCard as error:
            said, card = markup.bad(error), Card("", 0.0, "", "")
        return (said, drawn, str(job.out), job.command, *card)

    def _save(self, id: str | None, words: str, weight: float | None, description: str, notes: str) -> str:
        path = write_card(self._job(id).out, Card(words, weight or 0.0, description, notes))
        return markup.good(f"{path} was written")

    def _draw(self, id: str | None, prompt: str, scales: str, seeds: float) -> str:
        job = self._job(id)
        if not prompt.strip():
            raise UsageError("the prompt is empty: type one")
        out = self.page.places.work / "drawn" / f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}.png"
        out.parent.mkdir(exist_ok=True)
        argv = [str(job.out), f"--prompt={prompt}", f"--scales={scales.strip()}", f"--seeds={int(seeds)}", f"--out={out}",
                *_given(job, "--base", "--tokenizer")]  # fmt: skip
        return self._queue(job, "sample", "trainer.sample", argv, out)

    def _evaluate(self, id: str | None, scales: str, pictures: float) -> str:
        job = self._job(id)
        argv = evaluation.arguments(job, scales, int(pictures))
        out = evaluation.report_folder(self.page.places, self.page.queue, job.name, argv)
        out.parent.mkdir(exist_ok=True)
        return self._queue(job, evaluation.KIND, evaluation.MODULE, [*argv, f"--out={out}"], out)

    def _take(self, id: str | None) -> tuple[Any, ...]:
        """Shows the card again, because its preferred weight has changed."""
        job = self._job(id)
        made = [other for other in self.page.queue.jobs() if other.kind == evaluation.KIND and other.name == job.name]
        if not made:
            raise UsageError(f"{job.name}: has no evaluation yet: evaluate it first")
        ended = evaluation.take(made[-1])
        if ended.error:
            raise UsageError(ended.error)
        wrote = [line for line in ended.printed.splitlines() if line.startswith("wrote")]  # the verdict is shown below
        return markup.good("\n".join(wrote)), *read_card(job.out)

    def _queue(self, job: Job, kind: str, module: str, argv: list[str], out: Any) -> str:
        self.page.queue.add(kind=kind, name=job.name, module=module, argv=argv, out=out, run=job.run, total=0, per_step=0)
        self.page.queue.tick()
        return markup.good(f"{job.name}: {kind} was queued: see step 3")

    def _install(self, id: str | None, host: str) -> str:
        job, (flag, folder) = self._job(id), self._host(host)
        return markup.ended(commands.install(flag, folder, job.out))

    def _remove(self, host: str) -> str:
        return markup.ended(commands.uninstall(*self._host(host)))

    def _host(self, text: str) -> tuple[str, Path]:
        """install.py's flag for the folder, and the folder."""
        folder = self.page.folders.name(text)
        flag = host_flag(folder)
        if not flag:
            raise UsageError(f"{folder}: is not the folder of a web UI or a ComfyUI")
        return flag, folder

    def _job(self, id: str | None) -> Job:
        job = self.page.queue.find(id)
        if job is None:
            raise UsageError("no LoRA is chosen: train one first")
        return job


Work = tuple[Job, State] | None
"""The newest job of a kind, and its state."""


def _stamp(work: Work) -> str:
    """A value that changes when there is something new to show."""
    if not work:
        return ""
    job, state = work
    return str((job.id, state, job.last_line(), evaluation.progress_of(job).step if state in UNDER_WAY else 0))


def _drawing(work: Work, name: str) -> str:
    return markup.line(*work) + markup.drawn(work[0].out, f"drawn with {name}") if work else ""


def _verdict(work: Work) -> str:
    """The evaluation's progress, or a summary of its report when it is done."""
    if not work or work[1] is not State.DONE:
        return markup.progress_bar(*work, evaluation.progress_of(work[0])) if work else ""
    try:
        return evaluation.summary(work[0], address(work[0].id)) or markup.line(*work)
    except (JobError, UsageError) as error:
        return markup.bad(error)


def _given(job: Job, *flags: str) -> list[str]:
    """Arguments of the training: the LoRA's own metadata names base and data without their folders."""
    return [word for word in job.argv if word.partition("=")[0] in flags]
