"""The judge that ships: its words, its accuracy on unseen drawings, its file, its training."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.errors import JobError
from trainer.data.records import process
from trainer.miniature import drawings
from trainer.miniature.build import judge_pictures
from trainer.miniature.build.icons import STYLES, Icons
from trainer.miniature.build.judge import rates, train_judge
from trainer.miniature.build.judge_drawn import check_drawn
from trainer.miniature.build.pictures import WORDS
from trainer.miniature.judge import JUDGE, SmallClip, prepare, read_judge, write_judge

EASY = ("rainbow", "door", "bus", "envelope", "car", "snowflake", "sailboat", "apple", "cactus", "wine glass", "light bulb",
        "crown")


@pytest.fixture(scope="module")
def judge() -> SmallClip:
    return read_judge()


def seen_as(word: str, count: int) -> list[np.ndarray]:
    return [process(drawing, 128) for drawing in drawings.drawings(word)[:count]]


def test_features_are_of_length_one_and_the_same_every_time(judge: SmallClip) -> None:
    shown, texts = prepare(seen_as("apple", 4)), ["a scribble of apple", "", "zyx"]
    for once, again in ((judge.images(shown), judge.images(shown)), (judge.texts(texts), judge.texts(texts))):
        assert once.shape[1] == 128 and torch.equal(once, again)
        torch.testing.assert_close(once.norm(dim=1), torch.ones(len(once)))
    torch.testing.assert_close(judge.images(shown[2:3]), judge.images(shown)[2:3])  # whatever else is in the batch


def test_it_recognises_unseen_drawings(judge: SmallClip) -> None:
    among = sorted(WORDS)
    shown = [(word, picture) for word in EASY for picture in seen_as(word, 8)]
    first, five = rates(judge.images(prepare([picture for _, picture in shown])),
                        judge.texts([f"a scribble of {word}" for word in among]), [among.index(word) for word, _ in shown])
    assert first > 0.5 and five > 0.75  # chance: 1/60, 1/12


def test_a_text_is_matched_by_known_words_the_longest_first(judge: SmallClip) -> None:
    def known(text: str) -> list[str]:
        return [judge.words[place] for place in judge.read(text).places]

    assert known("a scribble of Hot Dog") == ["scribble", "hot dog"]
    assert known("two apples, a doodle") == ["apple", "scribble"]
    assert known("T-shirt on a green background") == ["t-shirt", "green background"]
    assert known("the bus") == ["bus"]
    assert known("a photo of a pear and The Eiffel Tower") == ["photo", "pear", "The Eiffel Tower"]
    assert judge.read("masterpiece, red apple, 8k").unknown == ["masterpiece", "red", "k"]
    assert not any(judge.read(f"a scribble of {word}").unknown for word in drawings.words())


def test_unknown_words_and_order_change_nothing(judge: SmallClip) -> None:
    one, two, three = judge.texts(["apple on a red background", "masterpiece, on a red background an apple", "apple"])
    assert torch.equal(one, two) and not torch.allclose(one, three, atol=0.01)
    empty, strange = judge.texts(["", "masterpiece, 8k"])
    assert torch.equal(empty, strange) and float(empty.norm()) == pytest.approx(1)


def test_the_file_keeps_the_network_and_equal_networks_make_equal_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SmallClip(["apple", "scribble"]).eval()
    for name in ("one", "two"):
        write_judge(tmp_path / name, model.state_dict(), model.words, {"license": "mine"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    again, x = read_judge(tmp_path / "one"), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert again.words == model.words
        assert (again.images(x) * model.images(x)).sum(1).min() > 0.999
    weight = model.image[0][0].weight.detach()
    assert (again.image[0][0].weight - weight).abs().max() <= weight.abs().max() / 254 + 1e-7


def test_it_ships_small_and_with_its_licences() -> None:
    from safetensors import safe_open

    assert JUDGE.stat().st_size < 3_000_000
    with safe_open(JUDGE, "pt") as file:
        assert "Quick, Draw!" in file.metadata()["attribution"] and "Noto Emoji" in file.metadata()["attribution"]


@pytest.mark.parametrize("damage", ["gone", "cut", "other", "less", "no words"])
def test_a_damaged_file_is_one_line(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    path, words = tmp_path / "judge.safetensors", {"words": '["apple"]'}
    if damage == "cut":
        path.write_bytes(JUDGE.read_bytes()[:100_000])
    elif damage == "other":
        save_file({"weight": torch.zeros(3)}, path, words)
    elif damage == "less":
        save_file({name: tensor for name, tensor in load_file(JUDGE).items() if name != "text.vectors"}, path, words)
    elif damage == "no words":
        save_file(load_file(JUDGE), path)
    with pytest.raises(JobError, match="is not the miniature's judge, or it is damaged") as error:
        read_judge(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Icons, Path]:
    """Icons of two words by all sets, and a folder with drawings of them and of a third word."""
    rng, sets = np.random.default_rng(0), list(STYLES)
    for word in ("apple", "star", "anvil"):
        np.save(tmp_path / f"{word}.npy", rng.integers(0, 256, (6, 784)).astype(np.uint8))
    icons = Icons(rgba=rng.integers(0, 256, (10, 112, 112, 4)).astype(np.uint8), words=np.array(["apple"] * 5 + ["star"] * 5),
                  sets=np.array(sets * 2))
    return icons, tmp_path


def test_it_trains_only_on_its_own_rows(small: tuple[Icons, Path]) -> None:
    icons, folder = small
    pictures = judge_pictures.Pictures(icons, folder)
    assert len(pictures.own) == 4 and len(pictures.others) == 6  # two of six rows, twice; all six
    shipped = np.load(folder / "apple.npy")[[0, 1, 3, 4]]
    drawings.write_drawings(folder / "shipped.npz", folder, ["apple", "star"])
    with np.load(folder / "shipped.npz") as file:
        assert np.array_equal(file["apple"], shipped)
    assert drawings.for_the_judge(6).tolist() == [False, False, True] * 2


def test_a_batch_is_drawn_by_its_generator(small: tuple[Icons, Path]) -> None:
    pictures = judge_pictures.Pictures(*small)
    one, two, three = (pictures.draw(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.x, two.x) and not torch.equal(one.x, three.x)
    assert one.x.shape == (64, 3, 32, 32) and float(one.x.abs().max()) <= 1
    assert (one.ground[one.kind <= 0] == 0).all()  # drawings and outlines are on white


def test_a_training_in_two_runs_equals_one_run(small, capsys) -> None:
    icons, folder = small
    for steps, name in ((2, "one"), (1, "two"), (2, "two")):
        (folder / name).mkdir(exist_ok=True)
        assert train_judge(icons, folder, folder / name, steps)
    one, two = (torch.load(folder / name / "judge.pt", weights_only=True) for name in ("one", "two"))
    assert one["step"] == two["step"] == 2
    assert all(torch.equal(one["average"][key], two["average"][key]) for key in one["average"])
    assert "drawings not seen: " in capsys.readouterr().out
    assert train_judge(icons, folder, folder, 1, without="noto") and (folder / "judge-without-noto.safetensors").exists()
    assert capsys.readouterr().out.count("judge: noto: ") == 2


def test_what_the_miniature_draws_without_a_lora_shows_its_words(judge: SmallClip, capsys) -> None:
    check_drawn(judge, ["drawing"], EASY[:4])
    found = re.search(r"drawings: 4 pictures, 60 words: first ([\d.]+)%, among five ([\d.]+)%", capsys.readouterr().out)
    assert found and float(found[1]) >= 50 and float(found[2]) >= 75  # chance: 2 % and 8 %
