"""The parts that need no host: scales, prompt, sheet, advice."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert.metadata import merged


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0, 0.25, 0.5, 0.75, 1", [0, 0.25, 0.5, 0.75, 1]),
        ("0:1:0.25", [0, 0.25, 0.5, 0.75, 1]),
        ("0/1/0.1", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        ("1:0:-0.5", [1, 0.5, 0]),
        ("0:1:0.4", [0, 0.4, 0.8]),
        ("0.5:0.5:1", [0.5]),
        ("-1 ; 0\n1,", [-1, 0, 1]),
        ("0, 0.5:1:0.25", [0, 0.5, 0.75, 1]),
    ],
)
def test_scales_are_read_as_people_write_them(part, text, expected) -> None:
    assert part("scales").parse(text) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [("", "empty"), (" , ", "empty"), ("a", "'a'"), ("nan", "'nan'"), ("1e999", "'1e999'"), ("0:1", "'0:1'"),
     ("0:1:0", "never"), ("0:1:-1", "never"), ("0:1:0.001", "more than 64"), (",".join("1" * 65), "more than 64"),
     ("0,,x:1:2", "'x'")],
)  # fmt: skip
def test_what_is_no_list_of_scales_is_refused_in_one_sentence(part, text, named) -> None:
    with pytest.raises(part("errors").NodeError, match=named) as caught:
        part("scales").parse(text)
    assert str(caught.value).startswith("scales: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "subject", "trigger", "expected"),
    [
        ("{trigger} {subject}", "apple", "a scribble of", "a scribble of apple"),
        ("{trigger} {subject}", "a scribble of apple", "a scribble of", "a scribble of apple"),
        ("{trigger} {subject}", "apple", "", "apple"),
        ("{trigger}, {subject}", "apple", "", "apple"),
        ("{subject}, {trigger}, best", "cat\ndog", "in mystyle", "cat\ndog, in mystyle, best"),
        ("{subject} and {subject}", "cat", "unused", "cat and cat"),
        ("{subject} {x}", "{trigger}", "t", "{trigger} {x}"),
    ],
)
def test_a_prompt_is_the_template_filled(part, template, subject, trigger, expected) -> None:
    assert part("template").fill(template, subject, trigger) == expected


def test_a_template_without_a_place_for_the_subject_is_refused(part) -> None:
    with pytest.raises(part("errors").NodeError, match="{subject}"):
        part("template").fill("{trigger} apple", "pear", "x")


def test_the_default_prompt_is_the_papers_caption(pack) -> None:
    inputs = pack.NODE_CLASS_MAPPINGS["ScribblePrompt"].INPUT_TYPES()["required"]
    given = {name: spec[1]["default"] for name, spec in inputs.items()}
    assert pack.NODE_CLASS_MAPPINGS["ScribblePrompt"]().fill(**given) == ("a scribble of apple",)


def flat(value: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_the_sheet_holds_every_picture_unchanged_in_its_place(part) -> None:
    draw = part("sheet").draw
    columns = [[flat(10), flat(20)], [flat(30), flat(40)], [flat(50)]]
    sheet = np.asarray(draw(columns, []))
    assert sheet.shape == (4 + 2 * 36, 4 + 3 * 52, 3)
    for c, column in enumerate(columns):
        for r, picture in enumerate(column):
            top, left = 4 + r * 36, 4 + c * 52
            assert (sheet[top : top + 32, left : left + 48] == picture).all()
    assert (sheet[40:72, 108:156] == 255).all()  # the short column's empty cell
    labelled = np.asarray(draw(columns, ["scale 0", "scale 0.5", "scale 1"], title="a scribble of apple"))
    assert (labelled[-76:][4:] == sheet[4:]).all() and labelled.shape[0] > sheet.shape[0]
    assert (labelled[:-76] < 128).any()  # something is written there


def test_a_smaller_picture_is_centred_and_its_pixels_stay(part) -> None:
    sheet = np.asarray(part("sheet").draw([[flat(0, 32, 32)], [flat(9, 16, 16)]], []))
    assert (sheet[12:28, 48:64] == 9).all() and (sheet == 9).all(axis=2).sum() == 256


@pytest.mark.parametrize(("columns", "labels", "named"), [([], [], "none"), ([[flat(0)]], ["a", "b"], "2 for 1")])
def test_a_sheet_that_cannot_be_is_refused(part, columns, labels, named) -> None:
    with pytest.raises(part("errors").NodeError, match=named):
        part("sheet").draw(columns, labels)


def test_an_absurdly_large_sheet_is_refused_before_it_is_made(part) -> None:
    wide = np.broadcast_to(np.zeros(3, dtype=np.uint8), (1, 30000, 3))
    with pytest.raises(part("errors").NodeError, match="pixels"):
        part("sheet").draw([[wide], [wide]], [])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_grid_node_gives_the_hosts_kind_of_picture(pack, channels) -> None:
    batch = torch.full((2, 32, 32, channels), 0.5)
    batch[..., -1] = 1.0 if channels == 4 else 0.5
    node = pack.NODE_CLASS_MAPPINGS["ScribbleGrid"]
    (sheet,) = node().lay_out(images=[batch, batch], title=[""], labels=["scale 0", "scale 1"])
    assert sheet.dtype == torch.float32 and sheet.shape[0] == 1 and sheet.shape[3] == 3
    saved = (255.0 * sheet.numpy()).astype("uint8")  # as the host's Save Image has it
    assert saved[0, -20, 20].tolist() == [127] * 3 and saved.max() == 255


def test_transparency_becomes_white_paper(part) -> None:
    picture = torch.zeros(1, 3, 4)  # black, of three opacities
    picture[0, :, 3] = torch.tensor([0.0, 0.5, 1.0])
    assert part("sheet").as_uint8(picture)[0, :, 0].tolist() == [255, 127, 0]


@pytest.mark.parametrize(
    ("card", "metadata", "scale", "words"),
    [
        (None, {}, None, ""),
        (None, {"scribble_scale": "0.7", "modelspec.trigger_phrase": "a scribble of"}, 0.7, "a scribble of"),
        ({"preferred weight": 0.5, "activation text": "mine"}, {"scribble_scale": "0.7"}, 0.5, "mine"),
        ({"preferred weight": 0, "activation text": " "}, {"scribble_scale": 0.7, "modelspec.trigger_phrase": "t"}, 0.7, "t"),
        ({"preferred weight": "0.4"}, {}, 0.4, ""),
        ({"preferred weight": True, "activation text": 3}, {"scribble_scale": "nan"}, None, ""),
        ([], {"scribble_scale": "-1"}, None, ""),
        ("{", {"scribble_scale": "0.7"}, 0.7, ""),
    ],
)
def test_the_card_goes_before_the_metadata(part, tmp_path, card, metadata, scale, words) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path, {key: str(value) for key, value in metadata.items()})
    if card is not None:
        (tmp_path / "x.json").write_text(card if isinstance(card, str) else json.dumps(card))
    advice = part("advice").of_file(path)
    assert (advice.scale, advice.trigger_words) == (scale, words)


@pytest.mark.parametrize("card", [[1], "{", {"preferred weight": float("inf")}])
def test_a_card_that_cannot_be_read_is_logged(part, tmp_path, card, caplog) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text(card if isinstance(card, str) else json.dumps(card))
    assert part("advice").of_file(tmp_path / "x.safetensors").scale is None
    assert ("x.json" in caplog.text) is (card in ([1], "{"))


def test_a_card_of_windows_notepad_is_read(part, tmp_path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text(json.dumps({"preferred weight": 0.4}), encoding="utf-8-sig")
    assert part("advice").of_file(tmp_path / "x.safetensors").scale == 0.4


def test_advice_for_a_broken_file_is_none_and_no_error(part, tmp_path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 20)
    assert part("advice").of_file(tmp_path / "x.safetensors") == part("advice").Advice()
    assert part("advice").of_file(tmp_path / "missing.safetensors") == part("advice").Advice()


def test_what_our_trainer_writes_is_understood(part, tmp_path) -> None:
    from trainer.lora import export
    from trainer.recipe import Recipe

    recipe = Recipe(scale=0.65)
    pictures = [SimpleNamespace(caption="a scribble of cat")]
    dataset = SimpleNamespace(trigger="a scribble of", train=pictures, without_reg=pictures, per_epoch=1, attribution="")
    base = SimpleNamespace(name="x/sd15", family="sd_v1", resolution=512, unet=torch.nn.Linear(1, 1))
    path = tmp_path / "scribble.safetensors"
    metadata = merged({}, export.metadata(recipe, base, dataset, "scribble", steps=1, total=1, started=0.0))
    save_file({"a": torch.zeros(1)}, path, metadata)
    expected = part("advice").Advice(0.65, "a scribble of")
    assert part("advice").of_file(path) == expected
    save_file({"a": torch.zeros(1)}, path, {})
    export.write_card(path, recipe, base, dataset, print)
    assert part("advice").of_file(path) == expected
