"""report/index.html: one file that holds all it shows, for a desktop or a phone, from disk."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Any

from trainer.base.sd15 import SCRIBBLE_MINIATURE
from trainer.evaluate.recommend import in_words

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d22; --soft: #62626c; --paper: #fff; --card: #f5f5f2; --line: #ddd;
        --mark: #2c7a48 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e9ee; --soft: #a2a2ae; --paper: #17171b; --card: #222228; --line: #3a3a42;
          --mark: #6cc48c } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--paper); color: var(--ink);
       font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .25rem }
p { max-width: 46rem; margin: .4rem 0 } .soft, figcaption, small { color: var(--soft) }
.verdict { background: var(--card); border-left: .3rem solid var(--mark); border-radius: .3rem; padding: .7rem 1rem;
           margin: 1rem 0; font-size: 1.1rem; max-width: none }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem }
figure { margin: 0 } .plots img { width: 100%; height: auto; background: #fff; border-radius: .4rem; display: block }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; background: #fff; border-radius: .4rem;
        border: 1px solid var(--line) }
.wide img { display: block; height: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; width: 100%; background: var(--paper) }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { position: sticky; left: 0; background: inherit }
tr.best { background: var(--card); font-weight: 600 }
.numbers { overflow-x: auto } details { margin: .6rem 0 } summary { cursor: pointer } code { font-size: .9em }
.facts td, .facts th { text-align: left; white-space: normal; vertical-align: top }
.facts th { white-space: nowrap; overflow-wrap: normal }
"""
LEAST_WIDTH = 900  # pixels of a grid on the page; a narrower screen scrolls it sideways
_PLOTS = {
    "similarity": "Mean cosine between a picture's features and those of held-out drawings of its category, which training "
                  "never saw. Dashed: the drawings among themselves. The recommended scale is the peak over all pictures.",
    "clip_score": "How well a picture fits its prompt, says a CLIP. Dashed: real drawings with their captions. The paper warns "
                  "that it cannot judge scribbles: a picture can lose points by looking like a scribble or by showing nothing.",
    "ink_distance": "Strokes alone, whatever they show: white ground, no colour, black ink, little of it, thin lines, nothing "
                    "between. Root mean square deviation from the held-out drawings, in units of their own spread.",
    "held_out_loss": "Does the adapter predict the noise on drawings that it never saw? The same noise at every scale; lower "
                     "is better. The intervals leave out that every drawing has noise levels of its own.",
}
_NAMES = {"clip_score": "CLIP score", "similarity": "similarity", "ink_distance": "ink distance", "held_out_loss": "loss"}


def page(report: dict[str, Any], plots: dict[str, bytes], grids: dict[str, dict[str, Any]]) -> str:
    """The whole page. plots: SVG by curve; grids: what `draw_grids` returned."""
    lora, base = report["lora"], report["base"]
    warning = ("<p class=soft>These are figures of Scribble LoRA's embedded miniature (64-pixel pictures, a judge of its own), "
               "not of Stable Diffusion 1.5.</p>" if base["family"] == SCRIBBLE_MINIATURE else "")
    parts = [
        f"<h1>{escape(lora['name'])} on {escape(base['name'])}</h1>", warning,
        f"<p class=verdict>{escape(in_words(report['recommended']))}</p>",
        "<div class=plots>", *(_plot(key, plots[key]) for key in _PLOTS), "</div>",
        *(_grid(name, grid) for name, grid in grids.items()),
        "<h2>Numbers</h2>", *(_table(kind, group, report) for kind, group in report["groups"].items()),
        "<p class=soft>In brackets 95 % bootstrap intervals of the mean. All of it, for every picture, is in "
        "<code>report.json</code>.</p>", "<h2>How it was made</h2>", _facts(report)]  # fmt: skip
    return ("<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n"
            "<meta name=viewport content='width=device-width, initial-scale=1'>\n"
            f"<title>{escape(lora['name'])}: evaluation</title>\n<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n")


def _plot(key: str, svg: bytes) -> str:
    data = base64.b64encode(svg).decode()
    return (f"<figure><img alt='{escape(_NAMES[key])} against the LoRA scale' src='data:image/svg+xml;base64,{data}'>"
            f"<figcaption><small>{escape(_PLOTS[key])}</small></figcaption></figure>")


def _grid(name: str, grid: dict[str, Any]) -> str:
    stream = io.BytesIO()
    grid["image"].save(stream, format="JPEG", quality=88, optimize=True)
    data, width = base64.b64encode(stream.getvalue()).decode(), grid["image"].width
    return (f"<h2>{escape(grid['title'])}</h2><div class=wide><img alt='{escape(grid['title'])}, one column for each scale' "
            f"style='width: clamp({min(width, LEAST_WIDTH)}px, 100%, {width}px)' src='data:image/jpeg;base64,{data}'></div>"
            f"<small>Left to right: LoRA scale; a row shares seed and noise. Large: "
            f"<a href='{escape(grid['file'])}'>{escape(grid['file'])}</a></small>")


def _table(kind: str, group: dict[str, Any], report: dict[str, Any]) -> str:
    head = "".join(f"<th>{escape(_NAMES[key])}</th>" for key in _PLOTS)
    rows = []
    for k, scale in enumerate(report["scales"]):
        cells = "".join(f"<td>{_number(group[key], k)}</td>" for key in _PLOTS)
        best = " class=best" if scale == report["recommended"]["scale"] and report["recommended"]["verdict"] != "none" else ""
        rows.append(f"<tr{best}><td>{scale:g}</td>{cells}</tr>")
    return (f"<h3>{escape(kind)}</h3><div class=numbers><table><thead><tr><th>scale</th>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div>")


def _number(curve: dict[str, Any], k: int) -> str:
    mean, low, high = (f"{curve[part][k]:.4g}" for part in ("mean", "low", "high"))
    return f"{mean} <small>[{low}, {high}]</small>"


def _facts(report: dict[str, Any]) -> str:
    lora, judges = report["lora"], report["judges"]
    facts = {
        "LoRA": f"{lora['file']}: {lora['form']}, rank {lora['rank']}, {lora['modules']} modules, {lora['digest'][:16]}…",
        "Base": f"{report['base']['name']} ({report['base']['family']}), {report['base']['identity'][:16]}…",
        "CLIP score by": f"{judges['clip']['name']}, {judges['clip']['identity'][:16]}…",
        "Similarity by": f"{judges['image_clip']['name']}, {judges['image_clip']['identity'][:16]}…",
        "Settings": ", ".join(f"{key} {value}" for key, value in report["settings"].items() if key != "complex"),
        "Data": f"{report['data']['data']}, seed {report['data']['seed']}",
        "Versions": ", ".join(f"{key} {value}" for key, value in report["versions"].items()) + f", on {report['device']}"}
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in facts.items())
    prompts = "".join("<li>" + escape("; ".join(f"{s['prompt']} (seed {s['seed']})" for s in group["subjects"]))
                      for group in report["groups"].values())  # fmt: skip
    return (f"<div class=facts><table>{rows}</table></div><details><summary>Every prompt and seed</summary><ul>{prompts}</ul>"
            "</details>")
