"""Step 4, Result: picture, card, drawing, verdict, a place in the user's web UI or ComfyUI, the command that does the same."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from convert.errors import BadCard, UsageError
from trainer.page import commands, markup
from trainer.page.answers import answer, answering
from trainer.page.bases import host_flag
from trainer.page.card import Card, read_card, write_card
from trainer.page.context import Context
from trainer.page.jobs import Job


def build(page: Context, timer: gr.Timer) -> None:
    gr.Markdown("## 4. Result")
    handlers = Handlers(page)
    lora, said, seen = gr.Dropdown([], allow_custom_value=True, label="Finished LoRA"), answer(), gr.State(([], ""))
    picture = gr.HTML(elem_classes=["drawn"])
    place = gr.Textbox(label="Its file", interactive=False, max_lines=2)
    command = gr.Textbox(label="The command that does the same", interactive=False, lines=3, max_lines=8)
    with gr.Accordion("Its card: what the web UI and ComfyUI show and use", open=False):
        words = gr.Textbox(label="Activation text (trigger words)", max_lines=1)
        weight = gr.Number(label="Preferred weight (scale)", minimum=0, maximum=2, step=0.05)
        description, notes = gr.Textbox(label="Description", lines=2), gr.Textbox(label="Notes", lines=2)
        save = gr.Button("Save the card")
    with gr.Accordion("Draw with it", open=False):
        prompt = gr.Textbox(label="Prompt", max_lines=2)
        scales = gr.Textbox(label="LoRA scales, with commas or first:last:step", value="0,0.5,0.8,1", max_lines=1)
        seeds = gr.Slider(1, 8, value=2, step=1, label="Seeds")
        draw = gr.Button("Draw (in the queue)")
    drawing = gr.HTML(elem_classes=["drawn", "bar"])
    with gr.Accordion("Which scale is best? Evaluate it", open=False):
        gr.Markdown("Draws at every scale and tests each against the base. It waits in the queue like a training. Its report "
                    "is a file to open: `reports/<name>/index.html` beside the LoRA.")
        take = gr.Checkbox(True, label="Write the recommended scale, if there is one, into the file and its card")
        evaluate = gr.Button("Evaluate (in the queue)")
    with gr.Accordion("Put it into my web UI or ComfyUI", open=False):
        host = gr.Textbox(label="Folder of your web UI or ComfyUI", max_lines=1)
        install = gr.Button("Put it there")
    card = [words, weight, description, notes]
    shown = [said, picture, place, command, *card]
    gr.on([lora.change], handlers.show, lora, shown, show_progress="hidden")
    save.click(handlers.save, [lora, *card], said)
    draw.click(handlers.draw, [lora, prompt, scales, seeds], said)
    evaluate.click(handlers.evaluate, [lora, take], said)
    install.click(handlers.install, [lora, host], said, concurrency_limit=1)
    timer.tick(handlers.refresh, [lora, seen], [lora, drawing, seen], show_progress="hidden")


class Handlers:
    """What the buttons do with the LoRA that is chosen."""

    def __init__(self, page: Context) -> None:
        self.page = page
        self.show = answering(8)(self._show)
        self.save, self.draw = answering(1)(self._save), answering(1)(self._draw)
        self.evaluate, self.install = answering(1)(self._evaluate), answering(1)(self._install)

    def refresh(self, id: str | None, seen: tuple[list[str], str]) -> tuple[Any, ...]:
        """Offer LoRAs that were finished meanwhile, and show what became of the newest drawing and evaluation."""
        finished, jobs = self.page.queue.finished(), self.page.queue.jobs()
        ids, name = [job.id for job in finished], next((job.name for job in jobs if job.id == id), "")
        work = [(job, self.page.queue.state(job)) for job in jobs if job.name == name and job.kind != "train"][-1:]
        now = (ids, str([(job.id, state, job.last_line()) for job, state in work]))
        if now == tuple(seen):
            return gr.skip(), gr.skip(), gr.skip()
        kept = {} if id in ids else {"value": ids[0] if ids else None}
        offered = gr.skip() if ids == seen[0] else gr.update(choices=[(job.name, job.id) for job in finished], **kept)
        shown = "".join(markup.line(job, state) + markup.drawn(job.out, f"drawn with {name}") for job, state in work)
        return offered, shown if now[1] != seen[1] else gr.skip(), now

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
        return markup.good(f"{path} is written")

    def _draw(self, id: str | None, prompt: str, scales: str, seeds: float) -> str:
        job = self._job(id)
        if not prompt.strip():
            raise UsageError("there is no prompt: say what to draw")
        out = self.page.places.work / "drawn" / f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}.png"
        out.parent.mkdir(exist_ok=True)
        argv = [str(job.out), f"--prompt={prompt}", f"--scales={scales.strip()}", f"--seeds={int(seeds)}", f"--out={out}",
                *_given(job, "--base", "--tokenizer")]  # fmt: skip
        return self._queue(job, "sample", "trainer.sample", argv, out)

    def _evaluate(self, id: str | None, take: bool) -> str:
        job = self._job(id)
        out = self.page.places.report(job.name)
        out.parent.mkdir(exist_ok=True)
        argv = [str(job.out), f"--out={out}", *_given(job, "--base", "--tokenizer", "--data", "--trigger", "--cache"),
                *["--write"] * take]  # fmt: skip
        return self._queue(job, "evaluate", "trainer.evaluate", argv, out)

    def _queue(self, job: Job, kind: str, module: str, argv: list[str], out: Any) -> str:
        self.page.queue.add(kind=kind, name=job.name, module=module, argv=argv, out=out, run=job.run, total=0, per_step=0)
        self.page.queue.tick()
        return markup.good(f"{job.name}: {kind} is in the queue: step 3 shows it")

    def _install(self, id: str | None, host: str) -> str:
        job, folder = self._job(id), self.page.folders.name(host)
        flag = host_flag(folder)
        if not flag:
            raise UsageError(f"{folder}: is no folder of a web UI or a ComfyUI")
        ended = commands.install(flag, folder, job.out)
        return markup.bad(ended.error) if ended.error else markup.good(ended.printed.strip())

    def _job(self, id: str | None) -> Job:
        job = self.page.queue.find(id)
        if job is None:
            raise UsageError("no LoRA is chosen: train one first")
        return job


def _given(job: Job, *flags: str) -> list[str]:
    """What a training was given: its LoRA names base and data without their folders, since it is given away."""
    return [word for word in job.argv if word.partition("=")[0] in flags]
