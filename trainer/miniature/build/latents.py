"""Stage `latents`: folds Stable Diffusion's latent scale into the trained autoencoder, and encodes the icons' pictures with it.

Every host multiplies latents by 0.18215 and expects unit variance; and because SD's noise schedule ends before the signal is
gone (sqrt(alpha_bar) = 0.068), a ground far from latent 0 would come out grey. A 4 x 4 matrix in `quant_conv`, and its inverse
in `post_quant_conv`, maps white to 0 and whitens the four channels; decode(encode(x)) is unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from trainer.miniature.build.autoencoder import SIGMA
from trainer.miniature.build.icons import Icons
from trainer.miniature.build.pictures import GROUNDS, SCENES, SIDE, Spread, compose, things
from trainer.miniature.narrow import narrow_vae

SCALE, SEED = 0.18215, 32


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Pictures of one size. share: part of the steps that take their batch from it; views: pictures of each icon."""

    side: int
    share: float
    views: int
    spread: Spread


MIXED = (Pool(side=128, share=0.80, views=64, spread=SCENES), Pool(side=192, share=0.09, views=12, spread=SCENES),
         Pool(side=256, share=0.11, views=8, spread=SCENES))
"""Hosts start at 512 pixels, so some steps go to larger pictures."""


def trained_vae(work: Path) -> AutoencoderKL:
    """The averaged weights of stage `vae`."""
    state = torch.load(work / "vae.pt", weights_only=True)
    vae = narrow_vae().eval()
    vae.load_state_dict(state["average"])
    return vae


def views(icons: Icons, spread: Spread, count: int, side: int = SIDE) -> Iterator[tuple[np.ndarray, Sequence[str], str, str]]:
    """(picture, words, set, ground) for `count` views of each icon; the ground is "" if it is the set's own."""
    rows = {(str(word), str(name)): row for row, (word, name) in enumerate(zip(icons.words, icons.sets, strict=True))}
    for (word, icon_set), row in rows.items():
        for view in range(count):
            rng = np.random.default_rng([SEED, row, view])
            ground = str(rng.choice(list(GROUNDS))) if rng.random() < spread.coloured else ""
            words: Sequence[str] = (word,)
            if spread.several and rng.random() < spread.several:
                words = things(word, icons.all_words, rng)
            shown = [icons.rgba[rows[one, icon_set]] for one in words]
            yield compose(shown, icon_set, ground, spread, rng, side), words, icon_set, ground


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) -> posterior mean, float32 (N, 4, H/8, W/8), unscaled."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
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


def make_latents(work: Path, icons: Icons, pools: Sequence[Pool]) -> None:
    """Write `work`/latents.pt: for each pool, float16 latents times 0.18215 and the rows (words, set, ground) of its pictures.

    Does nothing if the file exists and was made with the same settings.
    """
    settings = repr((icons.all_words, pools))
    if (work / "latents.pt").exists() and torch.load(work / "latents.pt", weights_only=True)["settings"] == settings:
        return
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    made = []
    for pool in pools:
        parts, rows, shown = [], [], views(icons, pool.spread, pool.views, pool.side)
        while some := list(islice(shown, 64)):
            parts.append((encode(vae, np.stack([picture for picture, *_ in some])) * SCALE).half())
            rows += [row for _, *row in some]
        made.append({"share": pool.share, "latents": torch.cat(parts), "rows": rows})
        print(f"latents: {len(rows)} pictures of {pool.side} pixels, of {len(icons.all_words)} words", flush=True)
    torch.save({"pools": made, "words": icons.all_words, "settings": settings}, work / "latents.pt")
