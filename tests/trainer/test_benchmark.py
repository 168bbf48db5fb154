"""The benchmark runs as a command and reports the requested numbers; its counts are those of the paper's model."""

from __future__ import annotations

import json

import pytest
import torch

from trainer.benchmark.__main__ import main
from trainer.benchmark.measure import race
from trainer.benchmark.models import SIZES, counted_flops
from trainer.benchmark.report import as_text
from trainer.plan import TRAIN_GFLOP


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_counted_operations_of_sd15_are_the_plans() -> None:
    assert counted_flops(SIZES["sd15"], 512) / 1e9 == pytest.approx(TRAIN_GFLOP, rel=1e-3)


def test_it_measures_and_prints_json(capsys: pytest.CaptureFixture) -> None:
    assert main(["--device", "cpu", "--size", "tiny", "--batch", "2", "--accumulation", "2", "--rounds", "1", "--threads", "1",
                 "--profile", "--json"]) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert [row["micro_batch"] for row in found["micro_batches"]] == [4]
    for row in found["micro_batches"]:
        assert row["pictures_per_second"] == pytest.approx(4 / row["seconds_per_step"])
        assert 0 < row["share_of_ceiling"] < 1.5 and row["peak_gib"] > 0
    pair = found["against_plain"]
    assert pair["ratio"] == pytest.approx(pair["ours"] / pair["plain"]) and pair["clock"] == "cpu_seconds"
    assert pair["ratio_cached"] == pytest.approx(pair["ours"] / pair["plain_cached"])
    assert found["vae_inputs_per_second"] > 0
    assert {"flash", "math"} <= set(found["attention"]) and min(found["attention"].values()) > 0
    text = as_text(found)
    for line in ("micro-batch   pictures/s", "first step  ", "encoding ", "attention alone", "diffusers' script's",
                 "one step, by operation:"):
        assert line in text
    assert "aten::convolution" in found["profile"] or "aten::mkldnn_convolution" in found["profile"]


def test_steps_alternate_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []
    times = race({name: lambda name=name: order.append(name) for name in "ab"}, 3, torch.device("cpu"))
    assert order == list("ab") * 4 and set(times) == {"a", "b"}


@pytest.mark.parametrize(("more", "named"), [(["--micro-batch", "two"], "--micro-batch"), (["--batch", "0"], "--batch"),
                                             (["--resolution", "100"], "--resolution"), (["--device", "tpu"], "--device")])
def test_bad_usage_is_one_line(more: list[str], named: str, capsys: pytest.CaptureFixture) -> None:
    assert main(more) == 2
    said = capsys.readouterr().err
    assert named in said and said.count("\n") == 1
