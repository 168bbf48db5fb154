"""report/index.html: one file with everything it shows, for a desktop or a phone, from disk."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Literal
from urllib.parse import quote

from trainer.base.sd15 import SCRIBBLE_NARROW
from trainer.evaluate.recommend import in_words
from trainer.evaluate.results import PARTS, Grid, GroupReport, Key, Report
from trainer.evaluate.style import STYLE

LEAST_WIDTH = 900  # pixels of a grid on the page; a narrower screen scrolls it sideways
CAPTIONS = {
    "similarity": "Mean cosine between a picture's features and those of held-out drawings of its category, which training "
                  "never saw. Dashed: the drawings among themselves. A curve above that line is a warning, not a success.",
    "style_prompt": "A scale's gain in style (up) and loss in following the prompt without its trigger words "
                    "(left). Some points are labelled with their scale.",
    "clip_score": "How well a picture fits its whole prompt, by a CLIP: 100 · max(cos, 0), as the paper's library computes it. "
                  "Dashed: real drawings with their captions. The paper warns that it cannot judge scribbles.",
    "ink_distance": "Strokes only, whatever the subject: white ground, no colour, black ink, little of it, thin lines, nothing "
                    "between. Root mean square deviation from held-out drawings decoded by the VAE, in units of their spread.",
    "dino_similarity": "Similarity by a network that was trained without captions.",
    "cmmd": "How far the pictures as a set are from the held-out drawings as a set: 0 for equal distributions. Few pictures "
            "make wide intervals.",
    "held_out_loss": "Predicting the noise on drawings that the adapter never saw: the difference from the base, with the "
                     "same noise and timesteps; below 0 is better.",
    "nearest_training": "Cosine with the nearest training picture. Dashed: the same of held-out drawings. Well above the line, "
                        "the LoRA reproduces its training pictures.",
}
NAMES = {"similarity": "similarity", "style_prompt": "style against prompt", "prompt_score": "prompt score",
         "clip_score": "CLIP score", "ink_distance": "ink distance", "dino_similarity": "DINOv2 similarity", "cmmd": "CMMD",
         "held_out_loss": "loss, against the base", "nearest_training": "nearest training picture"}  # fmt: skip
COLUMNS: tuple[Key, ...] = ("similarity", "prompt_score", "clip_score", "ink_distance", "dino_similarity", "cmmd",
                            "held_out_loss", "nearest_training")  # fmt: skip


def page(report: Report, plots: dict[str, bytes], grids: dict[str, Grid]) -> str:
    """The whole page. plots: SVG by curve; grids: what `draw_grids` returned."""
    lora, base = report["lora"], report["base"]
    small = ("<p class=soft>These are figures of Scribble LoRA's embedded miniature, with a judge of its own, not of Stable "
             "Diffusion 1.5.</p>" if base["family"] == SCRIBBLE_NARROW else "")
    body = [
        f"<h1>{escape(lora['name'])} on {escape(base['name'])}</h1>", small,
        verdict(in_words(report["recommended"]), report["recommended"]["scale"] is not None),
        *(f"<p class=warning>{escape(warning)}</p>" for warning in report["warnings"]),
        "<div class=plots>",
        *(figure(svg, f"{NAMES[key]} against the LoRA scale", CAPTIONS[key]) for key, svg in plots.items()), "</div>",
        *(_grid(grid) for grid in grids.values()), _complex(report),
        "<h2>Numbers</h2>", *(_table(kind, group, report) for kind, group in report["groups"].items()), _diversity(report),
        "<p class=soft>In brackets 95 % intervals over categories: of the mean, and for the loss of its difference from the "
        "base. There are none below four categories. <a href=report.json>report.json</a> and <a href=report.csv>report.csv</a> "
        "have the numbers of every picture.</p>", "<h2>How it was made</h2>", _facts(report), _prompts(report)]  # fmt: skip
    return document(f"{lora['name']}: evaluation", body)


def verdict(text: str, found: bool) -> str:
    """The verdict; grey if nothing is recommended."""
    return f"<p class='verdict{'' if found else ' nothing'}'>{escape(text)}</p>"


def document(title: str, body: list[str]) -> str:
    """A complete page in the report's style."""
    return ("<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n"
            "<meta name=viewport content='width=device-width, initial-scale=1'>\n"
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n" + "\n".join(body) + "\n</html>\n")


def figure(svg: bytes, alt: str, caption: str, *, least: int = 0) -> str:
    """A plot, within the page, with its caption. least: pixels of width below which it scrolls instead of shrinking."""
    data = base64.b64encode(svg).decode()
    image = f"<img style='min-width: {least}px' alt='{escape(alt)}' src='data:image/svg+xml;base64,{data}'>"
    return (f"<figure>{scrolled('wide', alt, image) if least else image}"
            f"<figcaption><small>{escape(caption)}</small></figcaption></figure>")


def number(mean: float | None, low: float | None, high: float | None) -> str:
    """`0.52 [0.5, 0.54]`; without an interval the mean alone."""
    if mean is None:
        return ""
    return f"{mean:.4g}" + (f" <small>[{low:.4g}, {high:.4g}]</small>" if low is not None and high is not None else "")


def rows(head: list[str], lines: list[tuple[list[str], bool]]) -> str:
    """A table with a sticky first column; a line is its cells, HTML, and whether it is marked."""
    body = "".join(f"<tr{' class=best' if marked else ''}><th scope=row>{first}</th>"
                   + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>" for (first, *others), marked in lines)
    top = "".join(f"<th scope=col>{escape(title)}</th>" for title in head)
    return scrolled("numbers", f"table: {', '.join(head)}",
                    f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>")


def scrolled(kind: str, label: str, inner: str) -> str:
    """Content that may be wider than the screen, in a frame that scrolls sideways, also by keyboard."""
    return f"<div class={kind} tabindex=0 role=region aria-label='{escape(label)}'>{inner}</div>"


def _grid(grid: Grid) -> str:
    stream = io.BytesIO()
    grid["image"].save(stream, format="JPEG", quality=88, optimize=True)
    data, width = base64.b64encode(stream.getvalue()).decode(), grid["image"].width
    drawn = (f"<img alt='{escape(grid['title'])}, one column for each scale' style='width: "
             f"clamp({min(width, LEAST_WIDTH)}px, 100%, {width}px)' src='data:image/jpeg;base64,{data}'>")
    return (f"<h2>{escape(grid['title'])}</h2>" + scrolled("wide", grid["title"], drawn) +
            f"<small>Left to right: LoRA scale; a row shares seed and noise. Large: "
            f"<a href='{quote(grid['file'])}'>{escape(grid['file'])}</a></small>")


def _table(kind: str, group: GroupReport, report: Report) -> str:
    keys = [key for key in COLUMNS if key in group]
    lines = []
    for k, scale in enumerate(report["scales"]):
        curves = [group[key]["against_base"] if key == "held_out_loss" else group[key] for key in keys]
        cells = [number(*(curve[part][k] for part in PARTS)) for curve in curves]
        lines.append(([f"{scale:g}", *cells], scale == report["recommended"]["scale"]))
    size = group["similarity"]
    return (f"<h3>{escape(kind)}: {size['n']} pictures of {size['categories']} categories or captions</h3>"
            + rows(["scale", *(NAMES[key] for key in keys)], lines))


def _complex(report: Report) -> str:
    """Figures 8 and 9 in numbers."""
    found = report["complex"]
    if set(found) != {"with", "without"}:
        return ""
    keys: tuple[Literal["ink_distance", "similarity", "prompt_score"], ...] = ("ink_distance", "similarity", "prompt_score")
    head = ["scale", *(f"{NAMES[key]}, {side}" for key in keys for side in ("with", "without"))]
    lines = []
    for k, scale in enumerate(report["scales"]):
        curves = [found[side][key] for key in keys for side in ("with", "without")]
        cells = [number(*(curve[part][k] for part in PARTS)) for curve in curves]
        lines.append(([f"{scale:g}", *cells], scale == report["recommended"]["scale"]))
    ways = [f"at {found[side]['half_way']:g}" if found[side]["half_way"] is not None else "at none of these scales"
            for side in ("with", "without")]  # fmt: skip
    few = "" if found["with"]["similarity"]["categories"] >= 4 else " Below four prompts there are no intervals."
    return ("<h2>Complex prompts with and without the trigger words</h2><p class=soft>The paper (section 4.2.2) sees the style "
            "with the words from scale 0.7 on and without them from 0.9 on. Here the ink distance first comes half of the way "
            f"from the base's to the drawings' own {ways[0]} with them, and {ways[1]} without. Similarity: to all held-out "
            f"drawings.{few}</p>" + rows(head, lines))


def _diversity(report: Report) -> str:
    found = report["diversity"]
    if not found:
        return ""
    head = ["scale", "pictures of one prompt differ by"]
    lines = [([f"{scale:g}", number(*(found[part][k] for part in PARTS))],
              scale == report["recommended"]["scale"]) for k, scale in enumerate(report["scales"])]
    own = f"; real ones of one category by {found['drawings']:.4g}" if found["drawings"] is not None else ""
    return ("<h3>Diversity over seeds</h3>"
            f"<p class=soft>1 - cosine between pictures of the same prompt with different seeds{own}.</p>"
            + rows(head, lines))


def _facts(report: Report) -> str:
    lora, judges = report["lora"], report["judges"]

    def judge(found: dict[str, str]) -> str:
        return f"{found['name']}, {found['identity'][:16]}…" if "name" in found else f"none: {found['none']}"

    facts = {
        "LoRA": f"{lora['file']}: {lora['form']}, rank {lora['rank']}, {lora['modules']} modules, {lora['digest'][:16]}…",
        "Base": f"{report['base']['name']} ({report['base']['family']}), {report['base']['identity'][:16]}…",
        "CLIP score by": judge(judges["clip"]), "Similarity by": judge(judges["image_clip"]),
        "Second judge": judge(judges["dino"]),
        "Settings": ", ".join(f"{key} {value}" for key, value in report["settings"].items() if key != "complex"),
        "Data": f"{report['data']['data']}, seed {report['data']['seed']}",
        "Versions": ", ".join(f"{key} {value}" for key, value in report["versions"].items()) + f", on {report['device']}"}
    lines = "".join(f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in facts.items())
    return f"<div class=facts><table>{lines}</table></div>"


def _prompts(report: Report) -> str:
    """Every prompt and seed that was drawn, with links to the group's pictures."""
    parts = []
    for kind, group in report["groups"].items():
        for subject in group["subjects"]:
            links = " ".join(f"<a href='{quote(file)}'>{scale:g}</a>"
                             for scale, file in zip(report["scales"], subject["pictures"], strict=True))
            parts.append(f"<li>{escape(kind)}: {escape(subject['prompt'])}, seed {subject['seed']}: {links}")
    for grid in report["grids"].values():
        parts += [f"<li>{escape(row['prompt'])}, seed {row['seed']} ({escape(grid['file'])})" for row in grid["rows"]]
    return f"<details><summary>Every prompt and seed</summary><ul>{''.join(parts)}</ul></details>"
