"""The command line, run as a user runs it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from convert import bake, cli, extract, merge, reduce
from convert.names import FORMS

ROOT = Path(__file__).parents[2]


def run(*arguments, module="convert", cwd=ROOT):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def source(maker, tmp_path):
    return maker.write(tmp_path / "in.safetensors", "diffusers", maker.attention("unet"))


def test_one_argument_writes_beside_the_input(source):
    done = run(source)
    assert (done.returncode, done.stderr) == (0, "")
    assert "128 UNet modules, rank 4, alpha 4 (from the rank)" in done.stdout
    assert len(load_file(source.with_name("in.kohya.safetensors"))) == 3 * 128


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["none.safetensors"], 1, "none.safetensors: no such file"),
        (["https://civitai.com/api/download/models/1"], 1, "is a web address: download the file"),
        (["in.safetensors", "in.safetensors"], 2, "is the input itself"),
        (["in.safetensors", "taken.safetensors"], 1, "--overwrite"),
        (["in.safetensors", "--to", "flux"], 2, "--to flux: allowed are kohya, diffusers, peft"),
        (["in.safetensors", "--dtype", "int8"], 2, "--dtype int8: allowed are fp32, fp16, bf16"),
        (["in.safetensors", "--alpha", "four"], 2, "--alpha"),
        (["in.safetensors", "--alpha", "-1"], 2, "--alpha -1"),
        (["in.safetensors", "--set", "x"], 2, "--set x: must be KEY=VALUE"),
        (["in.safetensors", "--strange"], 2, "--strange"),
        (["in.safetensors", "none/out.safetensors"], 1, "none"),
        (["none.safetensors", "taken.safetensors"], 1, "none.safetensors: no such file"),
        (["in.safetensors", "."], 1, "name a file in it"),
        ([""], 2, "the name of a file is empty"),
        (["in.safetensors", ""], 2, "the name of a file is empty"),
        (["a", "b", "c"], 2, "--out-dir"),
        (["*.ckpt"], 1, r"*.ckpt: no file matches"),
        ([], 2, "required"),
    ],
)
def test_errors_are_one_line_and_a_status(arguments, status, said, source, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken.safetensors").write_bytes(b"precious")
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == status
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert said in output.err
    assert (tmp_path / "taken.safetensors").read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.safetensors", "taken.safetensors"]


def test_a_folder_named_by_dots_is_converted_beside_it(source, tmp_path, monkeypatch):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    source.rename(tmp_path / "folder" / "in.safetensors")
    for place, name in (("folder", "."), ("folder/inner", "..")):
        monkeypatch.chdir(tmp_path / place)
        assert cli.main([name]) == 0
        (tmp_path / "folder.kohya.safetensors").unlink()


def test_numbers_that_are_too_large_are_reported_in_one_line(source, tmp_path, capsys, recwarn):
    assert merge.main([f"{source}=1e40", "--out", str(tmp_path / "out.safetensors")]) == 1
    assert capsys.readouterr().err.endswith("has numbers that are too large for F32\n") and not recwarn.list


def test_several_files_in_one_command(source, tmp_path, maker, capsys):
    other = maker.write(tmp_path / "other.safetensors", "kohya", maker.attention("unet")[:3])
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"<html>")
    assert cli.main([str(tmp_path / "*.safetensors"), "--out-dir", str(tmp_path / "new" / "folder")]) == 1
    output = capsys.readouterr()
    assert "2 of 3 converted" in output.out
    assert (
        output.err
        == f"convert: {broken}: is a web page, not a model: the download went wrong; download the file itself\n"
    )
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [source.name, other.name]
    twin = tmp_path / "twin" / source.name
    twin.parent.mkdir()
    twin.write_bytes(source.read_bytes())
    assert cli.main([str(source), str(twin), "--out-dir", str(tmp_path / "apart")]) == 2
    assert not (tmp_path / "apart").exists()


def test_progress_is_shown_on_a_terminal_and_wiped(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main([str(source), str(source.parent), "--out-dir", str(tmp_path / "new")]) == 0
    output = capsys.readouterr()
    assert "0/2 in.safetensors" in output.err
    assert "[##########          ] 1/2" in output.err
    assert output.err.endswith("\r\033[K")
    assert "2 of 2 converted" in output.out


def test_json_reports(source, tmp_path, capsys):
    assert (
        cli.main(
            [str(source), str(tmp_path / "out.safetensors"), "--json", "--title", "T", "--trigger", "a scribble of"]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert (report["to"], report["unet"], report["rank"]) == ("kohya", 128, 4)
    assert cli.main([str(tmp_path / "out.safetensors"), "--check", "--json"]) == 0
    audit = json.loads(capsys.readouterr().out)
    assert audit["metadata"]["modelspec.title"] == "T"
    assert audit["modules"] == {"unet": [128, 282], "text_encoder": [0, 72]}
    assert audit["hash"] == audit["hash_stored"] == report["model_hash"]


def test_check_finds_nan_and_stale_hashes(source, maker, tmp_path, capsys):
    from safetensors.torch import save_file

    tensors = maker.tensors("kohya", maker.attention("unet")[:2], alpha=2)
    tensors[maker.spellings["kohya"](maker.attention("unet")[1], "up")][7, 2] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors", {"sshs_model_hash": "f" * 64})
    assert cli.main([str(tmp_path / "nan.safetensors"), "--check"]) == 1
    output = capsys.readouterr()
    assert "NaN or infinite" in output.err
    assert "differs from the stored one" in output.out
    assert (
        cli.main([str(tmp_path / "nan.safetensors"), str(tmp_path / "out.safetensors")]) == 0
    )  # copies what it is given


def test_a_closed_pipe_does_not_crash(source):
    command = f"{sys.executable} -m convert {source} --check --json | head -c 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


COMMANDS = {
    "convert": cli.parser(), "convert.bake": bake.parser(), "convert.reduce": reduce.parser(), "convert.merge": merge.parser(),
    "convert.extract": extract.parser(),
}  # fmt: skip


def test_an_option_has_the_same_help_in_all_commands():
    for option in ("--to", "--dtype", "--overwrite", "--json", "--alpha", "--only", "--rank", "--base"):
        actions = [action for parser in COMMANDS.values() for action in parser._actions if option in action.option_strings]
        assert actions
        assert len({(action.help, action.metavar) for action in actions}) == 1


def test_help_names_every_option_and_the_documentation_does_too():
    documented = (ROOT / "docs" / "CONVERT.md").read_text(encoding="utf-8")
    for module, parser in COMMANDS.items():
        shown = run("--help", module=module)
        assert shown.returncode == 0
        options = re.findall(r"--[a-z-]+", " ".join(" ".join(action.option_strings) for action in parser._actions))
        for option in set(options) - {"--help"}:
            assert option in shown.stdout
            assert option in documented, f"{option} of {module} is not in docs/CONVERT.md"


def test_the_documentation_names_every_form(maker):
    from convert import names

    documented = (ROOT / "docs" / "CONVERT.md").read_text(encoding="utf-8")
    assert all(f"`{form}`" in documented for form in FORMS)
    for row in names.SPELLINGS:
        assert not row.prefix or f"`{row.prefix}" in documented, row.prefix


ISOLATED = """
import importlib.util, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "numpy", "safetensors", "diffusers", "peft", "transformers"):
            raise ImportError(f"{name} was asked for")
sys.meta_path.insert(0, Block())
spec = importlib.util.spec_from_file_location("any_name", sys.argv[1] + "/convert/__init__.py",
                                              submodule_search_locations=[sys.argv[1] + "/convert"])
package = importlib.util.module_from_spec(spec)
sys.modules["any_name"] = package
spec.loader.exec_module(package)
for form, target in (("kohya", "k.safetensors"), ("diffusers", "d.safetensors"), ("peft", "p")):
    package.convert_file(sys.argv[2], sys.argv[3] + "/" + target, to=form, dtype="fp16", alpha=2)
from any_name.check import check
assert check(sys.argv[3] + "/k.safetensors").sound
assert "convert" not in sys.modules and "hypothesis" not in sys.modules
"""


def _pythons():
    """The running Python, and where there is one the 3.10 that the web UI lives on."""
    found = [sys.executable]
    for path in [*Path.home().glob(".pyenv/versions/3.10.*/bin/python"), Path("/usr/bin/python3.10")]:
        if path.exists():
            found.append(str(path))
    return found


@pytest.mark.parametrize("python", _pythons())
def test_only_the_standard_library_is_needed_under_any_package_name(python, source, tmp_path):
    command = [python, "-I", "-S", "-c", ISOLATED, str(ROOT), str(source), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(load_file(tmp_path / "k.safetensors")) == 3 * 128


@pytest.mark.parametrize("command", ["reduce", "merge", "extract", "bake"])
def test_a_command_that_needs_numpy_reports_its_absence(command):
    hidden = "import sys, importlib.util\nsys.modules['numpy'] = None\nimportlib.util.find_spec = lambda *_: None\n"
    command_line = [sys.executable, "-c", f"{hidden}import convert.{command}"]
    done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "this command of convert needs numpy: python -m pip install numpy\n")
