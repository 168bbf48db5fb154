"""Stage `ship`: the averaged networks, packed into `narrow.safetensors` with their words and the icons' licences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from trainer.miniature.packed import pack, write_narrow

METADATA = {
    "license": "MIT; the pictures it learned from: MIT, Apache-2.0, CC BY 4.0",
    "attribution": "Fluent Emoji, Fluent Emoji Flat and Fluent Emoji High Contrast by Microsoft Corporation (MIT); Noto Emoji "
                   "by Google Inc (Apache-2.0); Twemoji by Twitter, Inc and other contributors (CC BY 4.0); words of The "
                   "Quick, Draw! Dataset by Google, Inc. (CC BY 4.0)",
}


def ship(work: Path, known: Sequence[int]) -> Path:
    """Write `work`/narrow.safetensors from unet.pt, latents.pt (its words) and vae/, and gzipped for the package.

    Returns the former's path.
    """
    state = torch.load(work / "unet.pt", weights_only=True)
    words = sorted({row[0] for row in torch.load(work / "latents.pt", weights_only=True)["rows"]})
    parts: dict[str, dict[str, torch.Tensor]] = {"unet": {}, "text_encoder": {}}
    for name, tensor in state["average"].items():
        part, _, inner = name.partition(".")
        parts["unet" if part == "unet" else "text_encoder"][inner.removeprefix("text_model.")] = tensor
    rows = parts["text_encoder"].pop("embeddings.token_embedding.rows")
    parts["vae"] = dict(AutoencoderKL.from_pretrained(work / "vae").state_dict())
    path = work / "narrow.safetensors"
    small = path.with_name(path.name + ".gz")
    for target in (path, small):
        write_narrow(target, pack(parts, rows, known), words, METADATA | {"samples": str(state["samples"])})
    print(f"{path}: {path.stat().st_size:,} bytes, {small.stat().st_size:,} gzipped; "
          f"{len(words)} words, after {state['samples']:,} samples")
    return path
