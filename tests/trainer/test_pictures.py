"""Folders of the user's own pictures: real files, written by Pillow, against the expected pixels and captions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from convert.errors import JobError, UsageError
from trainer.data import images, refuse_problems
from trainer.data.captions import with_trigger
from trainer.data.pictures import held_out_rows
from trainer.data.pictures import load_pictures as load_recipe
from trainer.data.records import Dataset
from trainer.data.table import format_table
from trainer.recipe import Recipe
from trainer.runs.contact_sheet import write_contact_sheet

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def load_pictures(folder: Path, recipe: Recipe) -> Dataset:
    """Square pictures from `folder`, as the tests of pixels expect them."""
    return refuse_problems(load_recipe(replace(recipe, data=str(folder), crop="square")))


def told(dataset: Dataset) -> str:
    return format_table(dataset.table, 200)


def save(path: Path, image: Image.Image | None = None, **how: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (8, 8), RED)).save(path, **how)
    return path


def captions(dataset: Dataset) -> dict[str, str]:
    return {example.source: example.caption for example in dataset.train}


def only(folder: Path) -> np.ndarray:
    """The pixels, as found, of the one picture of a folder."""
    (example,) = load_pictures(folder, Recipe()).train
    return example.raw()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (20, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    save(tmp_path / "a.png", image, exif=exif)
    pixels = only(tmp_path)
    assert pixels.shape == (40, 20, 3) and tuple(pixels[5, 10]) == RED and tuple(pixels[35, 10]) == BLUE


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "tRNS", "I;16"])
def test_transparent_pixels_are_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 5, 10))
    how: dict[str, object] = {}
    if mode == "P":
        image = Image.new("P", (10, 10), 1)
        image.putpalette([0, 0, 0, 10, 20, 30])
        image.paste(0, (0, 0, 5, 10))
        how["transparency"] = 1
    elif mode == "tRNS":
        image, how["transparency"] = Image.new("RGB", (10, 10), (1, 2, 3)), (1, 2, 3)
        image.paste((0, 0, 0), (0, 0, 5, 10))
    elif mode == "I;16":
        grey = np.full((10, 10), 500, np.uint16)
        grey[:, :5] = 0
        image, how["transparency"] = Image.fromarray(grey), 500
    else:
        image = image.convert(mode)
    save(tmp_path / "a.png", image, **how)
    pixels = only(tmp_path)
    assert tuple(pixels[5, 1]) == (0, 0, 0) and tuple(pixels[5, 8]) == WHITE


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    save(tmp_path / "a.png", Image.new("RGBA", (4, 4), (0, 0, 0, 128)))
    assert abs(int(only(tmp_path)[0, 0, 0]) - 127) <= 1


def test_16_bit_greys_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    grey = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    for suffix in ("png", "tiff"):
        folder = tmp_path / suffix
        save(folder / f"a.{suffix}", Image.fromarray(grey))
        assert only(folder)[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_float_tiff_out_of_range_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "good" / "a.tif", Image.fromarray(np.array([[0.0, 1.0]], np.float32)))
    assert only(tmp_path / "good")[0].tolist() == [[0] * 3, [255] * 3]
    save(tmp_path / "bad" / "a.tif", Image.fromarray(np.array([[0.0, 7.5]], np.float32)))
    with pytest.raises(JobError, match=r"a\.tif.*expected 0 to 1"):
        only(tmp_path / "bad")


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (16, 16), WHITE)
    image.paste((0, 0, 0), (0, 0, 8, 16))
    save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"), image.convert(mode))
    pixels = only(tmp_path)
    assert pixels.dtype == np.uint8 and pixels.shape == (16, 16, 3)
    assert pixels[8, 2].max() <= 8 and pixels[8, 13].min() >= 247


def test_embedded_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (8, 8), (200, 30, 90))
    save(tmp_path / "same" / "a.png", image, icc_profile=srgb)
    assert np.abs(only(tmp_path / "same")[0, 0].astype(int) - (200, 30, 90)).max() <= 1
    save(tmp_path / "broken" / "a.png", image, icc_profile=b"no profile at all")
    assert tuple(only(tmp_path / "broken")[0, 0]) == (200, 30, 90)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    for suffix in ("gif", "webp"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    for example in load_pictures(tmp_path, Recipe()).train:
        assert np.abs(example.raw()[4, 4].astype(int) - RED).max() <= 2


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (64, 64), (30, 10)])
def test_short_side_is_resized_and_the_middle_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, RED)
    w, h = size
    short = min(size)
    image.paste(BLUE, ((w - short) // 2, (h - short) // 2, (w + short) // 2, (h + short) // 2))
    save(tmp_path / "a.png", image)
    pixels = load_pictures(tmp_path, Recipe()).train[0].pixels(64)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels[8:-8, 8:-8].astype(int) - BLUE).max() <= 2  # no band of red, nothing inverted


def test_agrees_with_resizing_the_whole_and_cropping(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 60, 3), dtype=np.uint8))
    save(tmp_path / "a.png", image)
    expected = np.asarray(image.resize((192, 64), Image.Resampling.BICUBIC))[:, 64:128]
    pixels = load_pictures(tmp_path, Recipe()).train[0].pixels(64)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_square_picture_is_pillows_bicubic(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    save(tmp_path / "a.png", image)
    expected = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC))
    assert np.array_equal(load_pictures(tmp_path, Recipe()).train[0].pixels(64), expected)


def test_caption_sources_and_their_precedence(tmp_path: Path) -> None:
    for name in ("a.PNG", "b.png", "cat/c.jpg", "cat/d.webp", "cat/e.bmp", "f.JPEG"):
        save(tmp_path / name)
    (tmp_path / "a.txt").write_text("from  text ", encoding="utf-8-sig")
    (tmp_path / "a.caption").write_text("from caption")
    (tmp_path / "b.caption").write_text("é caption", encoding="utf-8")
    (tmp_path / "cat" / "c.TXT").write_text("from text too")
    lines = [{"file_name": "a.PNG", "text": "m"}, {"file_name": "cat/d.webp", "text": "from metadata", "more": 1}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    dataset = load_pictures(tmp_path, Recipe(trigger="a scribble of"))
    assert captions(dataset) == {
        "a.PNG": "a scribble of from text", "b.png": "a scribble of é caption", "cat/c.jpg": "a scribble of from text too",
        "cat/d.webp": "a scribble of from metadata", "cat/e.bmp": "a scribble of cat", "f.JPEG": "a scribble of"}
    assert [e.category for e in dataset.train] == ["", "", "cat", "cat", "cat", ""]
    assert dataset.trigger == "a scribble of"
    assert "trigger alone        1 (first f.JPEG): 'a scribble of'" in told(dataset)
    assert "from folders         1 (first cat/e.bmp): 'cat'" in told(dataset)


def test_pictures_without_captions_and_trigger(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "typo.txt").write_text("a cat")
    dataset = load_pictures(tmp_path, Recipe())
    assert captions(dataset) == {"a.png": ""}
    assert "! without a caption      1 (first a.png): used with an empty caption" in told(dataset)
    assert "1 .txt without a picture of its name (first typo.txt)" in told(dataset)


def test_trigger_is_not_doubled() -> None:
    assert with_trigger("a scribble of", "a scribble of a cat") == "a scribble of a cat"
    assert with_trigger("cat", "cats") == "cat cats"
    assert with_trigger("", "cats") == "cats"


FIRST = '{"file_name": "a.png", "text": "x"}\n'


@pytest.mark.parametrize("name, content, said", [
    ("metadata.jsonl", FIRST + '{"file_name": "b.png", "text": "x"}\n', r"1 of 2 .*line 2 'b.png' \(did you mean 'a.png'"),
    ("metadata.jsonl", FIRST + '{"file_name": "a.png"\n', "line 2: is not JSON"),
    ("metadata.jsonl", FIRST + '{"file_name": "a.png"}\n', "line 2: expected"),
    ("metadata.jsonl", FIRST + "[1]\n", "line 2: expected"),
    ("metadata.csv", "file_name,text\na.png,one, two\n", "line 2: has 3 fields, but the first line has 2"),
    ("metadata.csv", "file_name,text\na.png\n", "line 2: has 1 fields"),
    ("metadata.csv", "picture,caption\na.png,x\n", 'line 2: expected "file_name" and "text"'),
    ("metadata.csv", 'file_name,text\na.png,"x\n', "is not CSV"),
    ("metadata.csv", "file_name,text\nb.png,x\nc.png,y\n", "2 of 2 entries.*line 2 'b.png'.*line 3 'c.png'"),
    ("captions.json", '{"a.png": 5}', "entry 'a.png': expected a caption"),
    ("captions.json", '{"q.png": "x"}', "'q.png'")])  # fmt: skip
def test_metadata_errors_name_the_lines(tmp_path: Path, name: str, content: str, said: str) -> None:
    save(tmp_path / "a.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(JobError, match=said) as caught:
        load_pictures(tmp_path, Recipe())
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_captions_from_a_csv_are_overridden_by_jsonl(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "sub/c.png"):
        save(tmp_path / name)
    (tmp_path / "metadata.csv").write_text('file_name,mood,text\r\na.png,,"one, two"\r\nsub/c.png,,c\r\n', newline="")
    assert captions(load_pictures(tmp_path, Recipe())) == {"a.png": "one, two", "b.png": "", "sub/c.png": "c"}
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "json"}')
    assert captions(load_pictures(tmp_path, Recipe())) == {"a.png": "json", "b.png": "", "sub/c.png": "c"}


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_of_an_animation_the_first_frame_is_used_and_this_is_reported(tmp_path: Path, suffix: str) -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    red.save(tmp_path / f"a{suffix}", save_all=True, append_images=[blue])
    red.save(tmp_path / f"b{suffix}")
    dataset = load_pictures(tmp_path, Recipe())
    assert f"first frame only       1 (first a{suffix})" in told(dataset)
    assert all(abs(e.pixels(8)[0, 0].astype(int) - [255, 0, 0]).max() < 8 for e in dataset.train)


def test_caption_that_is_not_utf8(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(JobError, match=r"a\.txt.*UTF-8"):
        load_pictures(tmp_path, Recipe())


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(30), b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_a_file_that_is_not_a_picture_is_named(tmp_path: Path, content: bytes) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(JobError, match=r"b\.png: is not a readable picture"):
        load_pictures(tmp_path, Recipe())


def test_cut_off_jpeg_is_named_when_it_is_read(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    path = save(tmp_path / "a.jpg", noise)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(JobError, match=r"a\.jpg: is not a readable picture"):
        load_pictures(tmp_path, Recipe()).train[0].pixels(64)


def test_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", Image.new("RGB", (100, 100)))
    monkeypatch.setattr(images, "MOST_PIXELS", 1000)
    with pytest.raises(JobError, match=r"a\.png.*100 x 100 pixels, the limit"):
        load_pictures(tmp_path, Recipe())


def test_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat")
    with pytest.raises(UsageError, match=r"has no training pictures; expected .*\.png.*metadata\.jsonl"):
        load_pictures(tmp_path, Recipe())


def test_only_the_users_pictures_are_used(tmp_path: Path) -> None:
    for name in ("a.png", ".hidden.png", ".cache/b.png", "checkpoints/c.png", "run/loss.png", "lora.png", "d.png"):
        save(tmp_path / name)
    (tmp_path / "run" / "recipe.json").write_text("{}")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    (tmp_path / "lora.safetensors").write_bytes(b"")
    (tmp_path / "photo.HEIC").write_bytes(b"")
    before = load_pictures(tmp_path, Recipe())
    assert list(captions(before)) == ["a.png", "d.png"]
    assert "1 .heic (pip install pillow-heif to read them) (first photo.HEIC)" in told(before)
    assert "1 previews beside a LoRA (first lora.png)" in told(before)
    write_contact_sheet(before, tmp_path / "sheet.png", resolution=64, seed=0)
    after = load_pictures(tmp_path, Recipe())
    assert captions(after) == captions(before) and "1 contact sheets of this program" in told(after)


def test_digest_is_of_content(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    save(tmp_path / "c.png", Image.new("RGB", (8, 8), BLUE))
    a, b, c = (example.digest for example in load_pictures(tmp_path, Recipe()).train)
    assert a == b != c and len(a) == 64


def test_held_out_is_a_seeded_share(tmp_path: Path) -> None:
    for i in range(10):
        save(tmp_path / f"{i}.png")
    assert not load_pictures(tmp_path, Recipe()).held_out
    one, again = (load_pictures(tmp_path, Recipe(held_out=0.3, seed=4)) for _ in range(2))
    assert len(one.held_out) == 3 and one == again
    assert {e.source for e in one.train} | {e.source for e in one.held_out} == {f"{i}.png" for i in range(10)}
    assert len({frozenset(held_out_rows(10, 0.3, seed)) for seed in range(5)}) > 1
    assert len(held_out_rows(3, 0.99, 0)) == 2 and len(held_out_rows(3, 0.01, 0)) == 1 and not held_out_rows(1, 0.5, 0)
