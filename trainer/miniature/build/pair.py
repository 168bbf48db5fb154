"""The UNet and the text encoder that are trained together."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from trainer.miniature.build.prompts import FewTokens
from trainer.miniature.narrow import narrow_text_encoder, narrow_unet


class Pair(nn.Module):
    """The UNet and the text encoder, initialised like Stable Diffusion's: the last layer of a residual branch is zero."""

    def __init__(self, known: list[int]) -> None:
        super().__init__()
        self.unet: UNet2DConditionModel = narrow_unet()
        self.text: CLIPTextModel = narrow_text_encoder()
        inner: Any = getattr(self.text, "text_model", self.text)  # transformers 5.6 dropped this level
        inner.embeddings.token_embedding = FewTokens(known)
        for name, module in self.unet.named_modules():
            if name.split(".")[-1] in ("conv2", "proj_out", "conv_out"):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The predicted noise, (B, 4, 16, 16), of `x_t` at timesteps `t` (B,) under `tokens` (B, 77)."""
        return self.unet(x_t, t, self.text(tokens).last_hidden_state).sample
