"""The full-width comparison's own arithmetic, on networks of known weights."""

from __future__ import annotations

import torch

from trainer.miniature.build.full_width import largest_activations
from trainer.miniature.narrow import narrow_text_encoder, narrow_unet, narrow_vae


def test_the_largest_activation_of_each_network_is_found() -> None:
    torch.manual_seed(0)
    models = {"unet": narrow_unet().eval(), "text_encoder": narrow_text_encoder().eval(), "vae": narrow_vae().eval()}
    before = largest_activations(models, side=64)
    assert all(0 < largest < 1e4 for largest in before.values())
    models["unet"].mid_block.resnets[0].conv1.bias.data[3] = 12_345.0
    after = largest_activations(models, side=64)
    assert after["unet"] > 12_000 and after["vae"] == before["vae"]
