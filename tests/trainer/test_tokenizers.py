"""CLIP's tokenizer is the same from every source, and `model_max_length` never exceeds CLIP's length."""

from __future__ import annotations

import functools
import gzip
import html
import json
import re
from pathlib import Path

import pytest
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from convert.errors import UsageError
from tests.random_base import build_tokenizer
from trainer.base.tokenizers import clip_tokenizer, from_byte_pairs, own_tokenizer, read_tokenizer
from trainer.miniature.vocabulary import BPE, END, MERGES, SHIPPED, byte_pairs

CAPTIONS = ["a scribble of apple", "a photo of a cat", "A  Scribble of The Eiffel Tower!", "", "naïve café, 42 stars & co.",
            "don't", "🍎 x", "aircraft carrier " * 40]  # fmt: skip


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-pair file in CLIP's format, with as many merges, most of them invented."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pairs = [(a, b + end) for a in letters for b in letters for end in ("", "</w>")]
    pairs += [(a + b, c + end) for a in letters for b in letters for c in letters for end in ("", "</w>")]
    pairs += [(a + b, c + d) for a in letters for b in letters for c in letters for d in "aeiou"][: MERGES - len(pairs)]
    assert len(pairs) <= MERGES
    pairs += [("zz" + a + b, c + d + "</w>") for a in letters for b in letters for c in letters for d in "aeiou"]
    file = tmp_path_factory.mktemp("clip") / BPE
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *(f"{a} {b}" for a, b in pairs), "never read"]
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    return file


def reference_ids(file: Path, text: str) -> list[int]:
    """CLIP's byte-pair encoding after its paper's description (merge the best-ranked pair until none is left)."""
    vocabulary, merges = byte_pairs(file)
    rank = {pair: n for n, pair in enumerate(merges)}
    text = re.sub(r"\s+", " ", html.unescape(text)).strip().lower()
    ids = []
    for word in re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+", text):
        shown = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)[0][0]
        pieces = [*shown[:-1], shown[-1] + "</w>"]
        while (pairs := [p for p in zip(pieces, pieces[1:], strict=False) if p in rank]):
            best = min(pairs, key=rank.__getitem__)
            merged: list[str] = []
            for piece in pieces:
                if merged and (merged[-1], piece) == best and merged[-1] == best[0]:
                    merged[-1] += piece
                else:
                    merged.append(piece)
            pieces = merged
        ids += [vocabulary[piece] for piece in pieces]
    return [49406, *ids, 49407]


def test_the_vocabulary_is_laid_out_as_clips(made_up) -> None:
    vocabulary, merges = byte_pairs(made_up)
    assert len(vocabulary) == 49408 and len(merges) == MERGES
    assert (vocabulary["!"], vocabulary["a"], vocabulary["a</w>"]) == (0, 64, 320)  # facts of CLIP's vocabulary
    assert (vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (49406, 49407)
    assert set(list(vocabulary)[:256]) == set(ByteLevel.alphabet())
    assert vocabulary["".join(merges[7])] == 512 + 7


@pytest.mark.parametrize("caption", CAPTIONS)
def test_byte_pair_file_and_folder_agree_with_clips_algorithm(made_up, tmp_path, caption) -> None:
    tokenizer = _once(made_up)
    ids = tokenizer(caption, truncation=False).input_ids
    assert ids == reference_ids(made_up, caption)
    vocabulary, merges = byte_pairs(made_up)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n", encoding="utf-8")
    assert CLIPTokenizer.from_pretrained(tmp_path)(caption, truncation=False).input_ids == ids


@functools.cache
def _once(file: Path):
    return from_byte_pairs(file)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_the_shipped_file_gives_clips_ids(caption) -> None:
    assert _once(SHIPPED)(caption, truncation=False).input_ids == reference_ids(SHIPPED, caption)
    if caption == "a photo of a cat":  # the ids that every CLIP tutorial shows
        assert _once(SHIPPED)(caption).input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_every_spelling_of_the_path(made_up, tmp_path) -> None:
    folder = tmp_path / "base" / "tokenizer"
    build_tokenizer(folder)
    wanted = read_tokenizer(folder)("a scribble of apple").input_ids
    for path in (folder.parent, folder / "vocab.json", folder / "merges.txt", folder / "tokenizer.json"):
        assert read_tokenizer(path)("a scribble of apple").input_ids == wanted
    (folder / "tokenizer.json").unlink()
    assert read_tokenizer(folder)("a scribble of apple").input_ids == wanted
    plain = tmp_path / "bpe.txt"
    plain.write_bytes(gzip.decompress(made_up.read_bytes()))
    assert read_tokenizer(plain)("star").input_ids == _once(made_up)("star").input_ids


def test_the_length_is_clamped_and_the_padding_is_the_end_mark(tmp_path) -> None:
    build_tokenizer(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    claim = json.loads(config.read_text()) | {"model_max_length": 8192, "pad_token": "!"}
    config.write_text(json.dumps(claim))
    assert own_tokenizer(tmp_path, 77).model_max_length == 77
    assert own_tokenizer(tmp_path, 32).model_max_length == 32
    assert own_tokenizer(tmp_path, 248).model_max_length == 77
    with pytest.raises(UsageError, match="has 607 tokens, but the base's text encoder 49408"):
        clip_tokenizer(str(tmp_path), max_positions=77, vocabulary=49408)
    tokenizer = clip_tokenizer(str(tmp_path), max_positions=77, vocabulary=700)
    ids = tokenizer("apple", padding="max_length", max_length=77).input_ids
    assert len(ids) == 77 and set(ids[3:]) == {tokenizer.eos_token_id} and tokenizer.pad_token == "<|endoftext|>"


def test_folders_without_a_tokenizer(tmp_path, made_up) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.gz").write_bytes(made_up.read_bytes()[:5000])
    (tmp_path / "other.txt").write_text("hello")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/tokenizer.json").write_text("{")
    for name, message in [("none", "no such file or folder"), ("empty", "contains no tokenizer"), ("cut.gz", "cannot be read"),
                          ("other.txt", "byte pairs"), ("bad", "cannot be read")]:  # fmt: skip
        with pytest.raises(UsageError, match=f"--tokenizer .*{name}.*{message}") as caught:
            read_tokenizer(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(tmp_path) -> None:
    build_tokenizer(tmp_path)
    with pytest.raises(UsageError, match="give the tokenizer that belongs to this base"):
        clip_tokenizer(str(tmp_path), max_positions=77, vocabulary=100)


def test_the_shipped_vocabulary_needs_neither_hub_nor_package(monkeypatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    tokenizer = clip_tokenizer("", max_positions=77, vocabulary=49408)
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.model_max_length == 77 and tokenizer.pad_token == END
