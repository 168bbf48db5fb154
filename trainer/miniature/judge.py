"""The miniature's judge, a small CLIP with its own vocabulary, and its file.

Image tower: a residual network on pictures of 32 x 32 pixels, about the resolution of a QuickDraw bitmap. Text tower: the sum
of one vector per known word. Both produce unit features (N, 128). The file stores matrices as int8 with a float32 scale for
each output row, everything else in float32; its header lists the words and the licences.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert.errors import JobError
from convert.files import write_bytes
from convert.stream import write_container
from trainer.miniature.shipped import JUDGE
from trainer.miniature.whole import from_whole, output, to_whole

SIDE = 32
"""Input size of the image tower in pixels; pictures of any size are resized to it."""
STEM, STAGES, FEATURES = 32, ((64, 1), (128, 2), (256, 1)), 128
"""Channels of the first layer, of each stage, with its residual blocks, and of the features."""
SILENT = frozenset(("a", "an", "the", "of", "on", "in", "with", "and", "background", "picture", "hand", "drawn", "one", "two",
                    "three", "four", "five"))
"""Words without meaning for the judge, which it does not report as unknown."""

ALSO = {"doodle": "scribble", "sketch": "scribble"}


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _conv(width, width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


def _conv(before: int, width: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, width, size, stride, size // 2, bias=False), nn.BatchNorm2d(width))


class ImageTower(nn.Sequential):
    """float32 (N, 3, 32, 32) in [-1, 1] -> (N, 128), not normalised."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [_conv(3, STEM, 5, 2), nn.ReLU()]
        before = STEM
        for width, blocks in STAGES:
            layers += [_conv(before, width, 3, 2), nn.ReLU(), *(Residual(width) for _ in range(blocks))]
            before = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, FEATURES))


class TextTower(nn.Module):
    """Word counts, float32 (N, words) -> (N, 128), not normalised."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(words, FEATURES) * FEATURES**-0.5)

    def forward(self, counts: Tensor) -> Tensor:
        return counts @ self.vectors


class SmallClip(nn.Module):
    """Both towers and their vocabulary: QuickDraw's words, the styles, and grounds such as `green background`."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self.identity = ""
        """sha256, hex, of the file it was read from"""
        self.words = tuple(words)
        self.places = {word.lower(): place for place, word in enumerate(self.words)}
        self.longest = max(len(_parts(word)) for word in self.words)
        self.image, self.text = ImageTower(), TextTower(len(self.words))

    def images(self, x: Tensor) -> Tensor:
        """Unit features (N, 128) of float32 (N, 3, 32, 32) in [-1, 1]."""
        return F.normalize(self.image(x), dim=-1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit features (N, 128). Unknown words are ignored; a text with only unknown words gets the features of all words."""
        counts = torch.zeros(len(texts), len(self.words))
        for row, text in enumerate(texts):
            counts[row, self.read(text).places or slice(None)] = 1
        return F.normalize(self.text(counts), dim=-1)

    def read(self, text: str) -> Reading:
        """The judge's words in `text`, longest match first ("hot dog" is not a dog), including plurals."""
        parts, places, unknown, at = _parts(text), [], [], 0
        while at < len(parts):
            for length in range(min(self.longest, len(parts) - at), 0, -1):
                place = self._place(" ".join(parts[at : at + length]))
                if place is not None:
                    places.append(place)
                    break
            else:
                length = 1
                if parts[at] not in SILENT:
                    unknown.append(parts[at])
            at += length
        return Reading(places, unknown)

    def _place(self, phrase: str) -> int | None:
        phrase = ALSO.get(phrase, phrase)
        singular = (phrase, phrase.removesuffix("s"), phrase.removesuffix("es"))
        return next((self.places[form] for form in singular if form in self.places), None)


@dataclass(frozen=True)
class Reading:
    """The indices of a text's words in the judge's vocabulary, and its unknown words."""

    places: list[int]
    unknown: list[str]


def _parts(text: str) -> list[str]:
    return re.findall(r"[a-z-]+", text.lower())


def prepare(pictures: Sequence[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) each, of any size -> float32 (N, 3, 32, 32) in [-1, 1]."""
    parts = []
    for picture in pictures:
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        parts.append(F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False))
    return torch.cat(parts)


def write_judge(path: Path, state: Mapping[str, Tensor], words: Sequence[str], metadata: Mapping[str, str]) -> None:
    """Write a `SmallClip`'s state dict; equal input gives equal files."""
    outputs = []
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):  # only training reads it
            continue
        value = tensor.detach().float()
        if value.ndim > 1:
            value, scale = to_whole(value, 127)
            outputs.append(output(f"{name}.scale", scale))
        outputs.append(output(name, value))
    buffer = io.BytesIO()
    write_container(buffer, outputs, {**metadata, "words": json.dumps(list(words))}, hashes={})
    write_bytes(path, buffer.getvalue())


def read_judge(path: Path = JUDGE) -> SmallClip:
    """Load the judge from `path` for inference. JobError if there is no such file or it is not a complete judge."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        packed = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        model = SmallClip(json.loads(header["__metadata__"]["words"]))
        state = {name: from_whole(packed[name], packed[f"{name}.scale"]) if f"{name}.scale" in packed else packed[name]
                 for name in packed if not name.endswith(".scale")}
        expected = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
        if set(state) != expected:
            raise ValueError(f"tensors are missing or unknown, first {sorted(set(state) ^ expected)[0]}")
        model.load_state_dict(state, strict=False)
        model.identity = hashlib.sha256(data).hexdigest()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise JobError(f"{path}: is not the miniature's judge, or it is damaged ({line}); install the program again") from error
    return model.eval().requires_grad_(False)
