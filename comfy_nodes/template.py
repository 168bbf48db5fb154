"""The prompt around a subject: "apple" -> "a scribble of apple"."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import NodeError

TEMPLATE = "{trigger} {subject}"
TRIGGER = "a scribble of"
"""The trigger words if no others are given: the paper's caption."""


def fill(template: str, subject: str, trigger: str) -> str:
    """`template` with `{trigger}` and `{subject}` put in, without the spaces and commas that an empty one leaves.

    A subject that begins with the trigger words gets them once. Other braces stay as they are. Raises `NodeError`
    if the template has no place for the subject.
    """
    if "{subject}" not in template:
        raise NodeError("template: has no {subject}: add it where the subject goes, as in '{trigger} {subject}'")
    subject, trigger = subject.strip(), trigger.strip()
    if trigger and "{trigger}" in template and subject.startswith(f"{trigger} "):
        subject = subject[len(trigger) :].lstrip()
    values = {"{trigger}": trigger, "{subject}": subject}
    # in one go: a subject may hold the word {trigger} itself
    text = re.sub(r"\{(?:trigger|subject)\}", lambda match: values[match.group()], template)
    text = re.sub(r"[ \t]+", " ", text).strip()
    return text if trigger and subject else text.strip(" ,")


def joined(words: Iterable[str]) -> str:
    """The trigger words of several LoRAs as one text: each once, in their order."""
    return ", ".join(dict.fromkeys(filter(None, words)))
