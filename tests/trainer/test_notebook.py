"""The notebook, run completely on the miniature: no GPU, no network, no Colab."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from convert import read
from trainer import cli

NEEDED = "the notebook's test needs nbclient, nbformat and ipykernel: pip install -e '.[test]'"
nbformat = pytest.importorskip("nbformat", reason=NEEDED)
nbclient = pytest.importorskip("nbclient", reason=NEEDED)
pytest.importorskip("ipykernel", reason=NEEDED)

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "train.ipynb"


def cells(notebook, kind: str) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def test_it_is_valid_has_no_outputs_and_names_flags_that_exist() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in cells(notebook, "code"))
    text = NOTEBOOK.read_text(encoding="utf-8")
    flags = {flag for action in cli.parser()._actions for flag in action.option_strings}
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= flags
    assert text.count("ADDRESS") == 1  # the only place to replace when an address is known


def test_it_runs_whole_from_pictures_to_a_download(tmp_path, monkeypatch) -> None:
    pictures, output = tmp_path / "my pictures", tmp_path / "loras"
    pictures.mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (64, 64), colour).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(f"a {colour} square")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = next(cell for cell in cells(notebook, "code") if "parameters" in cell.metadata.get("tags", []))
    names = re.findall(r"^([A-Z]+) =", settings.source, re.M)
    values = dict(PICTURES=str(pictures), OUTPUT=str(output), NAME="mine", TRIGGER="in 'my' style", PRESET="style",
                  BASE="miniature", MORE=f"--steps 2 --device cpu --no-preview --cache {tmp_path / 'cache'}")  # fmt: skip
    assert names == list(values)
    settings.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    assert read(output / "mine.safetensors").metadata["modelspec.trigger_phrase"] == "in 'my' style"
    assert zipfile.ZipFile(output / "mine.zip").namelist() == ["mine.safetensors", "mine.json"]
    printed = "".join(out.get("text", "") for cell in cells(notebook, "code") for out in cell.outputs)
    assert "pictures               2" in printed and "optimizer steps  2" in printed  # the dry run's table
    assert "git clone" not in printed


def test_a_failed_command_stops_it(tmp_path, monkeypatch) -> None:
    """The same kernel's function, without a kernel: what `run` does with an exit status."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    source = next(cell.source for cell in cells(notebook, "code") if "def run(" in cell.source)
    function = source[source.index("def run(") : source.index("\n\n\nout =")]

    class Shell:
        user_ns = {"_exit_code": 2}

        def system(self, line: str) -> None: ...

    names = {"shlex": __import__("shlex"), "sys": sys, "shell": Shell()}
    exec(function, names)
    with pytest.raises(SystemExit, match="has failed"):
        names["run"]("trainer", "--nonsense")
