"""The data table: one fact per row, likely mistakes marked, unused files at the end."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from convert.errors import printable
from trainer.base.facts import picture_side
from trainer.data.buckets import enlargement, kept_area
from trainer.data.captions import is_tags
from trainer.data.folder import Unused
from trainer.data.images import Header
from trainer.data.picture import Picture
from trainer.data.records import Dataset, Row
from trainer.recipe import Recipe

CROPPED, MUCH = 0.02, 0.25
"""Cropped shares of a picture's area: the first is worth mentioning, the second is likely to be a mistake."""
MOST_NAMED = 6
WEIGHTED = re.compile(r"\([^()]*:\s*\d*\.?\d+\)|<(lora|lyco|hypernet):[^<>]*>")
"""The prompt syntax of web UIs for weighted words and LoRAs."""
LABEL = 22  # characters


@dataclass
class Facts:
    """Facts collected while finding the pictures, mostly as lists of pictures, so that the first one can be named."""

    origins: dict[str, list[str]] = field(default_factory=dict)
    """source of the captions -> pictures"""
    animations: list[str] = field(default_factory=list)
    transparent: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    contact_sheets: int = 0
    numbers: list[str] = field(default_factory=list)
    unused: Unused = field(default_factory=Unused)
    guessed_trigger: str = ""
    orders: int = 0

    def note(self, picture: Picture, header: Header, origin: str, trigger: str, own_class: bool) -> None:
        for found, true in ((self.animations, header.moving), (self.transparent, header.transparent)):
            if true:
                found.append(picture.source)
        if picture.reg:
            return
        if len(picture.captions) > 1:
            self.several.append(picture.source)
        if not picture.caption:
            origin = "none"
        elif not origin:
            origin = "the trigger alone"
        elif origin == "the folder's name" and own_class:
            origin = "the class in kohya's folder name"
        self.origins.setdefault(origin, []).append(picture.source)

    def take(self, unused: Unused, folder: str) -> None:
        for kind, (number, first) in unused.kinds.items():
            self.unused.add(kind, f"{folder}/{first}" if folder else first, number)


def count(names: Sequence[str]) -> str:
    """ "3 (first a.png)"."""
    return f"{len(names):,} (first {names[0]})"


def rows(dataset: Dataset, facts: Facts, recipe: Recipe, max_upscale: float) -> list[Row]:
    """The table of a dataset of pictures; lists those enlarged more than `max_upscale`."""
    pictures = [e for part in (dataset.train, dataset.held_out) for e in part if isinstance(e, Picture)]
    own, reg = [p for p in pictures if not p.reg], [p for p in pictures if p.reg]
    held_out = f", of which {len(dataset.held_out)} are held out" if dataset.held_out else ""
    table = [Row("pictures", f"{len(own):,}{held_out}")]
    table += [Row("repeats", _repeats(dataset))] if any(p.repeats != 1 for p in own) or reg else []
    if reg:
        table += _regularisation(reg, recipe)
    masked = [p.source for p in pictures if p.mask_path]
    through = [p.source for p in pictures if p.alpha_mask]
    table += [Row("masks", f"{count(masked)}: white areas are trained on, black ones are not")] if masked else []
    table += [Row("alpha as mask", f"{count(through)}: only opaque areas are trained on")] if through else []
    table += _captions(facts, own)
    table += _shapes(pictures, recipe, max_upscale)
    table += [Row("put on white", f"{count(facts.transparent)}: they are partly transparent")] if facts.transparent else []
    table += [Row("first frame only", f"{count(facts.animations)}: animations or several pages")] if facts.animations else []
    table += _unused(facts, recipe)
    return table


def _repeats(dataset: Dataset) -> str:
    """Pictures by their category and repeats: "10_sks dog": 10 x 20."""
    groups = Counter((e.category, e.repeats) for e in dataset.without_reg)
    named = [f"{repeats} \N{MULTIPLICATION SIGN} {number}" + (f" {category!r}" if category else "")
             for (category, repeats), number in groups.most_common(MOST_NAMED)]
    more = f" and {len(groups) - MOST_NAMED} more" if len(groups) > MOST_NAMED else ""
    return f"{', '.join(named)}{more}: an epoch is {dataset.per_epoch:,} pictures"


def _regularisation(reg: Sequence[Picture], recipe: Recipe) -> list[Row]:
    example, bare = next((p.caption for p in reg if p.caption), ""), [p.source for p in reg if not p.caption]
    shown = f", captioned for example {textwrap.shorten(example, 60, placeholder=' …')!r}" if example else ""
    table = [Row("regularisation", f"{count([p.source for p in reg])}{shown}, as often as all the others together, at weight "
                 f"{recipe.prior_weight:g}; --no-reg leaves them out, reg=no uses them like the others")]
    if bare:
        table.append(Row("  without a caption", f"{count(bare)}: used with an empty caption, which preserves little of the "
                         "base's knowledge: name their folder after their class, as in 1_dog", True))
    return table


def _captions(facts: Facts, own: Sequence[Picture]) -> list[Row]:
    bare = facts.origins.pop("none", [])
    told = [f"{len(names):,} from {origin}" if origin != "the trigger alone" else f"{len(names):,} {origin}"
            for origin, names in sorted(facts.origins.items(), key=lambda item: -len(item[1]))]
    table = [Row("captions", "; ".join(told) or "none")]
    for origin in ("the folder's name", "the class in kohya's folder name"):
        if by_folder := facts.origins.get(origin):
            classes = Counter(p.category for p in own if p.source in set(by_folder))
            some = ", ".join(repr(name) for name, _ in classes.most_common(MOST_NAMED))
            table.append(Row("  from folders", f"{count(by_folder)}: {some}"))
    if bare:
        table.append(Row("without a caption", f"{count(bare)}: used with an empty caption; --trigger adds one", True))
    if by_trigger := facts.origins.get("the trigger alone"):
        triggers = dict.fromkeys(repr(p.caption) for p in own if p.source in set(by_trigger))
        table.append(Row("  trigger alone", f"{count(by_trigger)}: {', '.join(triggers)}"))
    if facts.several:
        table.append(Row("several captions", f"{count(facts.several)}: one of them is drawn each time; --caption-lines join "
                         "makes one of several lines"))
    example = next((p for p in own if p.caption), None)
    if example:
        kind = "tags" if is_tags(example.caption) else "text"
        shown = textwrap.shorten(example.caption, 120, placeholder=" …")
        table.append(Row("  for example", f"{example.source}: {shown!r} ({kind})"))
    if weighted := [p.source for p in own if any(WEIGHTED.search(text) for text in p.captions)]:
        table.append(Row("prompt syntax", f"{count(weighted)}: '(word:1.2)' or '<lora:...>' in a caption is used as text, "
                         "not as a weight", True))
    if facts.orders:
        table.append(Row("tags", f"in up to {facts.orders} orders per picture, drawn before training"))
    if facts.guessed_trigger:
        table.append(Row("activation text", f"{facts.guessed_trigger!r}, which all captions share; --trigger sets another"))
    if facts.numbers:
        names = ", ".join(repr(name) for name in facts.numbers[:MOST_NAMED])
        table.append(Row("numbers as names", f"{names}: read as names, not as repeats; repeats=N sets the repeats", True))
    return table


def _shapes(pictures: Sequence[Picture], recipe: Recipe, max_upscale: float) -> list[Row]:
    """Rows about buckets, cropping and enlargement."""
    if not pictures:
        return []
    side = picture_side(recipe)
    shapes = {p.source: p.shape(side) for p in pictures}
    by_shape = Counter(shapes.values()).most_common()
    named = ", ".join(f"{w}\N{MULTIPLICATION SIGN}{h} {number:,}" for (h, w), number in by_shape[:8])
    rest = f" and {len(by_shape) - 8} shapes with {sum(n for _, n in by_shape[8:]):,}" if len(by_shape) > 8 else ""
    table = [Row("shapes" if recipe.bucket_step else "squares", named + rest)]
    lost = sorted(((1 - kept_area(*p.size, shapes[p.source]), p.source) for p in pictures), reverse=True)
    lost = [(share, name) for share, name in lost if share > CROPPED]
    if lost:
        table.append(Row("cropped", f"{len(lost):,}, at most {lost[0][0]:.0%} of the area (of {lost[0][1]}), on average "
                         f"{sum(share for share, _ in lost) / len(lost):.0%}", lost[0][0] > MUCH))
    grown = sorted(((enlargement(*p.size, shapes[p.source]), p.source) for p in pictures), reverse=True)
    grown = [(times, name) for times, name in grown if times > max_upscale]
    if grown:
        table.append(Row("enlarged", f"{len(grown):,} by more than {max_upscale:g}, at most {grown[0][0]:.1f} times (of "
                         f"{grown[0][1]}): they look blurred", True))
    return table


def _unused(facts: Facts, recipe: Recipe) -> list[Row]:
    fields = Recipe.__dataclass_fields__
    table = []
    if facts.contact_sheets:
        facts.unused.add("contact sheets of this program", "", facts.contact_sheets)
    if any(getattr(recipe, name) != fields[name].default for name in ("categories", "per_category")):
        table.append(Row("not used", "--categories and --per-category, which are for drawings: all pictures are used", True))
    hidden = facts.unused.kinds.pop("hidden or system files", None)
    for kind, (number, first) in sorted(facts.unused.kinds.items(), key=lambda item: -item[1][0]):
        table.append(Row("not used", f"{number:,} {kind}" + (f" (first {first})" if first else ""), attention=True))
    if hidden:
        table.append(Row("not used", f"{hidden[0]:,} hidden or system files (first {hidden[1]})"))
    return table


def format_table(table: Iterable[Row], columns: int = 0) -> str:
    """Lines of at most `columns` characters (0: the terminal's width, at most 120); likely mistakes start with "!"."""
    width = max(columns or min(shutil.get_terminal_size((100, 24)).columns, 120), 40)
    label = LABEL if width >= 70 else 14
    lines, before = [], ""
    for row in table:
        head = "" if row.label == before else row.label
        before = row.label
        mark = "!" if row.attention else " "
        indent = " " * (label + 3)
        wrapped = textwrap.wrap(printable(row.text), width, initial_indent=f"{mark} {head:<{label}} ", subsequent_indent=indent,
                             break_long_words=True, break_on_hyphens=False)  # fmt: skip
        lines += wrapped or [f"{mark} {head}"]
    return "\n".join(lines)
