"""The files that ship fit together: networks, drawings, judge and fingerprint."""

from __future__ import annotations

import hashlib

import torch

from convert.miniature import OUT_BIAS, is_miniature
from trainer.miniature import checkpoint, drawings, shipped
from trainer.miniature.ldm import ldm_name
from trainer.miniature.packed import Narrow, read_narrow

WIDE = "59d82e4f34a279025cf8dc3544214cb23be4bbfb2b96bca947c4163927e25f62"
"""sha256 of the wide checkpoint's weights by their LDM names: the same on every machine."""


def test_the_fingerprint_is_that_of_the_weights_that_ship() -> None:
    bias = read_narrow().unet["conv_out.bias"]
    assert tuple(bias.tolist()) == OUT_BIAS and is_miniature(bias.bfloat16().tolist())
    assert not is_miniature((bias * 1.02).tolist())


def test_it_can_draw_every_word_that_has_drawings() -> None:
    assert read_narrow().words == drawings.words()


def test_what_ships_is_at_most_27_mb() -> None:
    """So that a clone of depth 1, which has it twice, stays below 60 MB."""
    here = shipped.NETWORKS.parents[1]
    assert sum(path.stat().st_size for path in here.rglob("*") if path.is_file() and path.suffix != ".pyc") < 27e6


def test_the_checkpoint_is_the_same_on_every_machine() -> None:
    """Of each network a few tensors with each rule of the widening: the whole file is 2.1 GB."""
    assert digest(read_narrow()) == WIDE


def digest(narrow: Narrow) -> str:
    sha, rules = hashlib.sha256(), set()
    for wide in sorted(checkpoint.wide_tensors(narrow), key=lambda wide: (wide.part, wide.name)):
        if (key := (wide.part, wide.rule, wide.narrow.ndim)) not in rules:
            rules.add(key)
            sha.update(ldm_name(wide.part, wide.name).encode())
            sha.update(wide.float16().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
