"""The measured table of forms; and our controls and tags in real web UIs, if one is named:

    WEB_UIS="PYTHON@CHECKOUT:PYTHON@CHECKOUT"   (; on Windows) pythons with the web UI's requirements
"""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
from pathlib import Path

import pytest

WEB_UIS = [pair for pair in os.environ.get("WEB_UIS", "").split(os.pathsep) if pair]
DRIVER = Path(__file__).with_name("in_web_ui.py")
ROOT = Path(__file__).parents[2]

in_web_uis = pytest.mark.parametrize("pair", WEB_UIS or [pytest.param("", marks=pytest.mark.skip(
    reason="WEB_UIS names no web UI (PYTHON@CHECKOUT): its Gradio and parser are not tried"))])  # fmt: skip

ATTN = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LDM = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"

# A LoRA of each form, drawn with by its tag: the picture was kohya's (a letter) or the one without any LoRA.
# A = A1111 v1.10.1, F = Forge 2.0.1 (June 2025), R = reForge (March 2026)
MEASURED = {
    f"lora_unet_{ATTN}.to_q".replace(".", "_") + ".lora_down.weight": "AFR",
    f"lora_unet_{ATTN}.to_q".replace(".", "_") + ".lora_A.weight": "AFR",
    f"lora_unet_{LDM}".replace(".", "_") + ".lora_up.weight": "AFR",
    f"diffusion_model.{LDM}.lora_down.weight": "FR",
    f"diffusion_model.{LDM}.lora_B.weight": "FR",
    f"diffusion_model.{LDM}.lora.up.weight": "FR",
    f"model.diffusion_model.{LDM}.lora_down.weight": "",
    f"unet.{ATTN}.to_q.lora.down.weight": "",
    f"unet.{ATTN}.to_q.lora_A.weight": "",
    f"unet.{ATTN}.to_q.lora_down.weight": "",
    f"unet.{ATTN}.processor.to_q_lora.down.weight": "FR",
    f"{ATTN}.processor.to_out_lora.up.weight": "FR",
    f"base_model.model.{ATTN}.to_q.lora_A.weight": "",
    f"base_model.model.unet.{ATTN}.to_q.lora_A.weight": "",
    f"{ATTN}.to_q.lora_A.weight": "",
    f"{ATTN}.to_q.lora.down.weight": "",
    f"lora_te_{TEXT}".replace(".", "_") + ".lora_down.weight": "AFR",
    f"lora_te1_{TEXT}".replace(".", "_") + ".lora_down.weight": "AFR",
    f"lora_te_{TEXT[11:]}".replace(".", "_") + ".lora_down.weight": "",
    f"lora_te1_{TEXT[11:]}".replace(".", "_") + ".lora_down.weight": "",
    f"text_encoder.{TEXT}.lora.down.weight": "FR",
    f"text_encoder.{TEXT}.lora_linear_layer.down.weight": "FR",
    f"text_encoder.{TEXT}.lora_A.weight": "FR",
    f"text_encoder.{TEXT[:-6]}to_q.lora_linear_layer.down.weight": "",
    f"base_model.model.{TEXT}.lora_A.weight": "",
    f"clip_l.transformer.{TEXT}.lora_down.weight": "",
    f"text_encoders.clip_l.transformer.{TEXT}.lora_down.weight": "R",
    f"{TEXT}.lora_down.weight": "",
}


@pytest.mark.parametrize(("key", "readers"), MEASURED.items())
def test_what_each_web_ui_reads_is_as_measured(core, key, readers) -> None:
    names = core.web_uis.WebUI
    for letter, web_ui in (("A", names.A1111), ("F", names.FORGE), ("R", names.REFORGE)):
        assert (core.web_uis.unread([key], web_ui) == []) is (letter in readers), web_ui


def test_a1111_forgets_an_alpha_beside_lora_a(core) -> None:
    keys = ["lora_unet_x.lora_A.weight", "lora_unet_x.lora_B.weight", "lora_unet_x.alpha"]
    assert core.web_uis.unread(keys, core.web_uis.WebUI.A1111) == keys[2:]
    assert core.web_uis.unread(keys, core.web_uis.WebUI.FORGE) == core.web_uis.unread(keys[:2], core.web_uis.WebUI.A1111) == []


def run(pair: str, *arguments: str) -> dict[str, object]:
    python = pair.partition("@")[0]
    done = subprocess.run([python, str(DRIVER), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@in_web_uis
def test_the_controls_work_in_the_web_uis_own_gradio(pair, folder) -> None:
    answers = run(pair, "page", str(folder))
    assert answers["controls"] == ["Checkbox", "Dropdown", "Slider", "Checkbox"]
    text = {name: json.dumps(answer, ensure_ascii=False) for name, answer in answers.items()}
    assert "theirs  ⚠ convert first: diffusers" in text["marked"] and "0.7" in text["start_scale"]
    assert "a scribble of" in text["show"] and "1 modules of the UNet" in text["show"]
    assert '"value": "theirs.kohya"' in text["convert_chosen"] and "ready" in text["convert_chosen"]
    assert "a scribble of" in text["look"] and "sound" in text["look"]
    assert '"value": "theirs.kohya.safetensors"' in text["convert_file"] and "already converted" in text["convert_file"]
    assert "no such file is not in the LoRA folder" in text["reload"] and "toasted" in text["toasted"]


@in_web_uis
def test_tags_and_prompts_are_what_the_web_uis_own_parser_reads(core, pair, tmp_path) -> None:
    """Every character in a file name, and every prompt after our rewriting against the original."""
    letters = [letter for letter in string.printable if letter not in "/\0"] + ["==", "=a=", "é", "⚠", "\u2028"]
    names = [name for letter in letters for name in (f"a{letter}b", f"{letter}ab", f"ab{letter}")]
    before = ["cat", "a [red:<lora:x:1> blue:0.5] cat", "cat [<lora:x:1>:0.5]", "((<lora:x:1>):1.2) cat", "[<lora:x:1>::3] cat",
              "cat [<lora:x:1>|dog]", "(cat:1.3) AND [dog] <lora:y:1>", r"cat \(<lora:x:1>\)", "cat <lora:x:1:0.5> BREAK dog",
              "[<lora:x:1>:<lora:x:2>:0.5] cat", "a [cat:dog:<lora:x:1>0.5]", "cat [:0.5]"]  # fmt: skip
    after = [core.prompts.rewrite(prompt, "x", 0.8, "x".__eq__).prompt for prompt in before]
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps({"names": names, "prompts": [*zip(before, after)]}))
    answers = run(pair, "grammar", pair.partition("@")[2], str(cases))
    for name, read in answers["names"].items():
        assert (read == [name]) is (core.prompts.why_no_tag(name) is None or "#" in name), name  # comments are cut before this
    for prompt, read, (theirs, ours) in zip(after, answers["tags"], answers["schedules"]):
        assert read.count("x") == 1, prompt
        assert simple(theirs) == simple(ours), prompt


def simple(schedule: list) -> list:
    """Steps with equal words and weights merged; blanks, and empty text at any weight, give no tokens."""
    kept: list = []
    for step, parts in schedule:
        words = [[" ".join(text.split()), weight] for text, weight in parts if text.strip()]
        merged: list = []
        for text, weight in words:
            if merged and merged[-1][1] == weight:
                merged[-1][0] += f" {text}"
            else:
                merged.append([text, weight])
        if kept and kept[-1][1] == merged:
            kept.pop()
        kept.append([step, merged])
    return kept


@pytest.mark.skipif(os.name == "nt", reason="needs a symbolic link")
def test_the_extension_is_strictly_typed(tmp_path) -> None:
    """Checked as the package `scribble_lora`, as in a web UI, so that `..convert` has its types."""
    (tmp_path / "scribble_lora").symlink_to(ROOT, target_is_directory=True)
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "--no-site-packages", "--config-file=",
               "-p", "scribble_lora.extension"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    ours = [line for line in done.stdout.splitlines() if line.startswith("scribble_lora/extension/")]
    assert not ours and "checked" in done.stdout, done.stdout + done.stderr


def test_the_docs_have_the_table_of_forms(core) -> None:
    text = (ROOT / "docs/A1111.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    rows = {cells[0]: cells[1:] for cells in lines if len(cells) == 4}
    for naming in core.web_uis.NAMINGS:
        assert rows[naming.words] == ["yes" if one in naming.readers else "no" for one in core.web_uis.WebUI]
