"""The judge's training data: drawings, icons and the icons' outlines, with random augmentation.

There are few drawings of a word, and the pictures to judge come from an autoencoder: blurred, with grey specks, on a ground
that is not quite white. So every picture is randomly warped, thickened or thinned, blurred, tinted and given noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.categories import QUICKDRAW
from trainer.miniature.build.icons import STYLES, Icons
from trainer.miniature.build.pictures import GROUNDS, WORDS
from trainer.miniature.drawings import for_the_judge
from trainer.miniature.judge import SIDE

DRAWN, ICON = 40, 40  # stored size of drawings and icons in pixels
DRAWINGS, OTHERS, OUTLINES, ICONS = 26, 10, 6, 22  # numbers in a batch
OFTEN = 2.0
"""Sampling weight of one of the first 60 words, relative to another word."""
KINDS = ("scribble", *dict.fromkeys(STYLES.values()))
NO_KIND = -1
"""The kind of an outline, whose caption has no style."""


@dataclass(frozen=True)
class Batch:
    """x: float32 (B, 3, 32, 32) in [-1, 1]; the others int64 (B,).

    word: index in QUICKDRAW; kind: index in KINDS, or NO_KIND; ground: 0 for the set's own, else 1 + index in GROUNDS.
    """

    x: Tensor
    word: Tensor
    kind: Tensor
    ground: Tensor


class Pictures:
    """The judge's training data; draws batches from it."""

    def __init__(self, icons: Icons, folder: Path) -> None:
        places = {word: place for place, word in enumerate(QUICKDRAW)}
        self.icons = _premultiplied(icons.rgba)
        self.icon_words = torch.tensor([places[word] for word in icons.words.tolist()])
        self.icon_kinds = torch.tensor([KINDS.index(STYLES[name]) for name in icons.sets.tolist()])
        own = set(icons.all_words)
        self.own, self.own_words = _read(folder, [w for w in QUICKDRAW if w in own], judged=True)
        others = [w for w in QUICKDRAW if w not in own and (folder / f"{w}.npy").exists()]
        self.others, self.other_words = _read(folder, others, judged=False)
        often = torch.tensor([OFTEN if word in WORDS else 1.0 for word in QUICKDRAW])
        per_word = torch.bincount(self.own_words, minlength=len(QUICKDRAW)).clamp(min=1)
        self.own_weights = (often / per_word)[self.own_words]
        self.icon_weights = often[self.icon_words]

    def draw(self, generator: torch.Generator) -> Batch:
        """One batch; equal generators draw equal batches."""
        mine = torch.multinomial(self.own_weights, DRAWINGS, replacement=True, generator=generator)
        other = torch.randint(len(self.others), (OTHERS,), generator=generator)
        traced = torch.multinomial(self.icon_weights, OUTLINES, replacement=True, generator=generator)
        shown = torch.multinomial(self.icon_weights, ICONS, replacement=True, generator=generator)
        drawn = torch.cat([self.own[mine], self.others[other]])[:, None].float() / 255
        rgba = warp(self.icons[torch.cat([traced, shown])].float() / 255, generator, bend=0.04)
        ink = torch.cat([warp(drawn, generator, bend=0.08), outlines(rgba[:OUTLINES])])
        scribbled, white = (torch.zeros(len(some), dtype=torch.long) for some in (drawn, ink))
        coloured, ground = on_grounds(rgba[OUTLINES:], self.icon_kinds[shown], generator)
        x = torch.cat([in_ink(ink, generator), coloured])
        words = [self.own_words[mine], self.other_words[other], self.icon_words[traced], self.icon_words[shown]]
        return Batch(worn(x, generator) * 2 - 1, torch.cat(words),
                     torch.cat([scribbled, torch.full((OUTLINES,), NO_KIND), self.icon_kinds[shown]]),
                     torch.cat([white, ground]))


def _premultiplied(rgba: np.ndarray) -> Tensor:
    """uint8 (N, 112, 112, 4) -> uint8 (N, 4, 40, 40), colours times alpha."""
    parts = []
    for some in torch.from_numpy(rgba).split(64):
        x = some.permute(0, 3, 1, 2).float() / 255
        x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)
        parts.append((F.interpolate(x, (ICON, ICON), mode="bilinear", antialias=True) * 255).round().byte())
    return torch.cat(parts)


def _read(folder: Path, words: list[str], *, judged: bool) -> tuple[Tensor, Tensor]:
    """Ink, uint8 (N, 40, 40), and the words' indices; if `judged`, only the judge's share of the rows."""
    parts, places = [], []
    for word in words:
        rows = np.load(folder / f"{word}.npy")
        rows = rows[for_the_judge(len(rows))] if judged else rows
        x = torch.from_numpy(rows.reshape(-1, 1, 28, 28)).float()
        parts.append(F.interpolate(x, (DRAWN, DRAWN), mode="bicubic", align_corners=False).clamp(0, 255).round().byte()[:, 0])
        places += [QUICKDRAW.index(word)] * len(rows)
    return torch.cat(parts), torch.tensor(places)


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def warp(x: Tensor, generator: torch.Generator, *, bend: float) -> Tensor:
    """(N, C, H, W) turned, sheared, stretched, mirrored, moved and bent, resampled to 32 x 32, with zeros outside."""
    n = len(x)
    angle = torch.randn(n, generator=generator) * 0.12
    zoom = torch.exp(_uniform(generator, -0.1, 0.35, n))  # above 1 shrinks the picture
    stretch = torch.exp(torch.randn(n, generator=generator) * 0.1)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    shear = torch.randn(n, generator=generator) * 0.1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = zoom * stretch * angle.cos() * mirror, -zoom * angle.sin() + shear
    theta[:, 1, 0], theta[:, 1, 1] = zoom * angle.sin() * mirror, zoom / stretch * angle.cos()
    room = (zoom - 0.8).clamp(min=0.06)[:, None]
    theta[:, :, 2] = _uniform(generator, -1, 1, n, 2) * room
    bends = torch.randn(n, 2, 5, 5, generator=generator) * _uniform(generator, 0, bend, n, 1, 1, 1)
    bent = F.interpolate(bends, (SIDE, SIDE), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(x, F.affine_grid(theta, [n, 1, SIDE, SIDE], align_corners=False) + bent, align_corners=False)


def outlines(rgba: Tensor) -> Tensor:
    """Premultiplied (N, 4, 32, 32) -> ink (N, 1, 32, 32) in [0, 1] where brightness or cover changes."""
    planes = torch.cat([rgba[:, :3].mean(1, keepdim=True) + 1 - rgba[:, 3:], rgba[:, 3:]], 1)  # on white; and its shape
    padded = F.pad(F.avg_pool2d(planes, 3, 1, 1, count_include_pad=False), (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    return ((across.square() + down.square()).sum(1, keepdim=True).sqrt() * 2.2 - 0.15).clamp(0, 1)


def in_ink(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Ink (N, 1, 32, 32) in [0, 1] -> dark strokes of random width, with some gaps, on nearly white (N, 3, 32, 32)."""
    n = len(ink)
    soft = F.avg_pool2d(ink, 3, 1, 1)
    lines = torch.lerp(ink, soft, _uniform(generator, -0.2, 0.6, n, 1, 1, 1))
    sharp = (0.5 + (lines - _uniform(generator, 0.12, 0.5, n, 1, 1, 1)) * _uniform(generator, 2, 6, n, 1, 1, 1)).clamp(0, 1)
    lines = torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.6, sharp, lines.clamp(0, 1))
    gaps = F.interpolate(torch.rand(n, 1, 7, 7, generator=generator), (SIDE, SIDE), mode="bilinear", align_corners=True)
    lines = lines * ((gaps - _uniform(generator, -0.8, 0.15, n, 1, 1, 1)) * 8).clamp(0, 1)
    dark, light = _uniform(generator, 0, 0.35, n, 1, 1, 1), _uniform(generator, 0.86, 1.03, n, 1, 1, 1)
    return light + lines * (dark - light) + 0.03 * torch.randn(n, 3, 1, 1, generator=generator)


def on_grounds(rgba: Tensor, kinds: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Icons on grounds as in `pictures.compose`, (N, 3, 32, 32), and the grounds: 0 the set's own, else 1 + index."""
    n = len(rgba)
    ground = torch.randint(1, len(GROUNDS) + 1, (n,), generator=generator)
    ground = ground * (torch.rand(n, generator=generator) < 0.4)
    shaded = (kinds == KINDS.index("photo"))[:, None]
    own = torch.where(shaded, 226.0, 255.0).expand(n, 3)
    colour = torch.where((ground > 0)[:, None], torch.tensor(list(GROUNDS.values())).float()[ground - 1], own)
    colour = (colour + _uniform(generator, -10, 10, n, 3)).clamp(0, 255)[:, :, None, None] / 255
    light = torch.linspace(1.10, 0.82, SIDE)[None, None, :, None]
    colour = torch.where(shaded[:, :, None, None], colour * light, colour.expand(-1, -1, SIDE, 1)).clamp(0, 1)
    return rgba[:, :3] + colour * (1 - rgba[:, 3:]), ground


def worn(x: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 3, 32, 32) in [0, 1], degraded as by a camera or an autoencoder: blur, brightness, specks, grain."""
    n = len(x)
    soft = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    x = torch.lerp(x, soft, _uniform(generator, -0.2, 0.6, n, 1, 1, 1))
    middle = x.mean((1, 2, 3), keepdim=True)
    x = middle + (x - middle) * _uniform(generator, 0.8, 1.15, n, 1, 1, 1) + _uniform(generator, -0.04, 0.04, n, 3, 1, 1)
    specks = F.interpolate(torch.randn(n, 1, 8, 8, generator=generator), (SIDE, SIDE), mode="bilinear", align_corners=True)
    x = x + specks * _uniform(generator, 0, 0.06, n, 1, 1, 1)
    return (x + torch.randn(x.shape, generator=generator) * _uniform(generator, 0, 0.05, n, 1, 1, 1)).clamp(0, 1)
