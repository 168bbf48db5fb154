"""Decodes every picture once before a long training, to report all damaged files and pictures that vanish on white."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import numpy as np
from PIL import Image

from convert.errors import JobError
from trainer.data.images import open_whole, read_bytes, read_rgb, to_rgb
from trainer.data.picture import Picture, digest_of
from trainer.data.records import Dataset, Row
from trainer.data.table import count

VISIBLE, WHITE, SEEN_THROUGH = 128, 235, 0.05


def decode(dataset: Dataset) -> Dataset:
    """`dataset` of pictures, with the results of decoding all of them added to its table and problems."""
    pictures = [example for part in (dataset.train, dataset.held_out) for example in part if isinstance(example, Picture)]
    if not pictures:
        return dataset
    started = time.perf_counter()
    problems, vanishing, black = _read_all(pictures)
    table = [Row("decoded", f"{len(pictures):,} pictures in {time.perf_counter() - started:.0f} s")]
    first: dict[str, str] = {}
    copies = [p.source for p in pictures if "digest" in p.__dict__ and first.setdefault(p.digest, p.source) != p.source]
    if copies:
        table.append(Row("copies", f"{count(copies)}: identical to another picture, so trained on more often", True))
    if vanishing:
        table.append(Row("white on transparent", f"{count(vanishing)}: they vanish on the white background that is used: put "
                         "another colour behind them", True))
    if black:
        table.append(Row("black masks", f"{count(black)}: these pictures have no effect on the training", True))
    return replace(dataset, table=[*dataset.table, *table], problems=[*dataset.problems, *problems])


def _read_all(pictures: Sequence[Picture]) -> tuple[list[str], list[str], list[str]]:
    """Problems, pictures that vanish on white, and pictures with a completely black mask; in the order of `pictures`."""
    from tqdm import tqdm

    problems, vanishing, black = [], [], []
    waiting = iter(pictures)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool, tqdm(
            total=len(pictures), desc="checking pictures", unit="picture", disable=None) as bar:  # fmt: skip
        while some := list(islice(waiting, 256)):
            for picture, (problem, white, nothing) in zip(some, pool.map(_look, some), strict=True):
                problems += [problem] if problem else []
                vanishing += [picture.source] if white else []
                black += [picture.source] if nothing else []
                bar.update()
    return problems, vanishing, black


def _look(picture: Picture) -> tuple[str, bool, bool]:
    """The problem with a picture or its mask, or ""; whether it is white on transparent; whether its mask is black."""
    try:
        data = read_bytes(picture.path)
        picture.__dict__["digest"] = digest_of(data)  # fill the cached property, so that the file is not read again
        with open_whole(picture.path, io.BytesIO(data)) as image:
            white = _vanishes(image)
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        if turned != (picture.size != image.size) and image.width != image.height:
            return f"{picture.path}: is rotated by EXIF data stored after its pixels: save it again", False, False
        nothing = bool(picture.mask_path) and not np.asarray(read_rgb(picture.mask_path).convert("L")).any()  # type: ignore[arg-type]
    except JobError as error:
        return str(error), False, False
    return "", white, nothing


def _vanishes(image: Image.Image) -> bool:
    """Whether the visible part of a partly transparent picture is nearly white, or empty."""
    if image.mode.startswith("I") or image.mode == "F":
        to_rgb(image)  # raises if its values are out of range
        return False
    if not image.has_transparency_data:
        return False
    pixels = np.asarray(image.convert("RGBA").resize((64, 64), Image.Resampling.NEAREST))
    seen = pixels[..., 3] >= VISIBLE
    return bool((~seen).mean() > SEEN_THROUGH and (not seen.any() or pixels[..., :3][seen].mean() >= WHITE))
