"""Compare the full-size checkpoint with the narrow networks: `python -m trainer.miniature.build.full_width [--networks FILE]`.

Writes 2.1 GB into a temporary folder, reads it as the trainer reads any SD1.5, and prints the largest differences in the text
encoder's states, the latents, the decoded picture and the predicted noise. The tests do the same with a small network. Also
prints the largest activation at 512 x 512, which must stay far below float16's 65,504, the type that hosts compute in.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from trainer.base import single_file
from trainer.base.tokenizers import clip_tokenizer
from trainer.miniature.checkpoint import write_checkpoint
from trainer.miniature.packed import NETWORKS, read_narrow

COPIES = 12
"""Copies of each channel of the prompt embedding."""

PROMPT = "a photo of apple"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=Path, default=NETWORKS, help="default: those that ship")
    narrow = read_narrow(parser.parse_args().networks)
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / "miniature.safetensors", time.monotonic()
        write_checkpoint(path, narrow)
        print(f"{path.stat().st_size:,} bytes in {time.monotonic() - start:.1f} s")
        wide = single_file.load(single_file.inspect(path), torch.float32)
    compare(narrow.models(), wide)
    for part, largest in largest_activations(narrow.models()).items():
        print(f"{part}: largest activation {largest:.0f}")


@torch.no_grad()
def compare(narrow: dict[str, Any], wide: dict[str, Any]) -> None:
    """Print the largest difference of each network's output beside the output's largest number."""
    tokenizer = clip_tokenizer("", max_positions=77, vocabulary=49408)
    tokens = tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
    states = [models["text_encoder"](tokens).last_hidden_state for models in (narrow, wide)]
    _show("text encoder", states[0].repeat_interleave(COPIES, 2), states[1])
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 128, 128, generator=generator) * 2 - 1
    latents = [models["vae"].encode(x).latent_dist.mean for models in (narrow, wide)]
    _show("latents", *latents)
    _show("picture", *(models["vae"].decode(latents[0]).sample for models in (narrow, wide)))
    x_t = torch.randn(1, 4, 16, 16, generator=generator)
    for t in (50, 500, 950):
        noise = [models["unet"](x_t, torch.tensor([t]), context).sample for models, context in zip((narrow, wide), states)]
        _show(f"noise at t = {t}", *noise)


@torch.no_grad()
def largest_activations(narrow: dict[str, Any], side: int = 512) -> dict[str, float]:
    """The largest absolute output of any module of each network; widening does not change it."""
    found = dict.fromkeys(("vae", "text_encoder", "unet"), 0.0)

    def watch(part: str) -> None:
        def seen(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                found[part] = max(found[part], float(output.abs().max()))

        for module in narrow[part].modules():
            module.register_forward_hook(seen)

    for part in found:
        watch(part)
    generator = torch.Generator().manual_seed(0)
    tokens = clip_tokenizer("", max_positions=77, vocabulary=49408)(PROMPT, padding="max_length", return_tensors="pt").input_ids
    states = narrow["text_encoder"](tokens).last_hidden_state
    x_t = torch.randn(1, 4, side // 8, side // 8, generator=generator)
    for t in (1, 500, 999):
        narrow["unet"](x_t, torch.tensor([t]), states)
    narrow["vae"].decode(x_t / 0.18215)
    narrow["vae"].encode(torch.rand(1, 3, side, side, generator=generator) * 2 - 1)
    return found


def _show(what: str, one: torch.Tensor, other: torch.Tensor) -> None:
    print(f"{what}: largest difference {float((one - other).abs().max()):.1e} of {float(one.abs().max()):.2f}", flush=True)


if __name__ == "__main__":
    main()
