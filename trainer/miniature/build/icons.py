"""Stage `icons`: pictures of QuickDraw's words from five public emoji sets, rendered to (224, 224) RGBA.

The sets are npm packages (`npm pack @iconify-json/NAME`), unpacked into one folder each: MIT, Apache-2.0 and CC BY 4.0.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = 224  # pixels

STYLES = {  # package -> the style word in its captions
    "fluent-emoji": "photo",
    "noto": "drawing",
    "twemoji": "icon",
    "fluent-emoji-flat": "icon",
    "fluent-emoji-high-contrast": "silhouette",
}

ALIASES = {  # QuickDraw's word -> the sets' name, if it differs in more than dashes for spaces
    "apple": "red-apple", "tree": "deciduous-tree", "car": "automobile", "flower": "tulip", "cup": "cup-with-straw",
    "book": "open-book", "shoe": "running-shoe", "hat": "top-hat", "cake": "shortcake", "clock": "mantelpiece-clock",
}


@dataclass(frozen=True, kw_only=True)
class Icons:
    """rgba: uint8 (N, 224, 224, 4); words, sets: (N,) str, the word and the icon set of each."""

    rgba: np.ndarray
    words: np.ndarray
    sets: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Icons:
        with np.load(path) as file:
            return cls(rgba=file["rgba"], words=file["words"], sets=file["sets"])

    @property
    def all_words(self) -> list[str]:
        return sorted(set(self.words.tolist()))

    def of(self, words: set[str]) -> Icons:
        """The icons of `words` alone."""
        return self._kept(np.array([word in words for word in self.words]))

    def without(self, name: str) -> Icons:
        """The icons of all sets except `name`."""
        return self._kept(self.sets != name)

    def _kept(self, keep: np.ndarray) -> Icons:
        return Icons(rgba=self.rgba[keep], words=self.words[keep], sets=self.sets[keep])


def render_icons(packages: Path, words: list[str]) -> Icons:
    """The icons of those `words` that all five packages in the folder `packages` have. Raises FileNotFoundError."""
    sets = {name: json.loads((packages / name / "icons.json").read_text(encoding="utf-8")) for name in STYLES}
    shared = [word for word in words if all(_key(word) in package["icons"] for package in sets.values())]
    pairs = [(word, name) for word in shared for name in sets]
    rgba = [_render(sets[name], _key(word)) for word, name in pairs]
    return Icons(rgba=np.stack(rgba), words=np.array([w for w, _ in pairs]), sets=np.array([s for _, s in pairs]))


def _key(word: str) -> str:
    return ALIASES.get(word, word.lower().replace(" ", "-"))


def _render(package: dict[str, Any], key: str) -> np.ndarray:
    import resvg_py

    icon = package["icons"][key]
    width, height = (icon.get(side, package.get(side, 16)) for side in ("width", "height"))
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
           f'viewBox="0 0 {width} {height}" width="{SIZE}" height="{SIZE}" color="#111">{icon["body"]}</svg>')
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA").resize((SIZE, SIZE)))
