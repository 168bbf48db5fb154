"""Folders in the layouts of kohya's sd-scripts, OneTrainer, diffusers and SimpleTuner: what is used and what is reported."""

from __future__ import annotations

import json
import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from convert.errors import JobError, UsageError
from trainer.data import load_dataset, refuse_problems
from trainer.data.decode import decode
from trainer.data.layout import kohya_folder
from trainer.data.records import Dataset, fingerprint
from trainer.data.sources import parse_source
from trainer.data.table import format_table
from trainer.recipe import Recipe


def save(path: Path, size: tuple[int, int] = (64, 64), colour: object = (200, 30, 30), mode: str = "RGB",
         **how: object) -> Path:  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **how)  # type: ignore[arg-type]
    return path


def load(folder: Path, **fields: object) -> Dataset:
    return load_dataset(Recipe(**({"data": str(folder)} | fields)), cache=folder / ".cache", say=print, keep_problems=True)


def told(dataset: Dataset) -> str:
    return format_table(dataset.table, 200)


def captions(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    return {e.source: e.captions for e in dataset.train}


def test_kohyas_project_folder(tmp_path: Path) -> None:
    for name in ("img/10_sks dog/1.png", "img/10_sks dog/2.png", "img/3_style of x/a.jpg", "reg/1_dog/r1.png",
                 "model/sample/s.png", "log/t.png"):  # fmt: skip
        save(tmp_path / name)
    (tmp_path / "img/10_sks dog/1.txt").write_text("a dog on grass")
    data = load(tmp_path)
    assert captions(data) == {"img/10_sks dog/1.png": ("a dog on grass",), "img/10_sks dog/2.png": ("sks dog",),
                              "img/3_style of x/a.jpg": ("style of x",), "reg/1_dog/r1.png": ("dog",)}
    assert {e.source: (e.repeats, e.reg) for e in data.train} == {
        "img/10_sks dog/1.png": (10, False), "img/10_sks dog/2.png": (10, False), "img/3_style of x/a.jpg": (3, False),
        "reg/1_dog/r1.png": (1, True)}
    assert data.per_epoch == 2 * (10 + 10 + 3)
    assert "! not used               2 files in kohya's log and model folders (first log/t.png)" in told(data)
    without = load(tmp_path, reg=False)
    assert len(without.train) == 3 and without.per_epoch == 23 and "1 pictures for regularisation (--no-reg)" in told(without)
    assert all(e.weight == 0.5 for e in load(tmp_path, prior_weight=0.5).train if e.reg)
    # the trigger is not added to regularisation captions
    triggered = captions(load(tmp_path, trigger="sks"))
    assert triggered["reg/1_dog/r1.png"] == ("dog",) and triggered["img/10_sks dog/1.png"] == ("sks a dog on grass",)


def test_a_kohya_folder_itself_may_be_given(tmp_path: Path) -> None:
    save(tmp_path / "5_cat" / "a.png")
    data = load(tmp_path / "5_cat")
    assert data.per_epoch == 5 and captions(data) == {"a.png": ("cat",)}


@pytest.mark.parametrize("name, read", [("10_sks dog", (10, "sks dog")), ("1_a_b", (1, "a_b")),
                                        ("2024_summer", (None, "2024_summer")), ("5000_x", (None, "5000_x")),
                                        ("cats", (None, "cats")), ("0_off", (0, "off"))])
def test_numbers_before_names(name: str, read: tuple[int | None, str]) -> None:
    assert kohya_folder(name) == read


def test_a_year_before_a_name_is_reported(tmp_path: Path) -> None:
    save(tmp_path / "2024_summer" / "a.png")
    assert "! numbers as names       '2024_summer'" in told(load(tmp_path))


def test_several_folders_with_settings(tmp_path: Path) -> None:
    save(tmp_path / "a, b" / "x.png")
    save(tmp_path / "dogs" / "y.png")
    (tmp_path / "dogs" / "y.txt").write_text("1dog, solo, grass, sky")
    data = load(tmp_path / "a, b", more_data=(f"{tmp_path / 'dogs'}, repeats=4, trigger=sks dog",), trigger="sks")
    assert captions(data) == {"a, b/x.png": ("sks",), "dogs/y.png": ("sks dog, 1dog, solo, grass, sky",)}
    assert [e.repeats for e in data.train] == [1, 4]
    source = parse_source("d, reg=yes, trigger=a, b, repeats=3", Recipe())
    assert (source.given, source.reg, source.trigger, source.repeats) == ("d", True, "a, b", 3)
    for bad in ("d, repeats=0", "d, repeats=x", "d, reg=maybe", "d, masks=nowhere"):
        with pytest.raises(UsageError, match=bad.split()[-1].split("=")[0]):
            parse_source(bad, Recipe())


def test_masks_are_weights_and_never_pictures(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (64, 64))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "a-masklabel.png")
    save(tmp_path / "a-condlabel.png")
    save(tmp_path / "sub" / "b.jpg", (32, 32))
    save(tmp_path / "sub" / "mask" / "B.PNG", mode="L", colour=51)
    save(tmp_path / "lonely-masklabel.png")
    data = load(tmp_path, crop="square")
    assert set(captions(data)) == {"a.png", "sub/b.jpg"}
    a, b = (e.mask(64, 8) for e in data.train)
    assert a is not None and a.shape == (8, 8) and a[:, :4].min() == 1 and a[:, 4:].max() == 0
    assert b is not None and np.allclose(b, 0.2)
    assert "masks                  2 (first a.png)" in told(data)
    assert "1 conditioning pictures" in told(data) and "1 masks without a picture of their name" in told(data)
    assert all(e.mask(64, 8) is None for e in load(tmp_path, masks=False).train)
    before = fingerprint(data)
    mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "a-masklabel.png")
    assert fingerprint(load(tmp_path, crop="square")) != before


def test_a_folder_of_pictures_of_masks_is_used(tmp_path: Path) -> None:
    for name in ("mask/m1.png", "mask/m2.png", "cat/c1.png"):
        save(tmp_path / name)
    data = load(tmp_path)
    assert captions(data) == {"cat/c1.png": ("cat",), "mask/m1.png": ("mask",), "mask/m2.png": ("mask",)}


def test_kohyas_conditioning_folder_and_alpha(tmp_path: Path) -> None:
    save(tmp_path / "img" / "a.png")
    save(tmp_path / "cond" / "a.png", mode="L", colour=0)
    data = decode(load(tmp_path / "img", data=f"{tmp_path / 'img'}, masks={tmp_path / 'cond'}"))
    mask = data.train[0].mask(64, 8)
    assert mask is not None and mask.max() == 0 and "! black masks            1 (first a.png)" in told(data)
    save(tmp_path / "through" / "b.png", mode="RGBA", colour=(9, 9, 9, 51))
    (picture,) = load(tmp_path / "through", alpha_mask=True).train
    weights = picture.mask(64, 8)
    assert weights is not None and np.allclose(weights, 0.2)


def test_hugging_faces_splits_and_meaningless_names(tmp_path: Path) -> None:
    for name in ("train/a.png", "test/b.png", "validation/c.png"):
        save(tmp_path / name)
    data = load(tmp_path)
    assert captions(data) == {"train/a.png": ("",)} and "2 files in a test or validation folder beside train" in told(data)


def test_every_file_that_is_not_used_is_reported(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for name in ("b.CR2", "c.cr2", "clip.mp4", "notes", "a.npz", "multidatabackend.json", "captions.parquet"):
        (tmp_path / name).write_bytes(b"{}")
    (tmp_path / "a.txt").write_text("\n")
    for name in ("Thumbs.db", ".DS_Store", "@eaDir/SYNO.jpg", "__MACOSX/x.png", ".ipynb_checkpoints/a-checkpoint.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    table = told(load(tmp_path))
    for row in ("2 .cr2 (first b.CR2)", "1 .mp4 (first clip.mp4)", "1 files without a suffix (first notes)",
                "1 .npz (first a.npz)", "1 .txt without a caption (first a.txt)",
                "1 .parquet (captions in it are not read: save them as metadata.csv or metadata.jsonl) (first captions.",
                "1 .json without a picture of its name (first multidatabackend.json)",
                "5 hidden or system files (first .DS_Store)"):
        assert row in table, row


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are POSIX")
def test_hostile_folders(tmp_path: Path) -> None:
    data, outside = tmp_path / "data", tmp_path / "outside"
    save(data / "a.png")
    save(outside / "private.png")
    (outside / "secret.txt").write_text("a password")
    os.mkfifo(data / "pipe.png")
    os.mkfifo(data / "b.txt")
    (data / "zero.png").symlink_to("/dev/zero")
    (data / "a.txt").symlink_to(outside / "secret.txt")
    (data / "gone.png").symlink_to(outside / "missing.png")
    (data / "root").symlink_to("/")
    (data / "inside.png").symlink_to(data / "a.png")
    found = load(data)
    assert captions(found) == {"a.png": ("",), "inside.png": ("",)}
    table = told(found)
    for row in ("3 links that leave the folder (--follow-links follows them)", "2 pipes, sockets and devices",
                "1 broken links"):
        assert row in table, row
    (data / "root").unlink()
    (data / "more").symlink_to(outside)
    assert captions(load(data, follow_links=True))["more/private.png"] == ("more",)
    assert captions(load(data, follow_links=True))["a.png"] == ("a password",)


def test_caption_lines_separate_and_joined(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("1girl, red hair\n\n1girl,  blue hair\n1girl, red hair\n")
    assert captions(load(tmp_path)) == {"a.png": ("1girl, red hair", "1girl, blue hair")}
    assert captions(load(tmp_path, caption_lines="join")) == {"a.png": ("1girl, red hair 1girl, blue hair 1girl, red hair",)}


@pytest.mark.parametrize("name, content, caption", [
    ("captions.json", {"a.png": "x"}, "x"), ("captions.json", {"a": "x"}, "x"),
    ("captions.json", [{"image": "a.png", "caption": "x"}], "x"),
    ("meta_cap.json", {"/content/train/a": {"caption": "x", "tags": "t, u"}}, "x, t, u"),
    ("meta_cap.json", {"a": {"tags": "t, u", "train_resolution": [1, 2]}}, "t, u"),
    ("metadata.json", {"A.png": {"prompt": "x"}}, "x"), ("a.json", {"tags": ["t", "u"]}, "t, u"),
    ("metadata.jsonl", {"file_name": "x\\y\\a.png", "caption": "x"}, "x"),
    ("metadata.jsonl", {"file_name": "A.PNG", "prompt": "x"}, "x"),
    ("captions.csv", "image;caption\na.png;x, y\n", "x, y"), ("captions.csv", "a.png,x\n", "x"),
    ("a.tags", "t, u", "t, u"), ("a.png.txt", "x", "x"), ("A.TXT", "x", "x"), ("a.caption", "x", "x")])  # fmt: skip
def test_where_captions_are_read(tmp_path: Path, name: str, content: object, caption: str) -> None:
    save(tmp_path / "a.png")
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text)
    data = refuse_problems(load(tmp_path))
    assert captions(data) == {"a.png": (caption,)} and "not used" not in told(data)


def test_accents_and_case_are_matched_if_one_file_fits(tmp_path: Path) -> None:
    save(tmp_path / (unicodedata.normalize("NFD", "é") + ".png"))
    (tmp_path / (unicodedata.normalize("NFC", "é") + ".txt")).write_text("a cat")
    save(tmp_path / "Cat.PNG")
    (tmp_path / "cat.txt").write_text("cat")
    assert sorted(captions(load(tmp_path)).values()) == [("a cat",), ("cat",)]
    save(tmp_path / "x" / "same.png")
    save(tmp_path / "y" / "same.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "/old/same.png", "text": "z"}')
    with pytest.raises(JobError, match="match no picture in this folder, or several.*same.png"):
        refuse_problems(load(tmp_path))


@pytest.mark.parametrize("data, said", [
    ("a cat".encode("utf-16-le"), "UTF-16 without a byte order mark"), (b"a\x07b", r"control character U\+0007"),
    ("é".encode("latin-1"), "save it as UTF-8"), (b"x" * (2**20 + 1), "the limit is 1,048,576")])  # fmt: skip
def test_files_that_are_not_text_are_refused_by_name(tmp_path: Path, data: bytes, said: str) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(JobError, match=rf"a\.txt.*{said}"):
        refuse_problems(load(tmp_path))
    (tmp_path / "a.txt").write_bytes("a cat".encode("utf-16"))
    assert captions(load(tmp_path)) == {"a.png": ("a cat",)}


def test_all_damaged_files_at_once(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8))
    for name in ("cut.jpg", "cut.png"):
        noise.save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:4000])
    (tmp_path / "page.png").write_bytes(b"<!DOCTYPE html><html>")
    (tmp_path / "good.txt").write_bytes(b"\0")
    with pytest.raises(JobError, match="4 files cannot be used") as caught:
        refuse_problems(decode(load(tmp_path)))
    said = str(caught.value)
    assert all(name in said for name in ("cut.jpg", "cut.png", "page.png", "good.txt")) and "it is a web page" in said


def test_kinds_of_pictures(tmp_path: Path) -> None:
    for name in ("a.jfif", "b.jpe", "c.jp2", "d.tga", "e.ppm", "f.avif"):
        save(tmp_path / name, format={"a.jfif": "JPEG", "b.jpe": "JPEG"}.get(name))
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    save(tmp_path / "g.png", pnginfo=text)
    data = decode(load(tmp_path))
    assert not data.problems and len(data.train) == 7
    for example in data.train:
        assert np.abs(example.raw()[5, 5].astype(int) - (200, 30, 30)).max() < 12, example.source


def test_white_on_transparent_is_reported(tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (8, 8, 40, 40))
    image.save(tmp_path / "logo.png")
    assert "! white on transparent   1 (first logo.png)" in told(decode(load(tmp_path)))


def test_grey_profiles_and_gamma(tmp_path: Path) -> None:
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    assert linear is not None
    chunk = PngImagePlugin.PngInfo()
    chunk.add(b"gAMA", (100000).to_bytes(4, "big"))  # linear light
    save(tmp_path / "a.png", mode="RGB", colour=(55, 55, 55), pnginfo=chunk)
    (example,) = load(tmp_path).train
    assert abs(int(example.raw()[0, 0, 0]) - 128) <= 1  # sRGB of 55 / 255 = 0.2157 in linear light is 127.6
    same = PngImagePlugin.PngInfo()
    same.add(b"gAMA", (45455).to_bytes(4, "big"))
    save(tmp_path / "a.png", mode="L", colour=55, pnginfo=same)
    assert load(tmp_path).train[0].raw()[0, 0].tolist() == [55] * 3


def test_edited_captions_are_another_data_set(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    one = fingerprint(load(tmp_path, trigger="x"))
    (tmp_path / "a.txt").write_text("new")
    assert fingerprint(load(tmp_path, trigger="x")) != one


def test_shuffled_tags_keep_the_first_ones(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("sks, first, b, c, d, e")
    data = load(tmp_path, shuffle_tags=True, keep_tokens=2, tag_dropout=0.5)
    variants = captions(data)["a.png"]
    assert len(set(variants)) > 5 and all(v.startswith("sks, first") for v in variants)
    assert {len(v.split(", ")) for v in variants} > {3, 4} and data.train[0].caption == "sks, first, b, c, d, e"
    assert captions(load(tmp_path, shuffle_tags=True, keep_tokens=2, tag_dropout=0.5)) == captions(data)
    whole = captions(load(tmp_path, shuffle_tags=True, trigger="sks"))["a.png"]
    assert all(v.startswith("sks, ") and sorted(v.split(", ")) == ["b", "c", "d", "e", "first", "sks"] for v in whole)


def test_tags_that_all_captions_share_are_the_activation_text(tmp_path: Path) -> None:
    for i, tag in enumerate(("hat", "dog", "car")):
        save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"mystyle, 1girl, {tag}")
    data = load(tmp_path)
    assert data.trigger == "mystyle, 1girl" and "activation text        'mystyle, 1girl'" in told(data)
    assert load(tmp_path, trigger="z").trigger == "z"


def test_published_recipes_hold_names_only(tmp_path: Path) -> None:
    recipe = Recipe(data=f"{tmp_path}/my pictures, repeats=3, masks={tmp_path}/m", base=str(tmp_path),
                    more_data=(f"{tmp_path}/b",))
    published = recipe.published()
    assert published["data"] == "my pictures, repeats=3, masks=m" and published["more_data"] == ["b"]
    assert published["base"] == tmp_path.name and str(tmp_path) not in json.dumps(published)
    assert Recipe().published() == Recipe().as_dict()
    assert replace(Recipe(), data="doodles").published()["data"] == "doodles"


@pytest.mark.parametrize("columns", [40, 80])
def test_the_table_fits_the_terminal(tmp_path: Path, columns: int) -> None:
    save(tmp_path / "a rather long name for a picture which nobody would type.png", (900, 100))
    lines = format_table(load(tmp_path).table, columns).split("\n")
    assert max(map(len, lines)) <= columns and any(line.startswith("! ") for line in lines)


def test_captions_that_are_not_used_are_reported(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a.png")
    save(tmp_path / "test" / "b.png")
    (tmp_path / "train" / "a.txt").write_text("near")
    (tmp_path / "train" / "a.caption").write_text("also")
    lines = [{"file_name": f"{name}.png", "text": "far"} for name in ("train/a", "test/b")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = refuse_problems(load(tmp_path))
    assert captions(data) == {"train/a.png": ("near",)}
    assert "1 entries of metadata.jsonl for pictures with a nearer caption (first metadata.jsonl)" in told(data)
    assert "1 .caption beside another caption of the picture (first train/a.caption)" in told(data)


def test_captions_of_regularisation_pictures_are_reported(tmp_path: Path) -> None:
    save(tmp_path / "instance_images" / "a.png")
    save(tmp_path / "class_images" / "b.png")
    assert "!   without a caption    1 (first class_images/b.png)" in told(load(tmp_path))
    save(tmp_path / "class_images" / "1_dog" / "c.png", colour=(1, 2, 3))
    assert "regularisation         2 (first class_images/1_dog/c.png), captioned for example 'dog'" in told(load(tmp_path))


@pytest.mark.parametrize("caption, said", [
    ("1girl, (red hair:1.2)", True), ("a cat <lora:cats:0.8>", True), ("a cat (sitting)", False), ("12:30 (Berlin)", False)])
def test_prompt_weights_in_captions_are_reported(tmp_path: Path, caption: str, said: bool) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(caption)
    assert ("! prompt syntax          1 (first a.png)" in told(load(tmp_path))) == said


@pytest.mark.skipif(os.name == "nt", reason="names of files there hold no control characters")
def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    save(tmp_path / "a\x1b[2Jb\nc.png")
    (tmp_path / "x\x07.pdf").write_text("")
    table = told(load(tmp_path))
    assert "a\\x1b[2Jb\\nc.png" in table and "x\\x07.pdf" in table and "\x1b" not in table


def test_copies_are_reported(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    save(tmp_path / "c.png", colour=(1, 2, 3))
    assert "! copies                 1 (first b.png)" in told(decode(load(tmp_path)))
