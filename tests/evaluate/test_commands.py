"""Every command has help, without loading torch, and every option of its own stands in the docs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.evaluate import cli as evaluate
from trainer.recipe import Recipe, flag
from trainer.sample import __main__ as sample
from trainer.study import cli as study

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["trainer.evaluate", "trainer.sample", "trainer.study"])
def test_help_is_instant(module: str) -> None:
    code = f"import runpy, sys; sys.argv = ['x', '--help']\ntry: runpy.run_module('{module}', run_name='__main__')\n" \
           "except SystemExit: print('heavy', sorted({'torch', 'numpy', 'diffusers', 'PIL'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.startswith(f"usage: python -m {module}") and told.endswith("heavy []\n")


@pytest.mark.parametrize("parser", [evaluate.parser(), sample.parser(), study.parser()])
def test_every_option_stands_in_the_docs(parser) -> None:
    text = (ROOT / "docs" / "EVALUATION.md").read_text(encoding="utf-8")
    recipe = {flag(f.name) for f in dataclasses.fields(Recipe)} if "study" in parser.prog else set()
    own = {name for action in parser._actions for name in action.option_strings if name.startswith("--")} - recipe
    assert [name for name in sorted(own - {"--help", "--no-flip"}) if name not in text] == []
