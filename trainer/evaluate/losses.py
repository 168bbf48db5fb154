"""The denoising loss on held-out drawings at every scale: how well the adapter predicts the noise on unseen drawings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from trainer.base.load import Base
from trainer.data.records import Example
from trainer.encoding.encode import encode_dataset
from trainer.encoding.encoded_set import EncodedSet
from trainer.lora import adapter
from trainer.lora.merged import merged
from trainer.recipe import Recipe
from trainer.training.devices import Compute
from trainer.training.draws import Draw, draw_held_out
from trainer.training.objective import choose_objective

DRAWINGS = 40  # most drawings of seen, and of unseen categories


def round_robin(references: dict[str, list[Example]]) -> list[Example]:
    """At most `DRAWINGS` of the references, spread over the categories as evenly as possible."""
    longest = max(map(len, references.values()))
    rounds = [examples[k] for k in range(longest) for examples in references.values() if k < len(examples)]
    return rounds[:DRAWINGS]


class HeldOutLoss:
    """Mean squared error of the predicted noise, unweighted, at the base's own noise levels.

    Noise and timesteps are the same at every scale and for every adapter, so that losses can be compared.
    """

    def __init__(self, base: Base, compute: Compute, *, side: int, seed: int, noises: int, batch: int) -> None:
        self.base, self.compute, self.noises, self.batch = base, compute, noises, batch
        # an adapted text encoder computes embeddings at each scale, and the cache keeps only the base's own
        adapted = adapter.has_adapter(base.text_encoder)
        self.recipe = Recipe(base=base.name, seed=seed, flip=False, resolution=side, text_encoder=adapted)
        self.objective = choose_objective(self.recipe, base.scheduler, compute.device,
                                          base.text_encoder.to(compute.device) if adapted else None)

    @torch.no_grad()
    def __call__(self, examples: Sequence[Example], scales: Sequence[float], *, cache: Path,
                 say: Callable[[str], None]) -> np.ndarray:  # fmt: skip
        """float64 (len(examples), scales): each drawing's mean over `noises` noise levels."""
        encoded = encode_dataset(examples, self.base, recipe=self.recipe, device=self.compute.device, cache=cache, say=say)
        count = len(examples)
        channels, height, width = encoded.mean.shape[2:]
        draw = draw_held_out(self.recipe, pictures=count * self.noises, latent=(channels, height, width),
                             schedule=self.objective.schedule)  # fmt: skip
        draw = replace(draw, picture=draw.picture % count)
        self.base.unet.to(self.compute.device)
        losses = np.stack([self._at(scale, draw, encoded) for scale in scales], axis=-1)
        return losses.reshape(self.noises, count, len(scales)).mean(axis=0)

    def _at(self, scale: float, draw: Draw, encoded: EncodedSet) -> np.ndarray:
        adapter.set_text_scale(self.base.text_encoder, scale)
        parts = []
        with merged(self.base.unet, scale):
            for start in range(0, len(draw), self.batch):
                some = draw.take(slice(start, start + self.batch)).to(self.compute.device)
                with self.compute.context():
                    parts.append(self.objective.loss(self.base.unet, encoded, some).cpu())
        return torch.cat(parts).double().numpy()
