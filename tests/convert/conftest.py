"""LoRA files of every form, spelled independently of the code under test, and written by the safetensors library."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convert.sd15 import Module, modules

Spell = Callable[[Module, str], str]


def _kohya(prefix: str, name: Callable[[Module], str], down: str = "lora_down", up: str = "lora_up") -> Spell:
    def spell(module: Module, part: str) -> str:
        te = module.scope == "text_encoder"
        middle = {"down": f".{down}.weight", "up": f".{up}.weight"}.get(part, f".{part}")
        return (prefix if te else "lora_unet_") + name(module).replace(".", "_") + middle

    return spell


def _dotted(unet: str, te: str, down: str, up: str, *, short: bool = False) -> Spell:
    def spell(module: Module, part: str) -> str:
        name = module.name.removeprefix("text_model.") if short else module.name
        part = {"down": down, "up": up}.get(part, f".{part}")
        return (te if module.scope == "text_encoder" else unet) + name + part

    return spell


def _diffusers(module: Module, part: str) -> str:
    if module.scope == "text_encoder":
        return f"text_encoder.{module.name}.lora_linear_layer.{part}.weight"
    return f"unet.{module.name}.lora.{part}.weight"


def _processors(prefix: str) -> Spell:
    def spell(module: Module, part: str) -> str:
        if module.scope == "text_encoder":
            name = re.sub(r"(q|k|v|out)_proj$", r"to_\1_lora", module.name)
            return f"text_encoder.{name}.{part}.weight"
        name = module.name.replace("attn1.", "attn1.processor.").replace("attn2.", "attn2.processor.")
        return f"{prefix}{name.removesuffix('.0')}_lora.{part}.weight"

    return spell


def _comfyui(module: Module, part: str) -> str:
    prefix = "clip_l.transformer." if module.scope == "text_encoder" else "diffusion_model."
    return f"{prefix}{module.ldm}." + {"down": "lora_down.weight", "up": "lora_up.weight"}.get(part, part)


SPELLINGS: dict[str, Spell] = {
    "kohya": _kohya("lora_te_", lambda m: m.name),
    "kohya te1": _kohya("lora_te1_", lambda m: m.name),
    "kohya without text_model": _kohya("lora_te_", lambda m: m.name.removeprefix("text_model.")),
    "kohya with LDM names": _kohya("lora_te_", lambda m: m.ldm),
    "kohya with lora_A": _kohya("lora_te_", lambda m: m.name, "lora_A", "lora_B"),
    "comfyui": _comfyui,
    "diffusers": _diffusers,
    "diffusers with lora_A": _dotted("unet.", "text_encoder.", ".lora_A.weight", ".lora_B.weight"),
    "diffusers, transformers 5": _dotted("unet.", "text_encoder.", ".lora_A.weight", ".lora_B.weight", short=True),
    "attention processors": _processors("unet."),
    "attention processors, no prefix": _processors(""),
    "peft": _dotted("base_model.model.", "base_model.model.", ".lora_A.weight", ".lora_B.weight"),
    "peft, transformers 5": _dotted(
        "base_model.model.", "base_model.model.", ".lora_A.weight", ".lora_B.weight", short=True
    ),
    "peft in memory": _dotted(
        "base_model.model.", "base_model.model.", ".lora_A.default.weight", ".lora_B.default.weight"
    ),
    "unprefixed": _dotted("", "", ".lora_A.weight", ".lora_B.weight"),
    "unprefixed, diffusers": _dotted("", "", ".lora.down.weight", ".lora.up.weight"),
}
"""Every form that must be read. Those in `ALPHA_FORMS` can store alpha."""

ALPHA_FORMS = [name for name in SPELLINGS if name.startswith(("kohya", "comfyui"))]


def attention(scope: str | None = None) -> list[Module]:
    """The modules of the paper's LoRA (128 of the UNet), and the text encoder's attention."""
    return [m for m in modules().values() if re.search(r"attn\d?\.", m.name) and scope in (None, m.scope)]


def linear_and_conv() -> list[Module]:
    """Every module that can have factors."""
    return [m for m in modules().values() if not m.is_norm]


def factors(
    shape: tuple[int, ...], rank: int, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Random `down` and `up` for a weight of this shape."""
    draw = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=draw) / math.sqrt(rank)
    up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=draw)
    return {"down": down.to(dtype), "up": up.to(dtype)}


class Maker:
    """Writes LoRA files in any form."""

    spellings = SPELLINGS
    alpha_forms = ALPHA_FORMS
    attention = staticmethod(attention)
    linear_and_conv = staticmethod(linear_and_conv)
    factors = staticmethod(factors)

    def tensors(
        self, form: str, chosen: Iterable[Module], rank: int = 4, alpha: float | None = None,
        dtype: torch.dtype = torch.float32, shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        spell, result = SPELLINGS[form], {}
        for seed, module in enumerate(chosen):
            for part, tensor in factors((shapes or {}).get(module.name, module.shape), rank, seed, dtype).items():
                result[spell(module, part)] = tensor
            if alpha is not None:
                result[spell(module, "alpha")] = torch.tensor(float(alpha))
        return result

    def write(
        self, path: Path, form: str, chosen: Iterable[Module], *, metadata: dict[str, str] | None = None, **how
    ) -> Path:
        save_file(self.tensors(form, chosen, **how), path, metadata)
        return path


@pytest.fixture(scope="session")
def maker() -> Maker:
    return Maker()


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These tensors are small: several threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
