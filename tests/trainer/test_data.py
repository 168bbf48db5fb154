"""Folders of .npy drawings and the choice of rows, as in the paper's section 2."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convert.errors import JobError, UsageError
from tests.drawings import write_drawings
from trainer.data import load_dataset
from trainer.data.categories import ATTRIBUTION, QUICKDRAW
from trainer.data.records import process
from trainer.data.split import choose_categories, choose_rows
from trainer.miniature.drawings import drawings
from trainer.recipe import Recipe

ROWS = np.random.default_rng(0).integers(0, 256, (40, 784), dtype=np.uint8)


def load(folder: Path, **fields):
    return load_dataset(Recipe(**({"data": str(folder)} | fields)), cache=folder.parent / "cache", say=print)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "drawings"
    place.mkdir()
    return place


def test_the_names_are_quickdraws() -> None:
    assert len(QUICKDRAW) == len(set(QUICKDRAW)) == 345 and list(QUICKDRAW) == sorted(QUICKDRAW)
    assert {"The Eiffel Tower", "apple", "t-shirt", "teddy-bear", "zigzag"} <= set(QUICKDRAW)


def test_categories_by_seed_or_by_name() -> None:
    seen, unseen = choose_categories("100", list(QUICKDRAW), seed=0)
    assert len(seen) == 100 and sorted(seen + unseen) == sorted(QUICKDRAW)
    assert seen != choose_categories("100", list(QUICKDRAW), seed=1)[0]
    assert seen == choose_categories("100", list(reversed(QUICKDRAW)), seed=0)[0]
    assert choose_categories("Alarm_Clock, the eiffel tower,", list(QUICKDRAW), 0)[0] == ["The Eiffel Tower", "alarm clock"]


@pytest.mark.parametrize(("wanted", "message"), [
                         ("aple", "did you mean apple"), ("xqzw", "there are The Eiffel Tower"), ("0", "1 to 345"),
                         ("346", "1 to 345"), (",", "number or names")])
def test_wrong_categories(wanted, message) -> None:
    with pytest.raises(UsageError, match=message):
        choose_categories(wanted, list(QUICKDRAW), 0)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 29, 100_000])
def test_training_and_held_out_rows_never_overlap(count) -> None:
    """A row that some run with this seed may train on is never held out by another run with it."""
    everything = choose_rows("apple", count, count, seed=0)
    assert len(everything.train) == max(1, round(0.7 * count))
    for per_category in (1, 5, 20):
        rows = choose_rows("apple", count, per_category, seed=0)
        assert rows.train == everything.train[:per_category] and not set(everything.train) & set(rows.held_out)
        assert set(rows.train + rows.held_out) <= set(range(count))
    assert count < 10 or everything.train != choose_rows("pear", count, count, seed=0).train


def test_drawings_are_processed_in_the_order_of_section_2_2() -> None:
    """Strokes become black on white; bicubic overshoot is clipped before the colours are inverted, in the paper's order."""
    bitmap = ROWS[0].reshape(28, 28)
    rgb = Image.fromarray(np.repeat(bitmap[:, :, None], 3, axis=2))
    assert np.array_equal(process(bitmap, 64), 255 - np.asarray(rgb.resize((64, 64), Image.Resampling.BICUBIC)))
    assert (process(np.zeros((28, 28), np.uint8), 512) == 255).all()


def test_a_folder_gives_its_own_rows_and_captions(folder) -> None:
    np.save(folder / "alarm clock.npy", ROWS)
    np.save(folder / "cat.npy", ROWS[:8].reshape(8, 1, 784))
    data = load(folder)
    assert data.seen == ["alarm clock", "cat"] and len(data.train) == 20 + 6 and len(data.held_out) == 4
    for example in data.train + data.held_out:
        assert example.source == f"{example.category}.npy row {example.source.split()[-1]}"
        assert example.raw().tobytes() == ROWS[int(example.source.split()[-1])].tobytes()
        assert example.caption == f"a scribble of {example.category}"
    assert any("all are used: cat (6)" in note for note in data.notes)
    assert any("2 categories, fewer than 100" in note for note in data.notes)
    assert "CC BY 4.0" in data.attribution and any("CC BY 4.0" in note for note in data.notes)


@pytest.mark.parametrize("name", ["CAT.NPY", "full_numpy_bitmap_alarm%20clock.npy"])
def test_file_names_become_categories(folder, name) -> None:
    with open(folder / name, "wb") as file:
        np.save(file, ROWS)
    (folder / f"._{name}").write_bytes(b"\0\5\x16\7" * 99)
    (folder / "folder.npy").mkdir()
    assert load(folder).seen == ["CAT" if name == "CAT.NPY" else "alarm clock"]


def test_other_drawings_get_no_attribution(folder) -> None:
    np.save(folder / "my own glyphs.npy", ROWS)
    assert load(folder).attribution == ""


def test_two_files_of_one_category(folder) -> None:
    for name in ("cat.npy", "full_numpy_bitmap_cat.npy"):
        np.save(folder / name, ROWS)
    with pytest.raises(UsageError, match="the same category"):
        load(folder)


def _damaged(file: Path, kind: str) -> None:
    arrays = {"float": ROWS.astype(np.float32), "28x28": ROWS.reshape(40, 28, 28), "none": ROWS[:0], "bool": ROWS > 9,
              "columns": np.asfortranarray(ROWS), "pickle": np.array([{}], dtype=object)}
    np.save(file, arrays.get(kind, ROWS), allow_pickle=True)
    if kind == "cut":
        os.truncate(file, 20_000)
    elif kind == "longer":
        file.write_bytes(file.read_bytes() + b"x" * 784)
    elif kind in ("empty", "text"):
        file.write_bytes(b"" if kind == "empty" else b"<!DOCTYPE html>")
    elif kind == "header":
        file.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 99)


@pytest.mark.parametrize(("kind", "message"), [
                         ("float", "float32"), ("28x28", "28, 28"), ("none", r"\(0, 784\)"), ("bool", "bool"),
                         ("columns", "by columns"), ("pickle", "pickled"), ("cut", "cut off"), ("longer", "damaged"),
                         ("empty", "nothing"), ("text", "web page"), ("header", "2,147,483,659 bytes")])
def test_a_damaged_file_is_one_line(folder, kind, message) -> None:
    _damaged(folder / "cat.npy", kind)
    with pytest.raises(JobError, match=message) as caught:
        load(folder)
    assert str(folder / "cat.npy") in str(caught.value) and "\n" not in str(caught.value)


def test_folders_without_data_are_refused(folder) -> None:
    np.save(folder / "cat.npy", ROWS)
    wrong = {folder / "cat.npy": "is a file", folder / "no": "no such folder", folder.parent: "drawings are in"}
    for place, message in wrong.items():
        with pytest.raises(UsageError, match=message):
            load(place)


def test_options_that_drawings_do_not_use_are_reported(folder) -> None:
    np.save(folder / "cat.npy", ROWS)
    assert any("--trigger and --held-out" in note for note in load(folder, trigger="sks", held_out=0.1).notes)


def test_doodles_are_real_drawings_and_need_no_cache(tmp_path) -> None:
    dataset = load_dataset(Recipe(data="doodles", categories="apple,star", per_category=5), cache=tmp_path, say=print)
    assert [len(dataset.train), len(dataset.held_out)] == [10, 4] and dataset.attribution == ATTRIBUTION and not dataset.notes
    assert dataset.seen == ["apple", "star"] and "tree" in dataset.unseen
    bitmaps = {row.tobytes() for row in drawings("apple")}
    assert {example.bitmap for example in dataset.train if example.category == "apple"} <= bitmaps
    many = load_dataset(Recipe(data="doodles", categories="apple", per_category=60), cache=tmp_path, say=print)
    assert "fewer than 60" in many.notes[0] and not list(tmp_path.iterdir())


def test_pictures_beside_drawings_are_reported(tmp_path: Path) -> None:
    write_drawings(tmp_path, per_category=4, seed=1)
    (tmp_path / "cat.png").write_bytes(b"")
    dataset = load_dataset(Recipe(data=str(tmp_path)), cache=tmp_path, say=print)
    assert any("1 pictures beside them are not" in note for note in dataset.notes)
