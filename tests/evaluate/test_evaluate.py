"""The whole program on a random base, LoRA and CLIP: numbers from the pictures on disk, resume, determinism, --write."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from convert import read
from tests.trainer.small_run import Forked
from trainer.data import load_dataset
from trainer.evaluate.__main__ import main
from trainer.evaluate.page import page
from trainer.evaluate.settings import Settings
from trainer.evaluate.subjects import make_plan
from trainer.recipe import Recipe

SMALL = ["--scales", "0,0.5,1", "--per-scale", "3", "--prompts", "2", "--seeds", "2", "--rows", "2", "--drawings", "3",
         "--sampling-steps", "2", "--noises", "1", "--micro-batch", "4", "--device", "cpu"]  # fmt: skip


def arguments(lora: Path, out: Path, clip: Path) -> list[str]:
    return [str(lora), "--out", str(out), "--clip", str(clip), "--image-clip", str(clip), "--cache", str(out.parent / "cache"),
            *SMALL]


@pytest.fixture(scope="module")
def finished(made: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report's folder, made once."""
    out = tmp_path_factory.mktemp("evaluated") / "report"
    assert main(arguments(made, out, clip)) == 0
    return out


@pytest.fixture
def report(finished: Path, tmp_path: Path) -> dict:
    """The report; `tmp_path`/report is this test's own copy."""
    shutil.copytree(finished, tmp_path / "report")
    return json.loads((finished / "report.json").read_text())


def test_numbers_are_those_of_the_pictures_by_hand(report: dict, recipe: Recipe, clip: Path, tmp_path: Path) -> None:
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    processor = CLIPImageProcessor.from_pretrained(clip)
    real = {}
    for example in load_dataset(recipe, cache=tmp_path, say=print, held_out_rows=3).held_out:
        real.setdefault(example.category, []).append(example)
    assert report["groups"]["seen"]["references"] == {name: [e.source for e in found] for name, found in real.items()}

    @torch.no_grad()
    def features(pictures: list[Image.Image]) -> torch.Tensor:
        return model.get_image_features(**processor(pictures, return_tensors="pt")).pooler_output

    scores: dict[str, list] = {}
    for subject in report["groups"]["seen"]["subjects"]:
        drawn = features([Image.open(tmp_path / "report" / file) for file in subject["pictures"]])
        with torch.no_grad():
            text = model.get_text_features(**tokenizer([subject["prompt"]], return_tensors="pt")).pooler_output
        score = 100 * torch.cosine_similarity(drawn, text).clamp(min=0)
        np.testing.assert_allclose(subject["clip_score"], score, atol=1e-3)
        scores.setdefault(subject["name"], []).append(score.numpy())
        others = features([Image.fromarray(example.pixels(64)) for example in real[subject["name"]]])
        alike = torch.stack([torch.cosine_similarity(row[None], others).mean() for row in drawn])
        np.testing.assert_allclose(subject["similarity"], alike, atol=1e-5)
    mean = np.mean([np.mean(found, axis=0) for found in scores.values()], axis=0)
    np.testing.assert_allclose(report["groups"]["seen"]["clip_score"]["mean"], mean, atol=1e-3)
    everything: dict[str, list] = {}
    for group in report["groups"].values():
        for subject in group["subjects"]:
            everything.setdefault(subject["name"], []).append(subject["similarity"])
    best = int(np.mean([np.mean(found, axis=0) for found in everything.values()], axis=0)[1:].argmax()) + 1
    assert report["recommended"]["best"] == [0, 0.5, 1][best] and report["recommended"]["categories"] == len(everything) == 4


def test_the_report_contains_every_number_and_picture(report: dict, tmp_path: Path) -> None:
    out = tmp_path / "report"
    unseen = {subject["name"] for subject in report["groups"]["unseen"]["subjects"]}
    assert unseen <= {"star", "sun"} and report["groups"]["unseen"]["similarity"]["n"] == 3
    assert {"torch", "diffusers"} <= set(report["versions"]) and report["settings"]["guidance"] == 7.5
    for grid in report["grids"].values():
        with Image.open(out / grid["file"]) as image:
            assert image.width > 3 * 192
    assert list(report["grids"]) == ["figure-5-seeds", "figure-6-seen", "figure-7-unseen", "figure-8-complex-with",
                                     "figure-9-complex-without"]  # fmt: skip
    with_words, without = (report["grids"][f"figure-{k}"]["rows"] for k in ("8-complex-with", "9-complex-without"))
    assert [row["seed"] for row in with_words] == [row["seed"] for row in without]
    assert [row["prompt"] for row in with_words] == ["a scribble of " + row["prompt"] for row in without]
    page = (out / "index.html").read_text()
    assert not re.search(r"""(src|href)=['"](?!data:image|figure-|pictures/)""", page)  # opens from disk, alone
    assert "viewport" in page and "prefers-color-scheme: dark" in page
    assert page.count("<th scope=row>") == sum(len(report["scales"]) for _ in re.findall("class=numbers", page))
    frames = re.findall(r"<div class=(?:numbers|wide)[^>]*>", page)  # what is wider than a telephone scrolls, by keyboard too
    assert len(frames) > 5 and all("tabindex=0 role=region aria-label='" in frame for frame in frames)
    assert page.count("data:image/svg+xml") == 7 and page.count("data:image/jpeg") == 5


def test_running_again_gives_the_same_report_and_a_stop_changes_nothing(
    report: dict, lora: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "report"
    before = {name: (out / name).read_bytes() for name in ("report.json", "index.html", "figure-11-similarity.png")}
    for picture in sorted((out / "pictures").iterdir())[::5]:
        picture.unlink()
    (out / "report.json").unlink()
    assert main(arguments(lora, out, clip)) == 0
    for name, data in before.items():
        assert (out / name).read_bytes() == data, name
    capsys.readouterr()
    assert main(arguments(lora, out, clip)) == 0 and "is finished" in capsys.readouterr().out
    (out / "report.json").unlink()
    known = json.loads((out / "identities.json").read_text())
    (out / "identities.json").write_text(json.dumps(known | {"base": "of other weights"}))
    assert main(arguments(lora, out, clip)) == 1 and "the base changed since this report began" in capsys.readouterr().err
    assert main([*arguments(lora, out, clip), "--seed", "5"]) == 2
    assert re.fullmatch(r"trainer.evaluate: --out .*holds another report \(--seed .*\n", capsys.readouterr().err)


@pytest.mark.skipif(os.name == "nt", reason="needs fork")
def test_a_killed_evaluation_can_be_continued(report: dict, lora: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    assert main([*arguments(lora, out, clip), "--device", "abacus"]) == 2  # a refused start leaves the folder free
    child = Forked(main, arguments(lora, out, clip), tmp_path / "log")
    while not child.ended and len(list((out / "pictures").glob("[!.]*.png"))) < 5:
        time.sleep(0.02)
    child.kill(signal.SIGKILL)
    status, log = child.wait()
    assert status == -signal.SIGKILL, log
    assert not (out / "report.json").exists() and list((out / "pictures").iterdir())
    assert main(arguments(lora, out, clip)) == 0
    for name in ("report.json", "index.html"):  # of another folder
        assert (out / name).read_bytes() == (tmp_path / "report" / name).read_bytes()


def test_write_puts_the_scale_where_hosts_read_it_and_keeps_the_rest(
    report: dict, lora: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from safetensors.torch import load_file

    tensors, said = load_file(lora), read(lora).metadata
    card = json.loads(lora.with_suffix(".json").read_text())
    gain = {"mean": 0.2, "low": 0.1, "high": 0.3}
    report["recommended"] |= {"scale": 0.5, "low": 0.5, "high": 1.0, "verdict": "best", "gain": gain}
    (tmp_path / "report" / "report.json").write_text(json.dumps(report))
    assert main([*arguments(lora, tmp_path / "report", clip), "--write"]) == 0  # and the digest is still the report's
    assert main([*arguments(lora, tmp_path / "report", clip), "--write"]) == 0
    now = read(lora).metadata
    assert now["scribble_scale"] == "0.5" and json.loads(now["scribble_scale_interval"]) == [0.5, 1.0]
    assert {key: now[key] for key in said} == said | {"scribble_scale": "0.5"}
    assert json.loads(lora.with_suffix(".json").read_text()) == card | {"preferred weight": 0.5}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(lora).items())
    report["recommended"] |= {"scale": None, "verdict": "noise"}
    (tmp_path / "report" / "report.json").write_text(json.dumps(report))
    capsys.readouterr()
    assert main([*arguments(lora, tmp_path / "report", clip), "--write"]) == 1
    assert "was not changed" in capsys.readouterr().err and read(lora).metadata == now
    lora.with_suffix(".json").write_text("[broken")
    assert main([*arguments(lora, tmp_path / "report", clip), "--write"]) == 1
    assert "is not valid JSON" in capsys.readouterr().err


def test_invalid_options_are_one_line(lora: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from PIL import Image as Pictures

    own = tmp_path / "own"
    own.mkdir()
    Pictures.new("RGB", (64, 64)).save(own / "a.png")
    cases = {("--data", str(own)): "no pictures were held out", ("--base", "/no/base"): "no such file or folder",
             ("--clip", str(own)): "has no model.safetensors", ("--categories", "unicorn"): "no such category",
             ("--device", "abacus"): "expected auto"}  # fmt: skip
    for number, (extra, words) in enumerate(cases.items()):
        status = main([*arguments(lora, tmp_path / f"out{number}", clip), *extra])
        error = capsys.readouterr().err
        assert status in (1, 2) and words in error and error.startswith("trainer.evaluate: ") and error.count("\n") == 1, error
        assert not (tmp_path / f"out{number}" / "settings.json").exists()


def test_every_number_is_in_the_json_and_the_csv(report: dict, tmp_path: Path) -> None:
    import csv

    with open(tmp_path / "report" / "report.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for kind, group in report["groups"].items():
        assert len(group["losses"]) > 0 and len(group["losses"][0]["held_out_loss"]) == 3
        np.testing.assert_allclose(group["held_out_loss"]["against_base"]["mean"][0], 0)
        for subject in group["subjects"]:
            of = [row for row in rows
                  if (row["group"], row["prompt"], row["seed"]) == (kind, subject["prompt"], str(subject["seed"]))]
            assert [float(row["similarity"]) for row in of] == subject["similarity"]
            assert [row["picture"] for row in of] == subject["pictures"]
        for drawing in group["losses"]:
            found = [float(row["held_out_loss"]) for row in rows if row["name"] == drawing["name"] and row["group"] == kind]
            assert found == drawing["held_out_loss"]
    page = (tmp_path / "report" / "index.html").read_text()
    for grid in report["grids"].values():
        assert all(f"{row['prompt']}, seed {row['seed']} ({grid['file']})" in page for row in grid["rows"])
    assert report["complex"]["with"]["ink_distance"]["mean"] != report["complex"]["without"]["ink_distance"]["mean"]
    assert report["diversity"]["categories"] >= 1 and report["judges"]["dino"]["none"]


def test_links_to_pictures_are_quoted(report: dict) -> None:
    """Our own names need no quoting, a user's folder might: the page quotes every path in the report."""
    report["groups"]["seen"]["subjects"][0]["pictures"][0] = "pictures/50% #1 & co.png"
    html = page(report | {"grids": {}}, {}, {})
    assert "href='pictures/50%25%20%231%20%26%20co.png'" in html


def test_the_held_out_loss_is_measured_on_held_out_drawings(report: dict, recipe: Recipe, tmp_path: Path) -> None:
    dataset = load_dataset(recipe, cache=tmp_path, say=print, held_out_rows=3)
    held_out, trained = ({example.source for example in part} for part in (dataset.held_out, dataset.train))
    names = {row["name"] for row in report["groups"]["seen"]["losses"]}
    assert names == held_out and not names & trained


def test_references_are_those_that_training_held_out(recipe: Recipe, tmp_path: Path) -> None:
    """Also for categories with fewer drawings than requested."""
    many = replace(recipe, data="doodles", categories="apple,sun", per_category=60)
    trained = {example.digest for example in load_dataset(many, cache=tmp_path, say=print).train}
    plan = make_plan(Settings(per_scale=4, prompts=4).settled("like_sd_v1"), many, side=64, cache=tmp_path,
                     say=print)
    references = [example for group in plan.groups for found in group.references.values() for example in found]
    assert references and not trained & {example.digest for example in references}


def test_own_pictures_are_judged_by_their_held_out_captions(lora: Path, clip: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for k in range(6):
        size = (64, 64) if k == 5 else (256, 64)  # drawn and judged in the shape of most of them
        Image.new("RGB", size, (40 * k, 90, 10)).save(own / f"{k}.png")
        (own / f"{k}.txt").write_text(f"colour number {k}")
    extra = ["--data", str(own), "--held-out", "0.5", "--trigger", "in mystyle", "--scales", "0,1",
             "--resolution", "128"]
    assert main([*arguments(lora, tmp_path / "report", clip), *extra]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    group = report["groups"]["held-out captions"]
    assert all("in mystyle" not in subject["plain"] for subject in group["subjects"])
    assert {Image.open(path).size for path in (tmp_path / "report" / "pictures").glob("*.png")} == {(256, 64)}
    assert report["recommended"]["verdict"] == "few"  # three held-out captions
    assert {len(found) for found in group["references"].values()} == {3}
    assert all(subject["prompt"].startswith("in mystyle colour number") for subject in group["subjects"])
