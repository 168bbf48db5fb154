"""The chosen file's facts as HTML. Every text from a file is escaped."""

from __future__ import annotations

from html import escape

from . import prompts
from .generation import notice, recommended, why_not
from .inspection import Inspected, Use

STYLE = """<style>
.scribble-lora-facts {display: flex; gap: 1em; align-items: flex-start; flex-wrap: wrap; padding: .25em 0}
.scribble-lora-facts img {max-width: 12em; max-height: 12em; border-radius: 6px; object-fit: contain}
.scribble-lora-facts table {flex: 1 1 16em; min-width: 0; border-collapse: collapse; margin: 0}
.scribble-lora-facts :is(table, tr, td) {border: 0 !important}
.scribble-lora-facts td {padding: .1em .8em .1em 0 !important; vertical-align: top; overflow-wrap: anywhere}
.scribble-lora-facts td:first-child {white-space: nowrap; opacity: .7}
.scribble-lora-bad, .scribble-lora-good {overflow-wrap: anywhere}
.scribble-lora-bad {color: #c62828 !important; font-weight: 600}
.dark .scribble-lora-bad {color: #ff8a80 !important}
.scribble-lora-good {color: #2e7d32 !important}
.dark .scribble-lora-good {color: #a5d6a7 !important}
.scribble-lora-table {white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85em; margin: 0}
.scribble-lora:has(.scribble-lora-enable input:checked) > .label-wrap > span:first-child::after {content: " ●"; color: #2e7d32}
</style>"""
"""Styles of the accordion and the tab. Gradio 4 draws borders around tables. The dot marks a closed accordion that is on."""


def facts(found: Inspected | None, model: str, picture_url: str = "") -> str:
    """The file's base, rank, trigger words, scale and picture; only the styles if no file is chosen."""
    if found is None:
        return STYLE
    problem = why_not(found, model)
    said = [text for text in ([problem] if problem else [found.why, notice(found, model)]) if text]
    state = "<br>".join(message(f"{found.name}: {text}") for text in said) or message("ready", good=True)
    rows = [("file", state), *((label, escape(value)) for label, value in _rows(found) if value)]
    cells = "".join(f"<tr><td>{label}</td><td>{value}</td></tr>" for label, value in rows)
    alt = f"the picture of {found.name}"
    image = f'<img src="{escape(picture_url)}" alt="{escape(alt)}">' if picture_url else ""
    return f'{STYLE}<div class="scribble-lora-facts">{image}<table>{cells}</table></div>'


def missing(entry: str, why: str) -> str:
    """The message for a chosen entry whose file is missing."""
    return STYLE + message(f"{entry} {why}")


def _rows(found: Inspected) -> list[tuple[str, str]]:
    rows = [("base", found.base_words)]
    if found.use in (Use.READY, Use.CONVERT):
        both = f" and {found.text_encoder} of the text encoder" if found.text_encoder else ""
        rows += [("rank", f"{found.rank}, alpha {found.alpha:g}"), ("patches", f"{found.unet} modules of the UNet{both}")]
    if found.use is not Use.BROKEN:
        scale = recommended(found)
        said = f"{prompts.number(scale)} recommended" if found.card.scale is not None else "none recommended"
        rows += [("trigger words", found.card.trigger_words or "none"), ("scale", said)]
    if found.use in (Use.READY, Use.UNCHECKED) and not prompts.why_no_tag(found.name):
        rows.append(("as a tag", prompts.tag(found.name, recommended(found))))
    return [*rows, ("description", found.card.description), ("card", found.card.problem)]


def message(text: str, *, good: bool = False) -> str:
    """One line, green or red."""
    return f'<span class="scribble-lora-{"good" if good else "bad"}">{escape(text)}</span>'


def preformatted(text: str, *, sound: bool) -> str:
    """`convert --check`'s table."""
    verdict = message("sound", good=True) if sound else message("not sound: see the last line")
    return f'{verdict}<pre class="scribble-lora-table">{escape(text)}</pre>'
