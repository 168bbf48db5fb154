"""The starters: the commands of starter.py on machines with and without uv, and start.sh as a user runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tomllib

import starter
from starter import BACKEND, Machine, StarterError
from trainer.page.__main__ import parser

ROOT = Path(__file__).parents[2]
Runs = list[list[str]]


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., tuple[Machine, Runs]]:
    """A machine that records its commands. fails: words whose commands end with 1."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)

    def make(*, uv: str | None = None, python: tuple[int, int] = (3, 12), fails: Sequence[str] = ()) -> tuple[Machine, Runs]:
        runs: Runs = []

        def run(command: Sequence[str]) -> int:
            runs.append(list(command))
            if any(word in command for word in fails):
                return 1
            if "venv" in command:
                it.interpreter.parent.mkdir(parents=True, exist_ok=True)
                it.interpreter.touch()
            return 0

        it = Machine(tmp_path, uv, python, run, lambda text: None)
        return it, runs

    return make


def test_uv_makes_the_environment_with_the_cards_own_torch(machine) -> None:
    it, runs = machine(uv="/bin/uv", python=(3, 9))  # uv installs its own Python
    assert starter.start(it, ["--demo"]) == 0
    made, installed, page = runs
    assert made[:2] == ["/bin/uv", "venv"] and ">=3.11,<3.14" in made
    assert installed[:3] == ["/bin/uv", "pip", "install"] and BACKEND in installed and installed[-1] == ".[page]"
    assert page == [str(it.interpreter), "-m", "trainer.page", "--demo"]


def test_without_uv_it_is_fetched_into_the_environment(machine) -> None:
    it, runs = machine()
    starter.start(it, [])
    assert runs[0][:3] == [sys.executable, "-m", "venv"] and runs[1][-1] == "uv"
    assert runs[2][:5] == [str(it.interpreter), "-m", "uv", "pip", "install"] and BACKEND in runs[2]


@pytest.mark.parametrize("uv", [None, "/bin/uv"])
def test_where_uv_fails_pip_installs(machine, uv) -> None:
    it, runs = machine(uv=uv, fails=[BACKEND])
    assert starter.start(it, []) == 0
    assert runs[-2][:4] == [str(it.interpreter), "-m", "pip", "install"] and runs[-2][-4:] == list(starter.WHAT)


def test_a_failed_installation_is_tried_again_and_a_finished_one_is_not(machine) -> None:
    it, runs = machine(fails=["install"])
    with pytest.raises(StarterError, match="could not be installed"):
        starter.start(it, [])
    assert not it.stamp.exists()
    it, runs = machine()
    starter.start(it, [])
    runs.clear()
    starter.start(it, [])
    assert [run[1:3] for run in runs] == [["-m", "trainer.page"]]
    (it.home / "constraints.txt").write_text("gradio==99\n")  # an update of the repository
    starter.start(it, [])
    assert any(".[page]" in run for run in runs)


def test_an_environment_that_does_not_start_is_made_anew(machine) -> None:
    it, runs = machine(fails=["pass"])
    it.interpreter.parent.mkdir(parents=True)
    it.interpreter.touch()
    starter.make(it)
    assert runs == [[str(it.interpreter), "-c", "pass"], [sys.executable, "-m", "venv", "--clear", str(it.environment)]]


@pytest.mark.parametrize(("python", "word"), [((3, 10), "old"), ((3, 14), "new")])
def test_an_unsupported_python_is_named(machine, python, word) -> None:
    it, _ = machine(python=python)
    with pytest.raises(StarterError, match=f"too {word}: install Python"):
        starter.start(it, [])


def test_folders_that_are_dropped_on_it_are_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "cats").mkdir()
    monkeypatch.chdir(tmp_path)
    assert starter.as_folders(["cats", "--demo", "--work", "cats", "none"]) == [
        f"--folder={tmp_path / 'cats'}", "--demo", "--work", "cats", "none"]  # fmt: skip


def test_it_agrees_with_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={'.'.join(map(str, starter.OLDEST))}"
    assert "page" in project["optional-dependencies"]
    assert f"Python 3.11 to 3.{starter.NEWEST[1]}" in (ROOT / "README.md").read_text(encoding="utf-8")
    takes = {flag for action in parser()._actions if action.nargs is None for flag in action.option_strings}
    assert set(starter.TAKES_VALUE) == takes


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_start_sh_finds_its_folder_and_passes_everything_on(tmp_path) -> None:
    place = tmp_path / "my trainer"
    place.mkdir()
    shutil.copy(ROOT / "start.sh", place)
    (place / "starter.py").write_text("import sys; print(sys.argv[1:])")
    done = subprocess.run([place / "start.sh", "--demo", "a b"], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout == "['--demo', 'a b']\n"
    (tmp_path / "dirname").symlink_to(str(shutil.which("dirname")))
    bare = subprocess.run(["/bin/sh", place / "start.sh"], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert bare.returncode == 1 and "install Python 3.12" in bare.stderr


def test_start_bat_only_looks_for_a_python() -> None:
    text = (ROOT / "start.bat").read_text(encoding="ascii")
    assert text.count('"%~dp0starter.py" %*') == 3 and len(text.splitlines()) < 10
