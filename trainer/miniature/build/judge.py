"""Stage `judge`: trains the miniature's judge contrastively on drawings that do not ship, and on the icons.

For the miniature's words it sees every third drawing (`drawings.for_the_judge`), never one that a LoRA is trained or measured
on; for QuickDraw's other words, which are only further training data, all of them. Each picture is contrasted with captions
that differ from its own in the word, the style or the ground.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.categories import QUICKDRAW
from trainer.data.records import process
from trainer.miniature.build.icons import STYLES, Icons
from trainer.miniature.build.judge_pictures import KINDS, NO_KIND, Batch, Pictures
from trainer.miniature.build.pictures import FULL, GROUNDS, SIDE, WORDS, compose, in_style
from trainer.miniature.build.sitting import Sitting
from trainer.miniature.drawings import for_the_judge
from trainer.miniature.judge import SmallClip, prepare, read_judge, write_judge

RATE, SEED = 3e-3, 35
FALL = 0.22
"""The last part of the steps, in which the rate falls linearly to zero."""
SHARP, SMOOTH = 16.0, 0.1
"""Logit scale of the cosines in the softmax; label smoothing."""
BARE = len(KINDS)
"""Index, after those of the kinds, for captions that are only the word."""

METADATA = {
    "license": "MIT; the pictures it learned from: MIT, Apache-2.0, CC BY 4.0",
    "attribution": "drawings and words of The Quick, Draw! Dataset by Google, Inc. (CC BY 4.0); Fluent Emoji, Fluent Emoji "
                   "Flat and Fluent Emoji High Contrast by Microsoft Corporation (MIT); Noto Emoji by Google Inc (Apache-2.0); "
                   "Twemoji by Twitter, Inc and other contributors (CC BY 4.0)",
}


def train_judge(icons: Icons, folder: Path, work: Path, steps: int, without: str = "") -> bool:
    """Train up to `steps` in total, resuming from the saved state; writes judge.safetensors and prints `check_judge`'s results.

    folder: QuickDraw's <word>.npy files. without: a set of icons to leave out, whose recognition is then printed.
    Returns whether the end was reached.
    """
    torch.manual_seed(SEED)
    path = path_of(work, without)
    name = path.stem
    shown = icons.without(without) if without else icons
    pictures, model = Pictures(shown, folder), SmallClip([*QUICKDRAW, *KINDS, *(f"{ground} background" for ground in GROUNDS)])
    learned = list(model.parameters())
    optimizer = torch.optim.AdamW(learned, lr=RATE, betas=(0.9, 0.99), weight_decay=0.05)
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    sitting, first = Sitting(work / f"{name}.pt", None), 0
    if (state := sitting.load()) is not None:
        first, average = state["step"], state["average"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    watched = Watch(icons.all_words, folder, model)
    losses: list[float] = []
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
        loss = contrast(model, pictures.draw(generator), generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 100, (steps - step) / (FALL * steps))
        optimizer.step()
        losses.append(loss.item())
        _follow(average, model, min(0.995, (step + 1) / (step + 10)))
        if (step + 1) % 50 == 0:
            print(f"{name} {step + 1}/{steps} loss {sum(losses) / len(losses):.3f}", flush=True)
            losses = []
        if (step + 1) % 250 == 0:
            print(f"{name} {step + 1}: drawings not seen, of all words: first {watched(average):.1%}", flush=True)
        if sitting.due or step + 1 == steps:
            sitting.save({"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                          "average": average})
        if sitting.over:
            return False
    sitting.end()
    write_judge(path, average, model.words, METADATA | {"steps": str(steps)})
    print(f"{path}: {path.stat().st_size:,} bytes")
    check_judge(read_judge(path), icons, folder, without)
    return True


def path_of(work: Path, without: str = "") -> Path:
    """The file of the judge, or of one that never saw the set `without`."""
    return work / (f"judge-without-{without}.safetensors" if without else "judge.safetensors")


class Watch:
    """Accuracy of the averaged weights on two unseen drawings of each word, for information only."""

    def __init__(self, words: list[str], folder: Path, model: SmallClip) -> None:
        self.words, self.model = words, copy.deepcopy(model).eval()
        rows = [np.load(folder / f"{word}.npy")[row] for word in words for row in (0, 1)]
        self.x = prepare([process(row.reshape(28, 28), SIDE) for row in rows])

    @torch.no_grad()
    def __call__(self, average: dict[str, Tensor]) -> float:
        self.model.load_state_dict(average)
        right = [place for place in range(len(self.words)) for _ in (0, 1)]
        return rates(self.model.images(self.x), self.model.texts([f"a scribble of {word}" for word in self.words]), right)[0]


def _follow(average: dict[str, Tensor], model: SmallClip, kept: float) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - kept)


def contrast(model: SmallClip, batch: Batch, generator: torch.Generator) -> Tensor:
    """Cross entropy of each picture's caption among captions that differ in the word, the style or the ground."""
    features = model.images(batch.x) * SHARP
    words = _captions(model)
    bare = torch.rand(len(batch.word), generator=generator) < 0.3
    as_said = torch.where(batch.kind == NO_KIND, 0, batch.kind)
    style = torch.where(bare, BARE, as_said)
    logits = torch.einsum("nf,swf->nsw", features, words)
    loss = F.cross_entropy(logits[torch.arange(len(style)), style], batch.word, label_smoothing=SMOOTH)
    named = batch.kind != NO_KIND
    styles = logits[torch.arange(len(style)), :BARE, batch.word]
    loss = loss + 0.3 * F.cross_entropy(styles[named], batch.kind[named], label_smoothing=SMOOTH)
    coloured = batch.kind > 0
    grounds = _grounds(model, batch.word[coloured], batch.kind[coloured])
    return loss + 0.3 * F.cross_entropy(torch.einsum("nf,ngf->ng", features[coloured], grounds), batch.ground[coloured],
                                        label_smoothing=SMOOTH)


def _captions(model: SmallClip) -> Tensor:
    """Unit features (kinds + 1, 345, 128) of every word in every style, and last without a style."""
    words, kinds, _ = _vectors(model)
    return F.normalize(words + torch.cat([kinds, torch.zeros(1, kinds.shape[1])])[:, None], dim=-1)


def _grounds(model: SmallClip, word: Tensor, kind: Tensor) -> Tensor:
    """Unit features (N, grounds + 1, 128) of captions with each ground, and first without one."""
    words, kinds, grounds = _vectors(model)
    grounds = torch.cat([torch.zeros(1, grounds.shape[1]), grounds])
    return F.normalize((words[word] + kinds[kind])[:, None] + grounds, dim=-1)


def _vectors(model: SmallClip) -> tuple[Tensor, Tensor, Tensor]:
    """The text tower's vectors of words, kinds and grounds: a caption is their sum."""
    words, kinds, grounds = model.text.vectors.split([len(QUICKDRAW), len(KINDS), len(GROUNDS)])
    return words, kinds, grounds


def check_judge(model: SmallClip, icons: Icons, folder: Path, without: str = "") -> None:
    """Print top-1 and top-5 accuracy on drawings that the judge has not seen and on the icons.

    With `without`, only on the icons of that set, which it has not seen either, and with bare words as captions, because it
    may not know the set's style.
    """
    words = icons.all_words
    rows = [np.load(folder / f"{word}.npy") for word in words]
    drawn = [[process(row.reshape(28, 28), SIDE) for row in some[~for_the_judge(len(some))]] for some in rows]
    names = [word for word, some in zip(words, drawn, strict=True) for _ in some]
    report("drawings not seen", model, [picture for some in drawn for picture in some], names, "scribble", words)
    for name, style in ({without: ""} if without else STYLES).items():
        rng = np.random.default_rng(SEED)
        chosen = np.flatnonzero(icons.sets == name)
        grounds = rng.choice(["", *GROUNDS], len(chosen))
        shown = [compose([icons.rgba[row]], name, str(ground), FULL, rng) for row, ground in zip(chosen, grounds, strict=True)]
        report(name, model, shown, icons.words[chosen].tolist(), style, words)


def report(title: str, model: SmallClip, pictures: Sequence[np.ndarray], names: Sequence[str], style: str,
           words: Sequence[str]) -> None:
    """Print how often the caption of a picture's name is nearest, among those of the first 60 words and among those of `words`.

    style: of the captions; "" is the bare word.
    """
    features = torch.cat([model.images(prepare(pictures[at : at + 256])) for at in range(0, len(pictures), 256)])
    for among in dict.fromkeys((tuple(sorted(WORDS)), tuple(sorted(words)))):
        rows = [row for row, name in enumerate(names) if name in set(among)]
        first, five = rates(features[rows], model.texts([in_style(style, word) if style else word for word in among]),
                            [among.index(names[row]) for row in rows])
        print(f"judge: {title}: {len(rows)} pictures, {len(among)} words: first {first:.1%}, among five {five:.1%}", flush=True)


def rates(images: Tensor, texts: Tensor, right: Sequence[int]) -> tuple[float, float]:
    """Top-1 and top-5 accuracy: how often the right text is nearest to its picture, or among the five nearest."""
    best = (images @ texts.T).topk(min(5, len(texts))).indices == torch.tensor(right)[:, None]
    return float(best[:, 0].float().mean()), float(best.any(1).float().mean())
