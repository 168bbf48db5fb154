"""The contact sheet is a valid PNG and shows the examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convert.errors import JobError
from trainer.data.ours import MARK
from trainer.data.pictures import load_pictures
from trainer.data.records import Dataset, Drawing
from trainer.recipe import Recipe
from trainer.runs.contact_sheet import choose_examples, shorten, write_contact_sheet


def drawings(count: int) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(train=[Drawing(bitmap=rng.integers(0, 256, 784, dtype=np.uint8).tobytes(), category=f"c{i}",
                                  caption=f"a scribble of c{i}", source=f"c.npy row {i}") for i in range(count)],
                   held_out=[], trigger="a scribble of")  # fmt: skip


@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_drawings(tmp_path: Path, count: int) -> None:
    write_contact_sheet(drawings(count), tmp_path / "sheet.png", resolution=64, seed=0)
    with Image.open(tmp_path / "sheet.png") as image:
        image.load()
        assert image.format == "PNG" and image.info["Description"] == MARK and min(image.size) > 400
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


def test_eight_by_the_seed() -> None:
    dataset = drawings(30)
    chosen = choose_examples(dataset, 0)
    assert len({example.source for example in chosen}) == 8 and chosen == choose_examples(dataset, 0)
    assert chosen != choose_examples(dataset, 1)


def test_pictures_show_their_colours_above_and_below(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (90, 60), (10, 200, 60)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "a.txt").write_text("$not maths_{ " + "long " * 60)
    recipe = Recipe(data=str(tmp_path / "in"), crop="square")
    write_contact_sheet(load_pictures(recipe), tmp_path / "sheet.png", resolution=64, seed=0)
    with Image.open(tmp_path / "sheet.png") as image:
        green = (np.asarray(image.convert("RGB")) == (10, 200, 60)).all(-1)
    half = len(green) // 2
    wide, square = green[:half], green[half:]
    shapes = [(part.any(1).sum(), part.any(0).sum()) for part in (wide, square)]
    assert shapes[0][1] == pytest.approx(1.5 * shapes[0][0], rel=0.05)
    assert shapes[1][1] == pytest.approx(shapes[1][0], rel=0.05)


def test_labels_are_cut() -> None:
    assert shorten("a cat") == "a cat"
    lines = shorten("word " * 100).split("\n")
    assert len(lines) == 3 and lines[-1].endswith("…") and max(map(len, lines)) <= 30


def test_errors_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no training pictures"):
        write_contact_sheet(drawings(0), tmp_path / "sheet.png", resolution=64, seed=0)
    with pytest.raises(JobError, match="cannot be written"):
        write_contact_sheet(drawings(1), tmp_path / "missing" / "sheet.png", resolution=64, seed=0)
    assert not list(tmp_path.iterdir())
