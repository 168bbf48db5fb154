"""What is shown of the chosen file, as HTML. Everything that comes from a file is escaped."""

from __future__ import annotations

from html import escape

from . import prompts
from .adapters import Adapter, Use
from .applying import recommended, why_not

STYLE = """<style>
.scribble-lora-facts {display: flex; gap: 1em; align-items: flex-start; flex-wrap: wrap; padding: .25em 0}
.scribble-lora-facts img {max-width: 12em; max-height: 12em; border-radius: 6px; object-fit: contain}
.scribble-lora-facts table {flex: 1 1 16em; border-collapse: collapse; margin: 0}
.scribble-lora-facts td {padding: .1em .8em .1em 0; border: 0; vertical-align: top; overflow-wrap: anywhere}
.scribble-lora-facts td:first-child {white-space: nowrap; opacity: .7}
.scribble-lora-bad {color: #c62828 !important; font-weight: 600}
.dark .scribble-lora-bad {color: #ff8a80 !important}
.scribble-lora-good {color: #2e7d32 !important}
.dark .scribble-lora-good {color: #a5d6a7 !important}
.scribble-lora-table {white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85em; margin: 0}
.scribble-lora:has(.scribble-lora-enable input:checked) > .label-wrap > span:first-child::after {content: " ●"; color: #2e7d32}
</style>"""
"""Looks of the accordion and the tab; the dot says that it is on, also when it is closed."""


def facts(adapter: Adapter | None, model: str, picture_url: str = "") -> str:
    """The file's base, rank, trigger words, scale and picture; only the looks where none is chosen."""
    if adapter is None:
        return STYLE
    problem = why_not(adapter, model)
    state = message(f"{adapter.name}: {problem or adapter.why}") if problem or adapter.why else message("ready", good=True)
    rows = [("file", state), *((label, escape(value)) for label, value in _rows(adapter) if value)]
    cells = "".join(f"<tr><td>{label}</td><td>{value}</td></tr>" for label, value in rows)
    alt = f"the picture of {adapter.name}"
    image = f'<img src="{escape(picture_url)}" alt="{escape(alt)}">' if picture_url else ""
    return f'{STYLE}<div class="scribble-lora-facts">{image}<table>{cells}</table></div>'


def _rows(adapter: Adapter) -> list[tuple[str, str]]:
    rows = [("base", adapter.base_words)]
    if adapter.use in (Use.READY, Use.CONVERT):
        both = f" and {adapter.text_encoder} of the text encoder" if adapter.text_encoder else ""
        rows += [("rank", f"{adapter.rank}, alpha {adapter.alpha:g}"), ("patches", f"{adapter.unet} modules of the UNet{both}")]
    if adapter.use is not Use.BROKEN:
        scale = recommended(adapter)
        said = f"{prompts.number(scale)} recommended" if adapter.card.scale is not None else "none recommended"
        rows += [("trigger words", adapter.card.trigger_words or "none stated"), ("scale", said)]
    if adapter.use in (Use.READY, Use.UNCHECKED) and not prompts.why_no_tag(adapter.name):
        rows.append(("as a tag", prompts.tag(adapter.name, recommended(adapter))))
    return [*rows, ("description", adapter.card.description), ("card", adapter.card.problem)]


def message(text: str, *, good: bool = False) -> str:
    """One line, green or red."""
    return f'<span class="scribble-lora-{"good" if good else "bad"}">{escape(text)}</span>'


def preformatted(text: str, *, sound: bool) -> str:
    """`convert --check`'s table."""
    verdict = message("sound", good=True) if sound else message("not sound: see the last line")
    return f'{verdict}<pre class="scribble-lora-table">{escape(text)}</pre>'
