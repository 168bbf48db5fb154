"""Rewriting a prompt: the adapter's own tag out, ours in; trigger words in front."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

TAG = re.compile(r"<(\w+):([^>]+)>")
"""The web UI's own pattern of an extra network."""

KINDS = ("lora", "lyco")
"""Tag words that the web UI gives to its LoRA extension."""


def tag(name: str, scale: float) -> str:
    """`<lora:scribble:0.8>`"""
    return f"<lora:{name}:{number(scale)}>"


def number(scale: float) -> str:
    """A scale as people write it: 0.8, 1, 0.125."""
    return f"{scale:.4f}".rstrip("0").rstrip(".")


def why_no_tag(name: str) -> str | None:
    """Why the web UI cannot be given this file by name, if it cannot."""
    for letter in ":>":
        if letter in name:
            return f"its name holds a '{letter}', which ends the name in a <lora:…> tag: rename the file"
    return None


def names(prompt: str) -> list[str]:
    """What the LoRA tags of a prompt name, in order."""
    return [_name(match) for match in TAG.finditer(prompt) if match.group(1) in KINDS]


def without(prompt: str, refers: Callable[[str], bool]) -> str:
    """The prompt without the LoRA tags whose name `refers` to the adapter. One without any comes back as it is."""

    def keep(match: re.Match[str]) -> str:
        return "" if match.group(1) in KINDS and refers(_name(match)) else match.group()

    cleaned = TAG.sub(keep, prompt)
    return prompt if cleaned == prompt else cleaned.strip()


def rewrite(prompt: str, tag: str, refers: Callable[[str], bool], trigger: str = "") -> str:
    """The prompt with `tag` at its end and no other tag of that adapter; `trigger` in front where it is not there yet.

    The web UI deletes what follows a `#` in a line, so a tag behind one stands on a line of its own.
    """
    text = without(prompt, refers)
    if trigger and not starts_with(text, trigger):
        text = f"{trigger} {text}".strip()
    if not text:
        return tag
    return f"{text}{chr(10) if '#' in text.rpartition(chr(10))[2] else ' '}{tag}"


def starts_with(prompt: str, trigger: str) -> bool:
    """Whether a prompt begins with these words, whatever tags, brackets, blanks and capitals there are."""
    words = re.sub(r"^[\s([{]+", "", TAG.sub(" ", prompt))
    begin, wanted = " ".join(words.lower().split()), " ".join(trigger.lower().split())
    return re.match(rf"{re.escape(wanted)}(?!\w)", begin) is not None


def all_names(prompts: Iterable[str]) -> list[str]:
    """What the LoRA tags of several prompts name, each once, in order."""
    return list(dict.fromkeys(name for prompt in prompts for name in names(prompt)))


def _name(match: re.Match[str]) -> str:
    return match.group(2).split(":")[0]
