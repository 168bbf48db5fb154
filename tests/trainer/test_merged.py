"""A merged LoRA draws the same pictures as an unmerged one, and leaves every weight as it was."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from trainer.lora import adapter
from trainer.lora.merged import merged
from trainer.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def adapted(recipe: Recipe, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=2, attention_head_dim=2,
                                cross_attention_dim=12, layers_per_block=1,
                                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
    unet = unet.eval().requires_grad_(False).to(dtype)
    for _, factor in adapter.attach(unet, recipe):
        factor.data.add_(torch.randn(factor.shape) * 0.2)
    return unet


@torch.no_grad()
def drawn(unet: UNet2DConditionModel) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    x, e = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 7, 12, generator=g)
    return unet(x.to(unet.dtype), 500, e.to(unet.dtype)).sample.float()


@pytest.mark.parametrize("targets", ["attention", "locon"])
@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_a_merged_lora_draws_the_same_and_restores_the_weights(scale: float, targets: str) -> None:
    unet = adapted(Recipe(rank=2, alpha=3.0, targets=targets))
    weights = {name: weight.clone() for name, weight in unet.state_dict().items()}
    adapter.set_scale(unet, scale)
    beside = drawn(unet)
    passes: list[int] = []
    hooks = [layer.register_forward_hook(lambda *_: passes.append(1))
             for name, layer in unet.named_modules() if name.endswith(".lora_B.default")]
    with merged(unet, scale):
        torch.testing.assert_close(drawn(unet), beside, rtol=1e-4, atol=1e-5)
    assert hooks and not passes  # no product of a factor was computed
    assert torch.equal(drawn(unet), beside) and passes
    assert all(torch.equal(weight, weights[name]) for name, weight in unet.state_dict().items())


def test_an_error_while_it_is_merged_restores_the_weights() -> None:
    unet = adapted(Recipe(rank=2))
    adapter.set_scale(unet, 0.7)
    beside = drawn(unet)
    with pytest.raises(KeyboardInterrupt), merged(unet, 0.7):
        raise KeyboardInterrupt
    assert torch.equal(drawn(unet), beside)


@pytest.mark.parametrize(("recipe", "dtype"), [(Recipe(rank=2, dora=True), torch.float32), (Recipe(rank=2), torch.bfloat16)])
def test_a_dora_and_half_precision_are_not_merged(recipe: Recipe, dtype: torch.dtype) -> None:
    unet = adapted(recipe, dtype)
    adapter.set_scale(unet, 0.7)
    beside = drawn(unet)
    with merged(unet, 0.7):
        assert torch.equal(drawn(unet), beside)
