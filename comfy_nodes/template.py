"""The prompt around a subject: "apple" -> "a scribble of apple"."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import NodeError

TEMPLATE = "{trigger} {subject}"
TRIGGER = "a scribble of"
"""The default trigger words: the paper's caption."""


def fill(template: str, subject: str, trigger: str) -> str:
    """`template` with `{trigger}` and `{subject}` filled in, and the spaces and commas around an empty one removed.

    Trigger words that the subject already begins with are not repeated. Other braces are kept. Raises `NodeError` if the
    template does not contain `{subject}`.
    """
    if "{subject}" not in template:
        raise NodeError("template: has no {subject}: add it where the subject goes, as in '{trigger} {subject}'")
    subject, trigger = subject.strip(), trigger.strip()
    if trigger and "{trigger}" in template and subject.startswith(f"{trigger} "):
        subject = subject[len(trigger) :].lstrip()
    values = {"{trigger}": trigger, "{subject}": subject}
    # one substitution for both, because a subject may itself contain {trigger}
    text = re.sub(r"\{(?:trigger|subject)\}", lambda match: values[match.group()], template)
    text = re.sub(r"[ \t]+", " ", text).strip()
    return text if trigger and subject else text.strip(" ,")


def joined(words: Iterable[str]) -> str:
    """The trigger words of several LoRAs as one text, in order and without duplicates."""
    return ", ".join(dict.fromkeys(filter(None, words)))
