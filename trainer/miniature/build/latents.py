"""Stage `latents`: folds Stable Diffusion's latent scale into the trained autoencoder, and encodes the icons' pictures with it.

Every host multiplies latents by 0.18215 and expects unit variance; and because SD's noise schedule ends before the signal is
gone (sqrt(alpha_bar) = 0.068), a ground far from latent 0 would come out grey. A 4 x 4 matrix in `quant_conv`, and its inverse
in `post_quant_conv`, maps white to 0 and whitens the four channels; decode(encode(x)) is unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from trainer.miniature.build.autoencoder import SIGMA
from trainer.miniature.build.icons import Icons
from trainer.miniature.build.pictures import GROUNDS, SIDE, Spread, compose
from trainer.miniature.narrow import narrow_vae

SCALE, SEED = 0.18215, 32


def trained_vae(work: Path) -> AutoencoderKL:
    """The averaged weights of stage `vae`."""
    state = torch.load(work / "vae.pt", weights_only=True)
    vae = narrow_vae().eval()
    vae.load_state_dict(state["average"])
    return vae


def views(icons: Icons, spread: Spread, count: int) -> Iterator[tuple[np.ndarray, str, str, str]]:
    """(picture, word, set, ground) for `count` views of each icon; the ground is "" if it is the set's own."""
    for row in range(len(icons.words)):
        for view in range(count):
            rng = np.random.default_rng([SEED, row, view])
            ground = str(rng.choice(list(GROUNDS))) if rng.random() < spread.coloured else ""
            word, icon_set = str(icons.words[row]), str(icons.sets[row])
            yield compose(icons.rgba[row], icon_set, ground, spread, rng), word, icon_set, ground


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, side: int = SIDE) -> torch.Tensor:
    """uint8 (N, 128, 128, 3), resized to `side` -> posterior mean, float32 (N, 4, side/8, side/8), unscaled."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    x = F.avg_pool2d(x, SIDE // side)
    return torch.cat([vae.encode(part).latent_dist.mean for part in x.split(16)])


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, latents: torch.Tensor) -> AutoencoderKL:
    """Fold the shift and the 4 x 4 matrix found on `latents` (N, 4, H, W) into `vae`, in place."""
    white = encode(vae, np.full((1, SIDE, SIDE, 3), 255, np.uint8))[0, :, 8, 8]
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 4).double() - white.double()
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    matrix = vectors @ torch.diag(values.rsqrt()) @ vectors.T  # symmetric, so that channels change as little as possible
    matrix = matrix / ((flat @ matrix.T).std() * SCALE)
    size = float(matrix.square().sum().div(4).sqrt())
    quant, post = vae.quant_conv, vae.post_quant_conv
    rows, bias = quant.weight[:4, :, 0, 0].double(), quant.bias[:4].double()
    quant.weight.zero_()
    quant.weight[:4, :, 0, 0] = (matrix @ rows).float()
    quant.bias[:4] = (matrix @ (bias - white.double())).float()
    quant.bias[4:] = 2 * math.log(SIGMA * size)  # the posterior's log variance
    columns = post.weight[:, :, 0, 0].double()
    post.bias += (columns @ white.double()).float()
    post.weight[:, :, 0, 0] = (columns @ torch.linalg.inv(matrix)).float()
    return vae


def fold_and_check(work: Path, icons: Icons, spread: Spread) -> AutoencoderKL:
    """The folded autoencoder, saved in `work`/vae; raises ValueError if it no longer decodes what it encodes."""
    if (work / "vae").exists():
        return AutoencoderKL.from_pretrained(work / "vae")
    vae = trained_vae(work)
    pictures = np.stack([picture for picture, *_ in views(icons, spread, 1)])
    latents = encode(vae, pictures)
    with torch.no_grad():
        before = vae.decode(latents[:8]).sample
        fold_scale(vae, latents)
        folded = encode(vae, pictures) * SCALE
        after = vae.decode(folded[:8] / SCALE).sample
    apart = float((before - after).abs().max())
    print(f"vae: latents' size {folded.std():.3f}, mean {folded.mean((0, 2, 3)).tolist()}, folding changes {apart:.1e}")
    if apart > 1e-3 or not 0.95 < float(folded.std()) < 1.05:
        raise ValueError("folding the latents' scale changed the autoencoder")
    vae.save_pretrained(work / "vae")
    return vae


def words_of(data: dict) -> list[str]:
    """The words in the loaded latents.pt, which the networks learn."""
    return sorted({row[0] for row in data["rows"]})


def make_latents(work: Path, icons: Icons, spread: Spread, count: int, side: int = SIDE) -> None:
    """Write `work`/latents.pt: float16 latents times 0.18215 of pictures of `side`, with their words, sets and grounds.

    Does nothing if the file exists and was made with the same settings.
    """
    settings = repr((sorted(set(icons.words.tolist())), spread, count, side))
    if (work / "latents.pt").exists() and torch.load(work / "latents.pt", weights_only=True)["settings"] == settings:
        return
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    parts, rows, pictures = [], [], []
    for picture, *row in views(icons, spread, count):
        pictures.append(picture)
        rows.append(row)
        if len(pictures) == 64 or len(rows) == len(icons.words) * count:
            parts.append((encode(vae, np.stack(pictures), side) * SCALE).half())
            pictures = []
    torch.save({"latents": torch.cat(parts), "rows": rows, "settings": settings}, work / "latents.pt")
    print(f"latents: {len(rows)} pictures of {side} pixels, of {len(set(icons.words))} words")
