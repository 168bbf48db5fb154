"""Stage `ship`: the averaged networks, packed into `narrow.safetensors` with their words and the icons' licences.

Prints the loss on fixed pictures and noise before and after packing, which should differ by less than 1 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from trainer.miniature.build.denoiser import Noise, Training, batch_of
from trainer.miniature.build.pair import Pair
from trainer.miniature.build.prompts import Captions
from trainer.miniature.packed import pack, read_narrow, write_narrow

METADATA = {
    "license": "MIT; the pictures it learned from: MIT, Apache-2.0, CC BY 4.0",
    "attribution": "Fluent Emoji, Fluent Emoji Flat and Fluent Emoji High Contrast by Microsoft Corporation (MIT); Noto Emoji "
                   "by Google Inc (Apache-2.0); Twemoji by Twitter, Inc and other contributors (CC BY 4.0); words of The "
                   "Quick, Draw! Dataset by Google, Inc. (CC BY 4.0)",
}


def ship(work: Path, captions: Captions, known: Sequence[int]) -> Path:
    """Write `work`/narrow.safetensors from unet.pt, latents.pt (its words) and vae/, and gzipped for the package.

    Returns the former's path.
    """
    state, data = (torch.load(work / name, weights_only=True) for name in ("unet.pt", "latents.pt"))
    words = data["words"]
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
    training = Training(list(known))
    training.restore(state)
    pair = training.averaged()
    before = loss_of(pair, data, captions)
    narrow = read_narrow(path)
    pair.unet.load_state_dict(dict(narrow.unet))
    own = pair.text.state_dict()
    pair.text.load_state_dict({name: narrow.text_encoder.get(name.removeprefix("text_model."), own[name].half().float())
                               for name in own})
    after = loss_of(pair, data, captions)
    print(f"loss {before:.5f} before packing, {after:.5f} after: {after / before - 1:+.2%}")
    return path


@torch.no_grad()
def loss_of(pair: Pair, data: dict, captions: Captions, batches: int = 24, size: int = 16) -> float:
    """The plain loss on fixed pictures, captions and noise."""
    noise, losses, size = Noise(), [], min(size, *(len(pool["rows"]) for pool in data["pools"]))
    for step in range(batches):
        x_0, tokens, generator = batch_of(data, captions, 10**9 + step, size)
        x_t, eps, t = noise.draw(x_0, generator)
        losses.append(float(noise.loss(pair(x_t, t, tokens), eps, t)[1]))
    return sum(losses) / batches
