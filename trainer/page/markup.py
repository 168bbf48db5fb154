"""Small pieces of HTML. Every text from a file or a user is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from convert.errors import JobError
from trainer.data.records import Row
from trainer.page.commands import Ended
from trainer.page.jobs import Job, State
from trainer.page.pictures import picture_uri
from trainer.page.progress import Progress

STYLE = """<style>
.gradio-container {max-width: 1100px !important; margin: 0 auto !important}
.gradio-container {--block-info-text-color: #555; --block-label-text-color: #333}
.gradio-container ::placeholder {color: var(--block-info-text-color) !important; opacity: 1 !important}
.curve {width: 100%; max-width: 600px}
.said {min-height: 1.5em} .said p, .bar p {margin: 0.3em 0; white-space: pre-wrap; overflow-wrap: anywhere}
.good, .bad {border-left: 4px solid #1b7f3b; padding-left: 0.6em} .bad {border-color: #b00020}
.warning {border-left: 4px solid #a85a00; padding-left: 0.6em}
.facts {border-collapse: collapse; width: 100%} .facts caption {text-align: left; font-weight: bold}
.facts td, .facts th {text-align: left; vertical-align: top; padding: 0.2em 0.8em 0.2em 0} .facts .marked {font-weight: bold}
.facts td {overflow-wrap: anywhere}
.drawn img {max-width: min(100%, 720px); height: auto} .thumb img {width: 100%; max-width: 128px; height: auto}
.report textarea {font-family: monospace; font-size: 12px} progress {width: 100%; height: 1.2em}
@media (prefers-color-scheme: dark) {.gradio-container {--block-info-text-color: #bbb; --block-label-text-color: #ddd}}
</style>"""


def bad(text: object) -> str:
    """An error."""
    return f'<p class="bad"><strong>Not possible:</strong> {escape(str(text))}</p>'


def good(text: str) -> str:
    return f'<p class="good">{escape(text)}</p>' if text else ""


def warning(text: str) -> str:
    return f'<p class="warning">{escape(text)}</p>'


def link(address: str, text: str) -> str:
    """A link that opens in a new tab."""
    return f'<p><a href="{escape(address)}" target="_blank" rel="noopener">{escape(text)}</a> (opens in a new tab)</p>'


def ended(command: Ended) -> str:
    """The output of a short command, or its one-line error."""
    return bad(command.error) if command.error else good(command.printed.strip())


def facts(rows: Sequence[Row], notes: Iterable[str], problems: Iterable[str]) -> str:
    """The table of the training data: rows that are likely to be mistakes begin with `!`, as in a terminal."""
    cells = "".join(_fact(row) for row in rows)
    table = f'<table class="facts"><caption>Training data</caption>{cells}</table>' if rows else ""
    listed = "".join(f"<li>{escape(text)}</li>" for text in problems)
    cannot = f"<p><strong>These files cannot be used:</strong></p><ul>{listed}</ul>" if listed else ""
    return "".join(f"<p>{escape(note)}</p>" for note in notes) + cannot + table


def _fact(row: Row) -> str:
    mark, label = ("marked", f"! {row.label}") if row.attention else ("", row.label)
    return f'<tr class="{mark}"><th scope="row">{escape(label)}</th><td>{escape(row.text)}</td></tr>'


def thumbnail(uri: str, name: str) -> str:
    return f'<img src="{uri}" alt="{escape(name)}, as it is cropped">'


def drawn(path: Path | None, alt: str) -> str:
    """A picture drawn by a command; "" if there is none yet."""
    if path is None or not path.is_file():
        return ""
    try:
        return f'<img src="{picture_uri(path)}" alt="{escape(alt)}">'
    except JobError as error:
        return bad(error)


def queue_table(jobs: Sequence[tuple[Job, State]]) -> str:
    """The jobs, the newest first."""
    if not jobs:
        return "<p>Nothing has been started yet.</p>"
    cells = "".join(f'<tr><th scope="row">{escape(job.title)}</th><td>{escape(state.value)}</td><td>{escape(_why(job, state))}'
                    "</td></tr>" for job, state in reversed(jobs))
    return f'<table class="facts"><caption>Trainings and other jobs, newest first</caption>{cells}</table>'


def _why(job: Job, state: State) -> str:
    return job.last_line() if state is State.FAILED else ""


def line(job: Job, state: State) -> str:
    """One job in a sentence."""
    text = f"{job.title}: {state.value}" + (f". {job.last_line()}" if state is not State.WAITING else "")
    return f'<p class="{"bad" if state is State.FAILED else "good"}">{escape(text)}</p>'


def progress_bar(job: Job, state: State, progress: Progress) -> str:
    """A bar, with its numbers in words; before the first step and after the last, the command's own line."""
    words = f"{job.title}: {state.value}"
    if progress.step:
        words += f", {progress.text}"
    if state is not State.WAITING and (not progress.step or progress.step >= progress.total):
        words += f". {job.last_line()}"
    bar = (f'<progress aria-label="{escape(job.title)}" max="{progress.total}" '
           f'value="{min(progress.step, progress.total)}"></progress>' if progress.total else "")
    return f'<p class="{"bad" if state is State.FAILED else "good"}">{escape(words)}</p>{bar}'
