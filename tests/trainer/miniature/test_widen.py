"""Widening by 2: function, loss and gradients are the narrow network's; LoRAs of every kind; A -> B -> A is the identity."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from convert import sd15
from trainer.miniature import widen
from trainer.miniature.widen import TEXT, UNET, VAE, Factors

TWO = Factors(unet=2, text_heads=1, text_channels=2, vae=2, heads=2, vae_groups=4)


def unet(k: int, context: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(sample_size=8, block_out_channels=(16 * k, 32 * k, 32 * k, 32 * k), layers_per_block=1,
                                norm_num_groups=8, attention_head_dim=2, cross_attention_dim=context)


def text(width: int, layers: int) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(vocab_size=50, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                                        num_attention_heads=2, max_position_embeddings=16, hidden_act="quick_gelu",
                                        bos_token_id=48, eos_token_id=49, pad_token_id=49))


def vae(k: int) -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8 * k, 16 * k), layers_per_block=1, norm_num_groups=4 * k, latent_channels=4,
                         down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16)


def untame(model: nn.Module) -> nn.Module:
    """Norms and biases do not stay at their start of 1 and 0, where a mistake in them would not show."""
    torch.manual_seed(1)
    for p in model.parameters():
        if p.ndim == 1:
            p.data.add_(0.2 * torch.randn_like(p))
    return model.eval()


@pytest.fixture(scope="module")
def unets() -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
    torch.manual_seed(0)
    small, wide = untame(unet(1, 12)), unet(2, 24)
    wide.load_state_dict(widen.widen(UNET, small.state_dict(), TWO))
    return small, wide.eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    return torch.randn(2, 4, 8, 8), torch.tensor([7, 830]), torch.randn(2, 5, 12)


def test_the_wide_unet_computes_the_same_function_loss_and_gradients(unets) -> None:
    small, wide = unets
    x, t, states = inputs()
    target = torch.randn_like(x)
    losses = []
    for model, context in ((small, states), (wide, states.repeat_interleave(2, 2))):
        model.zero_grad()
        y = model(x, t, context).sample
        loss = (y - target).square().mean()
        loss.backward()
        losses.append((y.detach(), loss.detach()))
    assert torch.allclose(losses[0][0], losses[1][0], atol=2e-5)
    assert torch.allclose(losses[0][1], losses[1][1], atol=1e-6)
    theirs = dict(wide.named_parameters())
    for name, p in small.named_parameters():
        back = widen.rule(UNET, name.rpartition(".")[0], TWO).gradient(theirs[name].grad)
        assert torch.allclose(p.grad, back, atol=1e-5 + 1e-3 * float(p.grad.abs().max())), name


def test_the_wide_text_encoder_with_silent_layers_computes_the_same_function() -> None:
    torch.manual_seed(3)
    small, wide = untame(text(8, 1)), text(16, 3).eval()
    state = widen.widen(TEXT, small.state_dict(), TWO)
    prefix = "text_model." if any(name.startswith("text_model.") for name in state) else ""
    for layer in (1, 2):
        state |= {f"{prefix}encoder.layers.{layer}.{name}": tensor for name, tensor in widen.silent_layer(16, 64).items()}
    wide.load_state_dict(state)
    tokens = torch.tensor([[48, 3, 4, 5, *[49] * 12]])
    with torch.no_grad():
        a, b = small(tokens).last_hidden_state, wide(tokens).last_hidden_state
    assert torch.allclose(a.repeat_interleave(2, 2), b, atol=1e-5)


def test_the_wide_autoencoder_computes_the_same_function() -> None:
    torch.manual_seed(4)
    small, wide = untame(vae(1)), vae(2).eval()
    wide.load_state_dict(widen.widen(VAE, small.state_dict(), TWO))
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        z = small.encode(x).latent_dist
        assert torch.allclose(z.mean, wide.encode(x).latent_dist.mean, atol=1e-5)
        assert torch.allclose(z.logvar, wide.encode(x).latent_dist.logvar, atol=1e-5)
        assert torch.allclose(small.decode(z.mean).sample, wide.decode(z.mean).sample, atol=1e-5)


@pytest.mark.parametrize("by", [TWO, widen.SD15])
def test_narrowing_undoes_widening_in_every_module_of_sd15(by: Factors) -> None:
    """282 modules of the UNet and 72 of the text encoder; 8 channels stand for each layer's own number."""
    found = {sd15.UNET: 0, sd15.TEXT_ENCODER: 0}
    generator = torch.Generator().manual_seed(5)
    for module in sd15.modules().values():
        if module.is_norm:
            continue
        found[module.scope] += 1
        rule = widen.rule(UNET if module.scope == sd15.UNET else TEXT, module.name, by)
        assert module.shape[0] % rule.rows.factor == 0 and module.shape[1] % rule.columns.factor == 0, module.name
        weight = torch.randn(8, 8, *module.shape[2:], generator=generator)
        up, down = torch.randn(8, 2, generator=generator), torch.randn(2, 8, *module.shape[2:], generator=generator)
        magnitude = weight.flatten(1).norm(dim=1)
        wide = rule.weight(weight)
        assert wide.shape[:2] == (8 * rule.rows.factor, 8 * rule.columns.factor), module.name
        assert torch.allclose(rule.narrow_weight(wide), weight, atol=1e-6), module.name
        assert torch.allclose(rule.narrow_up(rule.up(up)), up, atol=1e-6), module.name
        assert torch.allclose(rule.narrow_down(rule.down(down)), down, atol=1e-6), module.name
        assert torch.allclose(rule.narrow_magnitude(rule.magnitude(magnitude)), magnitude, atol=1e-5), module.name
        # a LoRA's change is widened as a weight is, and DoRA's magnitude is the norm of the widened rows
        change = torch.einsum("or,ri...->oi...", up, down)
        assert torch.allclose(torch.einsum("or,ri...->oi...", rule.up(up), rule.down(down)), rule.weight(change), atol=1e-5)
        assert torch.allclose(rule.magnitude(magnitude), wide.flatten(1).norm(dim=1), rtol=1e-4), module.name
    assert found == {sd15.UNET: 282, sd15.TEXT_ENCODER: 72}
