"""Step 3, Train: start, stop, resume; shows the queue, progress, loss and samples, polled from disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import gradio as gr

from convert.errors import UsageError
from trainer.data.ours import METRICS
from trainer.page import evaluation, markup
from trainer.page.answers import answer, answering
from trainer.page.commands import Wish
from trainer.page.context import Context
from trainer.page.jobs import Job, State
from trainer.page.progress import MetricsFiles, curve, newest_sheet, progress_of
from trainer.page.training import start_training

EVERY = 2.0  # seconds between polls


@dataclass(frozen=True)
class TrainStep:
    """The controls that the result step reads."""

    timer: gr.Timer


def build(page: Context, wish_of: Callable[..., Wish], inputs: list[Any]) -> TrainStep:
    gr.Markdown("## 3. Train")
    with gr.Row():
        start = gr.Button("Start training", variant="primary")
        stop, again, remove = gr.Button("Stop"), gr.Button("Continue"), gr.Button("Remove")
    said = answer()
    chosen = gr.Dropdown([], allow_custom_value=True, label="Training or other job",
                         info="Stop, Continue and Remove act on this one")
    bar = gr.HTML(elem_classes=["bar"])
    loss, sheet = gr.HTML(), gr.HTML(elem_classes=["drawn"])
    with gr.Accordion("Output of the command", open=False):
        log = gr.Textbox(label="Log", lines=8, max_lines=20, interactive=False, autoscroll=True)
    table = gr.HTML()
    timer, seen = gr.Timer(EVERY), gr.State({})
    watcher = Watcher(page)
    views = [table, chosen, bar, loss, sheet, log, seen]

    @answering(2)
    def begin(*values: Any) -> tuple[Any, ...]:
        job = start_training(page, wish_of(*values))
        return markup.good(f"{job.name}: was queued"), gr.update(choices=watcher.choices(), value=job.id)

    def on_chosen(act: Callable[[Job], None], words: str) -> Callable[..., Any]:
        @answering(2)
        def handler(id: str | None) -> tuple[Any, ...]:
            job = page.queue.find(id)
            if job is None:
                raise UsageError("nothing is chosen: choose a training first")
            act(job)
            page.queue.tick()
            kept = job.id if page.queue.find(job.id) else watcher.newest()
            return markup.good(f"{job.title}: {words}"), gr.update(choices=watcher.choices(), value=kept)

        return handler

    start.click(begin, inputs, [said, chosen], concurrency_limit=1)
    stop.click(on_chosen(page.queue.stop, "stops after its current step is saved"), chosen, [said, chosen])
    again.click(on_chosen(page.queue.again, "continues when its turn comes"), chosen, [said, chosen])
    remove.click(on_chosen(page.queue.remove, "is removed from the list; its files are kept"), chosen, [said, chosen])
    timer.tick(watcher.look, [chosen, seen], views, show_progress="hidden")
    chosen.input(watcher.look, [chosen, seen], views, show_progress="hidden")
    return TrainStep(timer)


class Watcher:
    """Reads the queue and the chosen run, and sends a tab only the changes."""

    def __init__(self, page: Context) -> None:
        self.page, self._metrics = page, MetricsFiles()

    def choices(self) -> list[tuple[str, str]]:
        return [(f"{job.title}, {datetime.fromtimestamp(job.turn / 1e9):%d %b %H:%M:%S}", job.id)
                for job in reversed(self.page.queue.jobs())]

    def newest(self) -> str | None:
        jobs = self.page.queue.jobs()
        current = self.page.queue.current()
        return current.id if current else jobs[-1].id if jobs else None

    def look(self, id: str | None, seen: dict[str, Any]) -> tuple[Any, ...]:
        jobs = [(job, self.page.queue.state(job)) for job in self.page.queue.jobs()]
        choices = self.choices()
        lost = id not in [job.id for job, _ in jobs]  # removed, perhaps in another tab
        if lost:
            id = self.newest()
        views: dict[str, Any] = {"table": markup.queue_table(jobs), "chosen": (id, choices)} | self._views(id, jobs)
        sent = {name: value for name, value in views.items() if seen.get(name) != value}
        if "chosen" in sent:
            sent["chosen"] = gr.update(choices=choices, **{"value": id} if lost else {})
        if "sheet" in sent:
            sent["sheet"] = markup.drawn(views["sheet"][0], "samples during training, a row per step")
        order = ("table", "chosen", "bar", "loss", "sheet", "log")
        return *(sent.get(name, gr.skip()) for name in order), views if sent else gr.skip()

    def _views(self, id: str | None, jobs: list[tuple[Job, State]]) -> dict[str, Any]:
        job, state = next(((job, state) for job, state in jobs if job.id == id), (None, State.WAITING))
        if job is None:
            return {"bar": "", "loss": "", "sheet": (None, 0), "log": ""}
        lines = self._metrics.lines(job.run / METRICS) if job.total else []
        progress = evaluation.progress_of(job) if job.kind == evaluation.KIND else progress_of(job, lines)
        sheet = newest_sheet(job.run) if job.total else job.out
        stamp = sheet.stat().st_mtime_ns if sheet and sheet.is_file() else 0
        return {"bar": markup.progress_bar(job, state, progress), "loss": curve(lines),
                "sheet": (sheet if stamp else None, stamp), "log": job.said()}
