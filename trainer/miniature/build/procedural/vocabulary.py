"""The miniature's tokenizer: CLIP's own byte-pair encoding with a vocabulary of the world's words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer

from trainer.miniature.build.procedural.models import TOKENS
from trainer.miniature.build.procedural.world import ANY_STYLE, COLOURS
from trainer.miniature.shapes import CATEGORIES

_WORDS = ["a", "an", "of", "on", "photo", "flat", "icon", "crayon", "drawing", "silhouette", "background", "with", "and", "the"]


def _bytes_as_characters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 byte values, which CLIP's vocabulary starts with."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016) learned on `words` until each of them is one token."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for word in pieces for pair in zip(word, word[1:])):
        best = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(best)
        pieces = [_merged(word, best) for word in pieces]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write vocab.json, merges.txt and the rest into `folder` and load it. Words outside the world fall into pieces."""
    words = {w for name in [*CATEGORIES, *COLOURS, *ANY_STYLE, *_WORDS] for w in name.split()}
    characters = _bytes_as_characters()
    merges = _merges(sorted(words))
    tokens = [*characters, *(c + "</w>" for c in characters)]
    tokens += [t for t in dict.fromkeys(a + b for a, b in merges) if t not in set(tokens)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer
