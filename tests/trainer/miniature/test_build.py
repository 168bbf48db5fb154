"""The build's own parts: icons, captions, the folded latent scale, and training resumed as if never stopped."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open

from trainer.miniature.build import denoiser, latents, pictures, prompts, remembered
from trainer.miniature.build.decoder import train_decoder
from trainer.miniature.build.icons import STYLES, Icons
from trainer.miniature.build.ship import ship
from trainer.miniature.narrow import END, START, narrow_vae
from trainer.miniature.packed import WHOLE, read_narrow
from trainer.miniature.tokens import token_noise


class Words:
    """A tokenizer of whole words, enough for these tests."""

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": [sum(map(ord, word)) for word in text.split()]}


def test_a_row_of_tokens_is_as_hosts_pad_it() -> None:
    assert prompts.padded([5, 6]) == [START, 5, 6, *[END] * 74]
    full = prompts.padded(list(range(100)))
    assert full == [START, *range(75), END]


def test_strange_tokens_share_a_row_and_are_still_told_apart() -> None:
    torch.manual_seed(0)
    table = prompts.FewTokens([320, 400, START, END])
    known, strange = table(torch.tensor([320, 400])), table(torch.tensor([7, 8]))
    assert torch.equal(known, table.rows[:2]) and torch.equal(table.weight[7], strange[0])
    assert not torch.equal(strange[0], strange[1]) and (strange - table.rows[-1]).abs().max() <= 0.03
    strange.sum().backward()
    assert table.rows.grad is not None and table.rows.grad[-1].abs().sum() > 0 and table.rows.grad[:4].abs().sum() == 0


def test_token_noise_is_the_same_on_every_machine() -> None:
    noise = token_noise([])
    assert noise.shape == (49408, 64) and abs(float(noise.mean())) < 1e-4
    assert hashlib.sha256(noise.numpy().tobytes()).hexdigest().startswith("642446a636c761e6")
    assert float(noise.std()) == pytest.approx(0.06 / 12**0.5, rel=1e-2)  # of a uniform distribution


def test_captions_name_style_word_and_ground_and_are_dropped_as_often_as_they_should_be() -> None:
    captions, rng = prompts.Captions(Words(), [START, END]), np.random.default_rng(0)
    rows = [captions.draw(("apple",), "noto", "blue", rng) for _ in range(2000)]
    empty = sum(row[1] == END for row in rows) / len(rows)
    assert empty == pytest.approx(prompts.DROPPED, abs=0.02)
    told = {pictures.caption(("apple",), "noto", "blue", np.random.default_rng(s)) for s in range(60)}
    assert told == {"a drawing of apple on a blue background", "a drawing of an apple on a blue background",
                    "apple on a blue background", "an apple on a blue background"}


def test_a_picture_is_its_icon_on_its_ground() -> None:
    icon = np.zeros((112, 112, 4), np.uint8)
    icon[20:90, 20:90] = (200, 0, 0, 255)
    for name, style in STYLES.items():
        made = pictures.compose([icon], name, "", pictures.MILD, np.random.default_rng(0))
        assert made.shape == (128, 128, 3) and made[64, 64].tolist() == [200, 0, 0]
        assert (made[2, 2] == 255).all() == (style != "photo")


def test_folding_the_scale_leaves_what_is_decoded_and_makes_latents_of_size_one_with_white_at_zero() -> None:
    torch.manual_seed(0)
    vae, rng = narrow_vae().eval(), np.random.default_rng(0)
    seen = np.stack([pictures.strokes(rng) for _ in range(8)])
    before = latents.encode(vae, seen)
    with torch.no_grad():
        decoded = vae.decode(before).sample
        latents.fold_scale(vae, before)
        after = latents.encode(vae, seen)
        assert torch.allclose(vae.decode(after).sample, decoded, atol=1e-4)
    scaled = after * latents.SCALE
    assert float(scaled.std()) == pytest.approx(1, abs=0.01)
    white = latents.encode(vae, np.full((1, 128, 128, 3), 255, np.uint8))
    assert white[0, :, 8, 8].abs().max() < 1e-2
    with torch.no_grad():
        x = torch.randn(1, 3, 128, 128)
        deviations = vae.encode(x).latent_dist.std
    assert torch.allclose(deviations, deviations.mean().expand_as(deviations))  # the same everywhere, by design


def test_several_things_stand_apart_in_the_order_of_their_caption() -> None:
    red, blue = (np.full((64, 64, 4), colour, np.uint8) for colour in ((200, 0, 0, 255), (0, 0, 200, 255)))
    for side in (128, 192):
        two, four = (pictures.compose(some, "noto", "", pictures.MILD, np.random.default_rng(0), side)
                     for some in ([red, blue], [red, red, blue, blue]))
        left, right = side // 4, 3 * side // 4
        assert two.shape == (side, side, 3)
        assert two[side // 2, left].tolist() == [200, 0, 0] and two[side // 2, right].tolist() == [0, 0, 200]
        assert (two[:, side // 2] == 255).all() and (two[2] == 255).all()
        assert four[left, right].tolist() == [200, 0, 0] and four[right, left].tolist() == [0, 0, 200]


def test_captions_of_several_things_and_what_is_held_back() -> None:
    rng, words = np.random.default_rng(0), ["apple", "tree", "bus", "owl"]
    assert pictures.named(("apple", "owl"), articles=True) == "an apple and an owl"
    assert pictures.named(("owl",) * 3) == "three owls"
    seen = {pictures.things(word, words, rng) for word in words for _ in range(200)}
    possible = {(a, b) for a in words for b in words if a != b} | {(a,) * n for a in words if a != "bus" for n in (2, 3, 4)}
    assert seen == {some for some in possible if not pictures.held_back(some)}
    assert 0 < len(possible - seen) < len(seen)


@pytest.mark.parametrize("side", [64, 128])
def test_latents_are_of_the_size_asked_for_and_made_once(tmp_path, side) -> None:
    icons = Icons(rgba=np.full((2, 112, 112, 4), 9, np.uint8), words=np.array(["a", "b"]), sets=np.array(["noto", "twemoji"]))
    narrow_vae().save_pretrained(tmp_path / "vae")
    pools = [latents.Pool(side=side, share=1.0, views=3, spread=pictures.MILD)]
    latents.make_latents(tmp_path, icons, pools)
    made = torch.load(tmp_path / "latents.pt", weights_only=True)
    assert made["words"] == ["a", "b"] and made["pools"][0]["latents"].shape == (6, 4, side // 8, side // 8)
    assert [row[:2] for row in made["pools"][0]["rows"]] == [[("a",), "noto"]] * 3 + [[("b",), "twemoji"]] * 3
    when = (tmp_path / "latents.pt").stat().st_mtime_ns
    latents.make_latents(tmp_path, icons, pools)
    assert (tmp_path / "latents.pt").stat().st_mtime_ns == when


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """A work folder with latents of two sizes, and a UNet small enough for a test."""
    def unet() -> UNet2DConditionModel:
        return UNet2DConditionModel(sample_size=16, block_out_channels=(32,) * 4, layers_per_block=1, cross_attention_dim=64)

    monkeypatch.setattr("trainer.miniature.build.pair.narrow_unet", unet)
    rows = [[("apple",), "noto", ""], [("star", "apple"), "twemoji", "red"]] * 4
    pools = [{"share": 0.5, "latents": torch.randn(8, 4, side, side).half(), "rows": rows} for side in (16, 24)]
    torch.save({"pools": pools, "words": ["apple", "star"], "settings": ""}, tmp_path / "latents.pt")
    return tmp_path


def test_a_training_in_two_runs_equals_one_run(small) -> None:
    captions, known = prompts.Captions(Words(), [START, END]), [START, END]
    for steps, name in ((2, "two"), (4, "two"), (4, "one")):
        folder = small / name
        folder.mkdir(exist_ok=True)
        (folder / "latents.pt").write_bytes((small / "latents.pt").read_bytes())
        assert denoiser.train_unet(folder, None, captions, known, denoiser.Plan(steps=steps, batch=4))
    one, two = (torch.load(small / name / "unet.pt", weights_only=True) for name in ("one", "two"))
    assert one["step"] == two["step"] == 4 and one["samples"] == two["samples"]
    assert all(torch.equal(one["average"][name], two["average"][name]) for name in one["average"])
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])


def test_a_sheet_of_the_saved_state_has_a_picture_for_each_word_and_style(small) -> None:
    captions, known = prompts.Captions(Words(), [START, END]), [START, END]
    denoiser.train_unet(small, None, captions, known, denoiser.Plan(steps=1, batch=4))
    narrow_vae().save_pretrained(small / "vae")
    with Image.open(denoiser.draw_state(small, captions, known)) as sheet:
        assert sheet.size == (2 * 128, 7 * 128)  # apple and star; four styles, no style, with another word, twice


def test_the_copy_is_read_if_the_state_is_missing(small) -> None:
    captions, known, mirror = prompts.Captions(Words(), [START, END]), [START, END], small / "copy"
    mirror.mkdir()
    denoiser.train_unet(small, mirror, captions, known, denoiser.Plan(steps=1, batch=4))
    (small / "unet.pt").unlink()
    denoiser.train_unet(small, mirror, captions, known, denoiser.Plan(steps=2, batch=4))
    assert torch.load(small / "unet.pt", weights_only=True)["step"] == 2


def test_more_training_of_the_decoder_leaves_the_latents(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("trainer.miniature.build.autoencoder.BATCH", 2)
    icons = Icons(rgba=np.zeros((1, 112, 112, 4), np.uint8), words=np.array(["a"]), sets=np.array(["noto"]))
    torch.manual_seed(0)
    narrow_vae().save_pretrained(tmp_path / "vae")
    before = AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert train_decoder(icons, tmp_path, None, 2)
    after = AutoencoderKL.from_pretrained(tmp_path / "vae")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        z = before.encode(x).latent_dist.mean
        assert torch.equal(z, after.encode(x).latent_dist.mean)
        assert not torch.equal(before.decode(z).sample, after.decode(z).sample)


def test_the_shipped_file_has_the_averaged_weights_words_and_licences(small) -> None:
    captions, known = prompts.Captions(Words(), [START, END]), [START, END]
    denoiser.train_unet(small, None, captions, known, denoiser.Plan(steps=1, batch=4))
    narrow_vae().save_pretrained(small / "vae")
    path = ship(small, captions, known)
    narrow, average = read_narrow(path), torch.load(small / "unet.pt", weights_only=True)["average"]
    assert narrow.words == ("apple", "star")
    weight = average["unet.mid_block.resnets.0.conv1.weight"]
    apart = (narrow.unet["mid_block.resnets.0.conv1.weight"] - weight).abs().max()
    assert apart <= weight.abs().max() / (2 * WHOLE["unet"][0]) + 1e-6
    rows = next(tensor for name, tensor in average.items() if name.endswith("token_embedding.rows"))
    table = narrow.text_encoder["embeddings.token_embedding.weight"]
    assert torch.allclose(table[[START, END]], rows[:2], atol=1e-3) and (table[0] - rows[2]).abs().max() < 0.035
    with safe_open(path, "pt") as file:
        assert "Noto Emoji" in file.metadata()["attribution"] and file.metadata()["samples"] == "4"


def test_a_decay_ends_at_zero() -> None:
    plan = denoiser.Plan(steps=1000, decay=100)
    assert [plan.factor(step) for step in (0, 199, 899, 950, 1000)] == pytest.approx([1 / 200, 1, 1, 0.5, 0])


def test_the_loss_weights_favour_noise_and_have_mean_one() -> None:
    weights = denoiser.Noise().weights
    assert float(weights.mean()) == pytest.approx(1, abs=1e-5)
    assert float(weights[800]) > float(weights[400]) > float(weights[100])


def test_icons_of_some_words_keep_their_order() -> None:
    icons = Icons(rgba=np.zeros((3, 1, 1, 4), np.uint8), words=np.array(["a", "b", "a"]), sets=np.array(["x", "x", "y"]))
    assert icons.of({"a"}).sets.tolist() == ["x", "y"]


def test_distances_of_pictures_are_root_mean_squares() -> None:
    pictures = [np.random.default_rng(k).integers(0, 256, (128, 128, 3), dtype=np.uint8) for k in range(3)]
    small = remembered._small(pictures)
    expected = [[np.sqrt(((a - b) ** 2).mean()) for b in small] for a in small]
    np.testing.assert_allclose(remembered._distances(small, small), expected, atol=0.05)
    assert remembered._small([np.full((128, 128, 3), 7, np.uint8)]).tolist() == [[7.0] * 32 * 32 * 3]
