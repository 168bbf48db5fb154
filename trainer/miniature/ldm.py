"""The LDM names of the tensors of diffusers' networks, computed from the structure."""

from __future__ import annotations

import re

from convert import sd15

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.text_model.",
}

_VAE: tuple[tuple[str, str], ...] = (  # diffusers -> LDM, in turn
    (r"^(encoder)\.down_blocks\.(\d)\.resnets\.(\d)", r"\1.down.\2.block.\3"),
    (r"^(encoder)\.down_blocks\.(\d)\.downsamplers\.0\.conv", r"\1.down.\2.downsample.conv"),
    (r"^(\w+)\.mid_block\.resnets\.0", r"\1.mid.block_1"),
    (r"^(\w+)\.mid_block\.resnets\.1", r"\1.mid.block_2"),
    (r"^(\w+)\.mid_block\.attentions\.0", r"\1.mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)
_VAE_UP = re.compile(r"^decoder\.up_blocks\.(\d)\.(resnets\.(\d)|upsamplers\.0\.conv)")


def ldm_name(part: str, name: str) -> str:
    """The LDM name of a parameter of `unet`, `vae` or `text_encoder` (without `text_model.`). Else KeyError."""
    if part == "text_encoder":
        return PREFIXES[part] + name
    if part == "vae":
        return PREFIXES[part] + _vae_name(name)
    module, _, kind = name.rpartition(".")
    return f"{PREFIXES[part]}{sd15.modules()[module].ldm}.{kind}"


def _vae_name(name: str) -> str:
    def up(match: re.Match[str]) -> str:
        level = 3 - int(match[1])  # LDM numbers the decoder's levels from full size down
        return f"decoder.up.{level}." + (f"block.{match[3]}" if match[3] else "upsample.conv")

    name = _VAE_UP.sub(up, name)
    for pattern, replacement in _VAE:
        name = re.sub(pattern, replacement, name)
    return name
