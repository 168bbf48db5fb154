"""What the shipped miniature draws without a LoRA, as a judge sees it, for instance one that never saw a set of icons."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainer.base.load import load_base
from trainer.miniature.build.judge import report
from trainer.miniature.build.pictures import WORDS, in_style
from trainer.miniature.judge import SmallClip
from trainer.recipe import MINIATURE, Recipe
from trainer.sample.sampler import Sampler
from trainer.training import devices

STEPS, AT_ONCE, SEED = 20, 12, 37


def check_drawn(model: SmallClip, styles: Sequence[str], words: Sequence[str] = WORDS) -> None:
    """Print the judge's top-1 and top-5 accuracy on a picture of each word in each of the captions' styles, such as "drawing".

    The judge is asked with bare words, because it may not know the style.
    """
    sampler = Sampler(load_base(Recipe(base=MINIATURE), dtype=torch.float32, say=print), devices.choose("cpu"), steps=STEPS)
    seeds = [SEED + k for k in range(len(words))]
    for style in styles:
        prompts = [in_style(style, word) for word in words]
        drawn = [picture for at in range(0, len(words), AT_ONCE)
                 for picture in sampler(prompts[at : at + AT_ONCE], seeds[at : at + AT_ONCE], scale=0)]
        report(f"the miniature's {style}s", model, drawn, words, "", words)
