"""Every module of Stable Diffusion 1.5 that a LoRA can patch, computed from the structure of the network.

A module has a diffusers (or transformers) name, the name of the same module in an LDM checkpoint, and the shape of its
weight: (out, in) for a linear layer, (out, in, k, k) for a convolution, (channels,) for a norm. Sources of the numbers:
`unet/config.json` and `text_encoder/config.json` of the model, `v1-inference.yaml` of the CompVis code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

UNET, TEXT_ENCODER = "unet", "text_encoder"

WIDTHS = (320, 640, 1280, 1280)
"""Channels of the four resolutions; all but the last have attention."""

CONTEXT = 768
"""Width of the prompt embedding."""

TEXT_LAYERS, TEXT_WIDTH = 12, 768


SPECIAL_INPUTS = {8: "InstructPix2Pix", 9: "Stable Diffusion 1.5's inpainting model"}
"""Input channels of `conv_in` other than the usual 4 -> the model, whose other shapes are Stable Diffusion 1.5's."""


class Module(NamedTuple):
    """One layer with a weight."""

    scope: str
    """`UNET` or `TEXT_ENCODER`"""
    name: str
    """dotted name in diffusers and transformers < 5"""
    ldm: str
    """dotted name in an LDM checkpoint, after `model.diffusion_model.` or `cond_stage_model.transformer.`"""
    shape: tuple[int, ...]
    """shape of its weight"""

    @property
    def is_norm(self) -> bool:
        return len(self.shape) == 1


def fits(module: Module, shape: tuple[int, ...]) -> bool:
    """Whether Stable Diffusion 1.5, or its inpainting or InstructPix2Pix variant, has the module in this shape."""
    if module.name == "conv_in" and len(shape) == 4 and shape[1] in SPECIAL_INPUTS:
        return (shape[0], *shape[2:]) == (module.shape[0], *module.shape[2:])
    return shape == module.shape


Shape = tuple["str | int", ...]
"""The shape of a weight; letters stand for widths that depend on the block"""

Row = tuple[str, str, Shape]
"""diffusers name, LDM name, shape"""

_RESNET: tuple[Row, ...] = (
    ("norm1",         "in_layers.0",     ("i",)),
    ("conv1",         "in_layers.2",     ("o", "i", 3, 3)),
    ("time_emb_proj", "emb_layers.1",    ("o", "time")),
    ("norm2",         "out_layers.0",    ("o",)),
    ("conv2",         "out_layers.3",    ("o", "o", 3, 3)),
    ("conv_shortcut", "skip_connection", ("o", "i", 1, 1)),
)  # fmt: skip

_TRANSFORMER_LAYERS: tuple[tuple[str, Shape], ...] = (
    ("norm",                                ("c",)),
    ("proj_in",                             ("c", "c", 1, 1)),
    ("transformer_blocks.0.norm1",          ("c",)),
    ("transformer_blocks.0.attn1.to_q",     ("c", "c")),
    ("transformer_blocks.0.attn1.to_k",     ("c", "c")),
    ("transformer_blocks.0.attn1.to_v",     ("c", "c")),
    ("transformer_blocks.0.attn1.to_out.0", ("c", "c")),
    ("transformer_blocks.0.norm2",          ("c",)),
    ("transformer_blocks.0.attn2.to_q",     ("c", "c")),
    ("transformer_blocks.0.attn2.to_k",     ("c", "context")),
    ("transformer_blocks.0.attn2.to_v",     ("c", "context")),
    ("transformer_blocks.0.attn2.to_out.0", ("c", "c")),
    ("transformer_blocks.0.norm3",          ("c",)),
    ("transformer_blocks.0.ff.net.0.proj",  ("8c", "c")),
    ("transformer_blocks.0.ff.net.2",       ("c", "4c")),
    ("proj_out",                            ("c", "c", 1, 1)),
)  # fmt: skip

_TEXT_LAYERS: tuple[tuple[str, Shape], ...] = (
    ("self_attn.q_proj",   ("c", "c")),
    ("self_attn.k_proj",   ("c", "c")),
    ("self_attn.v_proj",   ("c", "c")),
    ("self_attn.out_proj", ("c", "c")),
    ("layer_norm1",        ("c",)),
    ("mlp.fc1",            ("4c", "c")),
    ("mlp.fc2",            ("c", "4c")),
    ("layer_norm2",        ("c",)),
)  # fmt: skip

# inside these, the names in LDM and diffusers are equal
_TRANSFORMER = tuple((name, name, shape) for name, shape in _TRANSFORMER_LAYERS)
_TEXT_LAYER = tuple((name, name, shape) for name, shape in _TEXT_LAYERS)


@cache
def modules() -> dict[str, Module]:
    """Every module by its diffusers name: the UNet's in the order of its forward pass, then the text encoder's."""
    return {module.name: module for module in (*unet(), *_text_encoder())}


def patchable(scope: str) -> int:
    """The number of modules of a network that a LoRA can patch: all but the norms."""
    return sum(module.scope == scope and not module.is_norm for module in modules().values())


def _expand(rows: Sequence[Row], scope: str, name: str, ldm: str, widths: dict[str, int]) -> Iterator[Module]:
    for row_name, row_ldm, shape in rows:
        numbers = tuple(widths[n] if isinstance(n, str) else n for n in shape)
        yield Module(scope, f"{name}.{row_name}", f"{ldm}.{row_ldm}", numbers)


def _resnet(name: str, ldm: str, i: int, o: int, time: int) -> Iterator[Module]:
    rows = _RESNET if i != o else _RESNET[:-1]  # the shortcut has a convolution only if the width changes
    return _expand(rows, UNET, name, ldm, {"i": i, "o": o, "time": time})


def _transformer(name: str, ldm: str, c: int, context: int) -> Iterator[Module]:
    return _expand(_TRANSFORMER, UNET, name, ldm, {"c": c, "4c": 4 * c, "8c": 8 * c, "context": context})


def _conv(name: str, ldm: str, o: int, i: int) -> Module:
    return Module(UNET, name, ldm, (o, i, 3, 3))


def unet(widths: Sequence[int] = WIDTHS, context: int = CONTEXT) -> Iterator[Module]:
    """The UNet's modules in the order of its forward pass, also for other widths than SD1.5's."""
    first, last, deep = widths[0], len(widths) - 1, widths[-1]
    time = 4 * first
    yield Module(UNET, "time_embedding.linear_1", "time_embed.0", (time, first))
    yield Module(UNET, "time_embedding.linear_2", "time_embed.2", (time, time))
    yield _conv("conv_in", "input_blocks.0.0", first, 4)
    width, skips = first, [first]
    for block, c in enumerate(widths):
        for layer in range(2):
            name, ldm = f"down_blocks.{block}", f"input_blocks.{3 * block + layer + 1}"
            yield from _resnet(f"{name}.resnets.{layer}", f"{ldm}.0", width, c, time)
            if block != last:
                yield from _transformer(f"{name}.attentions.{layer}", f"{ldm}.1", c, context)
            width = c
            skips.append(c)
        if block != last:
            yield _conv(f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{3 * block + 3}.0.op", c, c)
            skips.append(c)
    yield from _resnet("mid_block.resnets.0", "middle_block.0", deep, deep, time)
    yield from _transformer("mid_block.attentions.0", "middle_block.1", deep, context)
    yield from _resnet("mid_block.resnets.1", "middle_block.2", deep, deep, time)
    for block, c in enumerate(reversed(widths)):
        for layer in range(3):
            name, ldm = f"up_blocks.{block}", f"output_blocks.{3 * block + layer}"
            yield from _resnet(f"{name}.resnets.{layer}", f"{ldm}.0", width + skips.pop(), c, time)
            if block != 0:
                yield from _transformer(f"{name}.attentions.{layer}", f"{ldm}.1", c, context)
            width = c
        if block != last:
            place = 2 if block else 1  # after the resnet and, if there is one, the attention
            yield _conv(f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{3 * block + 2}.{place}.conv", c, c)
    yield Module(UNET, "conv_norm_out", "out.0", (first,))
    yield _conv("conv_out", "out.2", 4, first)


def _text_encoder() -> Iterator[Module]:
    for layer in range(TEXT_LAYERS):
        name = f"text_model.encoder.layers.{layer}"
        yield from _expand(_TEXT_LAYER, TEXT_ENCODER, name, name, {"c": TEXT_WIDTH, "4c": 4 * TEXT_WIDTH})
    yield Module(TEXT_ENCODER, "text_model.final_layer_norm", "text_model.final_layer_norm", (TEXT_WIDTH,))
