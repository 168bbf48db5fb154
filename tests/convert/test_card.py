"""The web UI's card: one reader and one writer; the user's text is never lost."""

import json

import pytest

import convert
from convert.files.card import advice, card_path, read_card, set_aside, write_card

FIELDS = {"activation text": "a scribble of", "preferred weight": 0.8, "notes": "é, 落書き"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_card_is_read_with_and_without_the_byte_order_mark(encoding, tmp_path):
    lora = tmp_path / "a.safetensors"
    assert read_card(lora) == {}
    card_path(lora).write_text(json.dumps(FIELDS, ensure_ascii=False), encoding=encoding)
    assert read_card(lora) == FIELDS


def test_writing_keeps_every_other_field(tmp_path):
    lora = tmp_path / "a.safetensors"
    card_path(lora).write_text(json.dumps({**FIELDS, "sd version": "SD2"}), encoding="utf-8-sig")
    assert write_card(lora, {"preferred weight": 0.5}, defaults={"sd version": "SD1", "description": "d"}) == card_path(lora)
    expected = {**FIELDS, "sd version": "SD2", "description": "d", "preferred weight": 0.5}
    assert read_card(lora) == expected


DAMAGED = [
    '{"notes": "half', "[1]", '{"a": ' + "[" * 100_000, '{"a": ' + "9" * 400 + "}", '{"a": "' + "x" * (1 << 20) + '"}', "\xff",
]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_card_is_an_error_and_stays_as_it_is_until_it_is_set_aside(text, tmp_path):
    lora = tmp_path / "a.safetensors"
    card_path(lora).write_bytes(text.encode("latin-1"))
    for use in (read_card, lambda lora: write_card(lora, FIELDS)):
        with pytest.raises(convert.BadCard) as caught:
            use(lora)
        assert caught.value.path == card_path(lora)
        assert "\n" not in str(caught.value)
        assert card_path(lora).read_bytes() == text.encode("latin-1")
    (tmp_path / "a.json.bak").write_text("older")
    assert set_aside(lora) == tmp_path / "a.json.bak-2"
    assert (tmp_path / "a.json.bak-2").read_bytes() == text.encode("latin-1")
    assert (tmp_path / "a.json.bak").read_text() == "older"
    write_card(lora, FIELDS)
    assert read_card(lora)["notes"] == FIELDS["notes"]


def test_the_card_goes_before_the_metadata():
    metadata = {"scribble_scale": "0.4", "modelspec.trigger_phrase": "a  scribble\nof"}
    assert advice({}, metadata) == advice({"preferred weight": 0, "activation text": " "}, metadata)
    assert (advice({}, metadata).scale, advice({}, metadata).trigger_words) == (0.4, "a scribble of")
    assert advice({"preferred weight": "0.7"}, metadata).scale == 0.7
    assert advice({"preferred weight": float("nan")}, {"scribble_scale": "no number"}).scale is None
