"""The extension's pure part, loaded as the web UI loads it: by path, as `scribble_lora`, with no host installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def catalog(core, folder):
    return core.catalog.Catalog({path.stem: path for path in folder.glob("*.safetensors")}, {"Alias": "scribble"})


def processing(prompt: str, **more) -> SimpleNamespace:
    return SimpleNamespace(all_prompts=[prompt] * 2, main_prompt=prompt, extra_generation_params={}, **more)


def test_the_adapters_own_tag_goes_and_others_stay(core, catalog) -> None:
    rewrite, refers = core.prompts.rewrite, lambda name: catalog.resolve(name) == "scribble"
    tag = core.prompts.tag("scribble", 0.80)
    assert tag == "<lora:scribble:0.8>"
    assert rewrite("cat", tag, refers) == f"cat {tag}"
    assert rewrite("<lora:scribble:0.3> cat <lora:other:1> <lyco:Alias:1>", tag, refers) == f"cat <lora:other:1> {tag}"
    assert rewrite("", tag, refers) == tag
    assert rewrite("cat # a note", tag, refers) == f"cat # a note\n{tag}"
    assert rewrite("cat", tag, refers, "a scribble of") == f"a scribble of cat {tag}"
    assert rewrite("(A  Scribble of cat)", tag, refers, "a scribble of") == f"(A  Scribble of cat) {tag}"
    assert rewrite("a scribble often", tag, refers, "a scribble of").startswith("a scribble of a scribble often")


def test_every_prompt_of_a_generation_is_rewritten(core, catalog) -> None:
    p, said = processing("cat", all_hr_prompts=["cat", "dog"]), []
    applied = core.applying.process(p, [True, "scribble", 0.5, True], lambda name: catalog, "SD1", said.append)
    assert (applied.name, applied.scale, said) == ("scribble", 0.5, [])
    assert p.all_prompts == [p.main_prompt] * 2 == ["a scribble of cat <lora:scribble:0.5>"] * 2
    assert p.all_hr_prompts[1] == "a scribble of dog <lora:scribble:0.5>"
    assert p.extra_generation_params["Scribble LoRA scale"] in (0.5, "0.5")


def test_no_scale_is_the_files_own(core, catalog) -> None:
    p = processing("cat")
    core.applying.process(p, [True, "scribble", None, False], lambda name: catalog, "SD1", print)
    assert p.main_prompt == "cat <lora:scribble:0.7>"


@pytest.mark.parametrize(("arguments", "named"), [
    (["yes", "scribble", 0.8, False], "enabled must be true or false"), ([True, "scribble", "0.8", False], "scale must be"),
    ([True, "scribble", 9, False], "from 0 to 1.5"), ([True, "scribble", float("nan"), False], "scale must be"),
    ([True, "scribbel", 0.8, False], "did you mean scribble"), ([True, 7, 0.8, False], "adapter must be"),
    ([True], "no adapter"),
    ([True, "theirs", 0.8, False], "convert it first"), ([True, "broken", 0.8, False], "broken"),
])  # fmt: skip
def test_bad_requests_have_no_effect_and_one_line(core, catalog, arguments, named) -> None:
    p, said = processing("cat"), []
    assert core.applying.process(p, arguments, lambda name: catalog, "SD1", said.append) is None
    assert p.main_prompt == "cat" and p.all_prompts == ["cat", "cat"]
    assert named in said[0] and "\n" not in said[0] and p.extra_generation_params["Scribble LoRA error"] == said[0]


def test_a_hand_written_tag_without_effect_is_told(core, catalog) -> None:
    p, said = processing("cat <lora:theirs:1>"), []
    assert core.applying.process(p, [False], lambda name: catalog, "SD1", said.append) is None
    assert len(said) == 1 and "<lora:theirs:…> has no effect" in said[0] and not p.extra_generation_params


def test_another_kind_of_model_is_refused(core, catalog) -> None:
    p, said = processing("cat"), []
    assert core.applying.process(p, [True, "scribble", 0.8, False], lambda name: catalog, "SDXL", said.append) is None
    assert "is a LoRA of Stable Diffusion 1.5 and the loaded model is SDXL" in said[0]


def test_the_list_marks_what_cannot_be_used(core, catalog) -> None:
    """Plain strings, and each leads back to its file."""
    shown = catalog.choices()
    assert shown[0] == "None" and [catalog.name_of(entry) for entry in shown[1:]] == ["broken", "scribble", "theirs"]
    assert "damaged" in shown[1] and shown[2] == "scribble" and "convert first" in shown[3]


def test_a_replaced_file_is_looked_into_again(core, folder) -> None:
    path = folder / "theirs.safetensors"
    assert core.adapters.examine(path).use is core.adapters.Use.CONVERT
    path.write_bytes((folder / "scribble.safetensors").read_bytes())
    assert core.adapters.examine(path).use is core.adapters.Use.READY


@pytest.mark.parametrize("left", [None, "", "(", "raise ValueError('two\\nlines')", "\0"], ids=lambda left: repr(left)[:9])
def test_the_door_takes_no_general_name_and_survives_damage(tmp_path, left) -> None:
    """In a process of its own: another extension owns `convert` and `trainer`, and of our folder this is left."""
    if left is not None:
        (tmp_path / "extension").mkdir()
        (tmp_path / "extension/door.py").write_text(left)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/scribble_lora.py").write_bytes((ROOT / "scripts/scribble_lora.py").read_bytes())
    code = (
        "import runpy, sys, types\n"
        "decoy = types.ModuleType('convert'); sys.modules['convert'] = sys.modules['trainer'] = decoy\n"
        "scripts = types.ModuleType('modules.scripts'); scripts.scripts_data = []\n"
        "modules = types.ModuleType('modules'); modules.scripts = scripts\n"
        "sys.modules.update({'modules': modules, 'modules.scripts': scripts})\n"
        "path = list(sys.path)\n"
        f"runpy.run_path({str(tmp_path / 'scripts/scribble_lora.py')!r})\n"
        "assert sys.modules['convert'] is decoy and sys.modules['trainer'] is decoy and 'extension' not in sys.modules\n"
        "assert sys.path == path and 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("\n") == 1 and "Scribble LoRA: is off, its folder is damaged" in result.stderr
