"""Every command has help, without loading torch; its options are in the docs, and mean the same in all commands."""

from __future__ import annotations

import dataclasses
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import install
from convert import bake
from convert import cli as convert
from trainer import cli as train
from trainer.benchmark import __main__ as benchmark
from trainer.evaluate import cli as evaluate
from trainer.page import __main__ as page
from trainer.recipe import Recipe, flag
from trainer.sample import __main__ as sample
from trainer.study import cli as study
from trainer.terminal import command

ROOT = Path(__file__).parents[2]
RECIPE = {name for f in dataclasses.fields(Recipe) for name in (flag(f.name), flag(f"no-{f.name}"))}
"""The recipe's flags; docs of a study refer to `python -m trainer --help` for them."""


@pytest.mark.parametrize("module", ["trainer.evaluate", "trainer.sample", "trainer.study", "trainer.page"])
def test_help_is_instant(module: str) -> None:
    code = f"import runpy, sys; sys.argv = ['x', '--help']\ntry: runpy.run_module('{module}', run_name='__main__')\n" \
           "except SystemExit: print('heavy', sorted({'torch', 'numpy', 'diffusers', 'PIL', 'gradio'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.startswith(f"usage: python -m {module}") and told.endswith("heavy []\n")


@pytest.mark.parametrize("parser", [evaluate.parser(), sample.parser(), study.parser(), page.parser()])
def test_every_option_stands_in_the_docs(parser) -> None:
    text = (ROOT / "docs" / ("PAGE.md" if "page" in parser.prog else "EVALUATION.md")).read_text(encoding="utf-8")
    recipe = RECIPE if "study" in parser.prog else set()
    own = {name for action in parser._actions for name in action.option_strings if name.startswith("--")} - recipe
    assert [name for name in sorted(own - {"--help"}) if name not in text] == []


PARSERS = {"trainer": train.parser(), "trainer.sample": sample.parser(), "trainer.evaluate": evaluate.parser(),
           "trainer.study": study.parser(), "trainer.benchmark": benchmark.parser(), "trainer.page": page.parser(),
           "convert": convert.parser(), "convert.bake": bake.parser(), "install.py": install.parser()}  # fmt: skip


def test_the_table_of_commands_is_true() -> None:
    has = {name: {flag for action in parser._actions for flag in action.option_strings} for name, parser in PARSERS.items()}
    listed: dict[str, set[str]] = {}
    for line in (ROOT / "docs" / "COMMANDS.md").read_text(encoding="utf-8").splitlines():
        cells = line.split("|")
        if len(cells) == 5 and "`--" in cells[1]:
            for word in re.findall("`(--[a-z-]+)`", cells[1]):
                listed[word] = set(re.findall("`([a-z.]+)`", cells[3]))
    assert [(word, name) for word, names in listed.items() for name in names if word not in has[name]] == []
    ours = [name for name in PARSERS if name.startswith("trainer")]
    for word in sorted(set().union(*(has[name] for name in ours)) - {"-h", "--help"}):
        users = {name for name in ours if word in has[name]}
        if len(users) > 1 and word not in RECIPE or word in listed:
            assert users == {name for name in listed.get(word, ()) if name in ours}, word


def test_characters_that_a_console_cannot_show_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="\n")
    monkeypatch.setattr(sys, "stdout", console)

    def work() -> int:
        print("\N{CJK UNIFIED IDEOGRAPH-732B} café")
        return 0

    assert command("trainer", work) == 0
    console.seek(0)
    assert console.read() == "\\u732b café\n"


def test_a_missing_package_is_one_line(capsys: pytest.CaptureFixture) -> None:
    def work() -> int:
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")

    assert command("trainer", work) == 1
    error = capsys.readouterr().err
    assert "has no package 'torch': activate the environment" in error and error.count("\n") == 1
    with pytest.raises(ModuleNotFoundError):
        command("trainer", lambda: __import__("no_such_module_of_ours"))
