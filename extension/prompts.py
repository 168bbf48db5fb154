"""The grammar of `<lora:…>` tags, and rewriting a prompt: existing tags of the adapter out, ours in; trigger words in front.

The grammar is the web UI's, from its modules/extra_networks.py and extensions-builtin/Lora/extra_networks_lora.py: the text
of a tag is split at ":"; an item with exactly one "=" is named; the first other item is the file, and the numbers after it
are the strengths of the text encoder and the UNet. Tags are removed from the prompt before anything else is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

TAG = re.compile(r"<(\w+):([^>]+)>")
"""The web UI's own pattern of an extra network."""

KINDS = ("lora", "lyco")
"""Tag words that the web UI gives to its LoRA extension."""

NOT_IN_A_TAG = {
    ":": "ends the name in a <lora:…> tag",
    ">": "ends the <lora:…> tag",
    "#": "begins a comment in a prompt",
}
"""Characters that a file name in a tag must not contain, and why. (A single "=" is the fourth: see `why_no_tag`.)"""


class Tag(NamedTuple):
    """A LoRA tag in a prompt."""

    text: str
    """the whole tag"""
    items: tuple[str, ...]
    """the parts between the colons, after `lora:`"""

    @property
    def positional(self) -> list[str]:
        """The items that are not `key=value`: the file's name, then strengths."""
        return [item for item in self.items if len(item.split("=", 2)) != 2]

    @property
    def name(self) -> str:
        """The file name as the web UI reads it."""
        return next(iter(self.positional), "")

    @property
    def problem(self) -> str | None:
        """Why the web UI cannot read this tag, in which case it applies none of the prompt's LoRAs; None if it can."""
        if not self.positional:
            return "does not name a file"
        named = dict(item.split("=", 1) for item in self.items if item not in self.positional)
        numbers = [*self.positional[1:3], *(named[key] for key in ("te", "unet") if key in named)]
        bad = next((item for item in numbers if not _is_number(item)), None)
        return f"has {ascii(bad)} where a number is expected" if bad is not None else None

    @property
    def own_strengths(self) -> bool:
        """Whether it gives the text encoder and the UNet separate strengths."""
        return len(self.positional) > 2 and _is_number(self.positional[2]) or bool(_scales(self.items))

    @property
    def extras(self) -> list[str]:
        """Items of other extensions, such as `lbw=…`, which are kept when the scale is replaced."""
        rest = [item for item in self.items if item is not self.name]
        return [item for item in rest if not _is_number(item) and item not in _scales(rest)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _scales(items: Iterable[str]) -> list[str]:
    return [item for item in items if re.match(r"(te|unet)=", item)]


def tags(prompt: str) -> Iterator[Tag]:
    """The LoRA tags of a prompt, in order, as the web UI reads them."""
    for match in TAG.finditer(prompt):
        if match.group(1) in KINDS:
            yield Tag(match.group(), tuple(match.group(2).split(":")))


def tag(name: str, scale: float, extras: Iterable[str] = ()) -> str:
    """`<lora:scribble:0.8>`"""
    return f"<lora:{':'.join((name, number(scale), *extras))}>"


def number(scale: float) -> str:
    """A scale as people write it: 0.8, 1, 0.125."""
    return f"{scale:.4f}".rstrip("0").rstrip(".")


def why_no_tag(name: str) -> str | None:
    """Why a tag cannot contain this file name; None if it can."""
    why = next((f"its name contains '{letter}', which {why}" for letter, why in NOT_IN_A_TAG.items() if letter in name), None)
    if why is None and name.count("=") == 1:  # with two "=" the web UI reads it as a name again
        why = "its name contains '=', which turns it into a named value in a <lora:…> tag"
    return f"{why}: rename the file" if why else None


@dataclass(frozen=True)
class Rewritten:
    """A prompt, and notes about settings of its old tags that were dropped."""

    prompt: str
    notes: tuple[str, ...] = ()


def rewrite(prompt: str, name: str, scale: float, refers: Callable[[str], bool], trigger: str = "") -> Rewritten:
    """The prompt with one tag of the adapter, at its end; `trigger` in front if it does not begin with it.

    Args:
        name: the adapter's file name.
        refers: whether a name in a tag refers to that file. Such tags are removed; their values for other extensions move
            to the new tag.
    """
    old = [one for one in tags(prompt) if refers(one.name)]
    extras = dict.fromkeys(item for one in old for item in one.extras)
    rest, scheduled = _without(prompt, refers)
    own = [one.text for one in old if one.own_strengths]
    notes = [f"the scale replaces the separate strengths of the text encoder and the UNet in {text}" for text in own]
    if scheduled:
        notes.append("a LoRA tag inside [… : when] is not scheduled: the web UI applies it from the first step to the last")
    if trigger and not starts_with(rest, trigger):
        rest = f"{trigger} {rest}".strip()
    return Rewritten(_with_tag(rest, tag(name, scale, extras)), tuple(notes))


def _with_tag(text: str, new: str) -> str:
    """Append the tag: on a new line after a `#`, because the web UI deletes the rest of that line; in front if the prompt
    has an unclosed `<word:`, which would absorb it.
    """
    if not text:
        return new
    joined = f"{text}{chr(10) if '#' in text.rpartition(chr(10))[2] else ' '}{new}"
    return joined if new in [one.text for one in tags(joined)] else f"{new} {text}"


def without(prompt: str, refers: Callable[[str], bool]) -> str:
    """The prompt without the plain tags of the adapter; tags with values for other extensions stay."""
    extra = {one.text for one in tags(prompt) if one.extras}
    return _without(prompt, refers, keep=extra)[0]


_HOLE = "\0"
_EMPTY = re.compile(r"""(?<!\\)(?: \( \s* \0 \s* (?: : \s* [-+]? [\d.]+ \s* )? \)  # (tag), (tag:1.2)
                               | \[ \s* \0 \s* \] )                                # [tag]""", re.VERBOSE)  # fmt: skip
_SCHEDULED = re.compile(r"(?<!\\)\[(?=[^][]*\0)[\s\0]*(?::[\s\0]*){1,2}[\d.]+\s*\]")
"""[tag:0.5], [tag::0.5], [tag:tag:0.5]: without the tag an empty schedule would be left."""


def _without(prompt: str, refers: Callable[[str], bool], keep: Iterable[str] = ()) -> tuple[str, bool]:
    """The prompt without the adapter's tags and brackets left empty; and whether those brackets scheduled a tag."""
    kept = set(keep)

    def hole(match: re.Match[str]) -> str:
        one = Tag(match.group(), tuple(match.group(2).split(":")))
        return _HOLE if match.group(1) in KINDS and one.text not in kept and refers(one.name) else match.group()

    text = TAG.sub(hole, prompt.replace(_HOLE, ""))
    if _HOLE not in text:
        return prompt, False
    scheduled = False
    while True:
        cleared, emptied = _EMPTY.subn(_HOLE, text)
        cleared, timed = _SCHEDULED.subn(_HOLE, cleared)
        scheduled |= timed > 0
        if not emptied + timed:
            return cleared.replace(_HOLE, "").strip(), scheduled
        text = cleared


def starts_with(prompt: str, trigger: str) -> bool:
    """Whether a prompt begins with these words, ignoring tags, brackets, whitespace and case."""
    words = re.sub(r"^[\s([{]+", "", TAG.sub(" ", prompt))
    begin, wanted = " ".join(words.lower().split()), " ".join(trigger.lower().split())
    return re.match(rf"{re.escape(wanted)}(?!\w)", begin) is not None
