"""Which words of a prompt the embedded miniature was never taught."""

from __future__ import annotations

from trainer.base.load import Base
from trainer.base.sd15 import SCRIBBLE_MINIATURE


def unknown_words(prompt: str, base: Base, trigger: str = "") -> list[str]:
    """The words of `prompt` that the miniature's tokenizer has only in pieces, in order; none for any other base.

    trigger: words that the LoRA was taught.

    Its vocabulary has a token for every word that it was taught; CLIP's has pieces for rare words, which it knows too.
    """
    if base.family != SCRIBBLE_MINIATURE:
        return []
    taught = trigger.lower().split()
    words = dict.fromkeys(prompt.lower().replace(",", " ").replace(".", " ").split())
    return [word for word in words
            if word not in taught and len(base.tokenizer(word, add_special_tokens=False).input_ids) > 1]
