"""install.py --demo, with a writer that makes a hundred bytes in place of 2.1 GB: `kill_points.WRITER`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from convert.miniature import is_miniature_file
from tests.install.command import MODULE, RECORD, ROOT, install
from tests.install.kill_points import tree, with_writer

pytestmark = pytest.mark.skipif(os.name == "nt", reason="junctions are not tried here")

WEBUIS, COMFYS = "models/Stable-diffusion/scribble-miniature.safetensors", "models/checkpoints/scribble-miniature.safetensors"


class Repository:
    """A small repository with the stand-in writer."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        shutil.copytree(ROOT / "installer", folder / "installer", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "install.py", folder)
        with_writer(folder)

    def install(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return install(*arguments, script=self.path / "install.py")

    def calls(self) -> list[str]:
        return (self.path / "calls").read_text().splitlines() if (self.path / "calls").exists() else []

    def change(self, old: str, new: str) -> None:
        """Change a line of installer/miniature.py."""
        file = self.path / "installer/miniature.py"
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def one_line(result: subprocess.CompletedProcess[str], code: int) -> str:
    assert result.returncode == code and result.stderr.count("\n") == 1, result
    return result.stderr


def test_the_command_is_the_trainers() -> None:
    from installer.miniature import COMMAND
    from trainer.miniature.__main__ import parser

    assert COMMAND[1] == "-m" and COMMAND[2] == parser().prog.removeprefix("python -m ")
    assert parser().parse_args([*COMMAND[3:], "x.safetensors"]).out == Path("x.safetensors")


def test_two_hosts_share_one_file_and_give_it_back(repository, webui, comfyui) -> None:
    before, both = (tree(webui), tree(comfyui)), ("--webui", webui, "--comfyui", comfyui, "--demo")
    dry = repository.install(*both, "--dry-run")
    assert dry.returncode == 0 and f"would write {webui / WEBUIS} (2.1 GB" in dry.stdout, dry
    assert f"would place {comfyui / COMFYS} (a hard link" in dry.stdout and (tree(webui), tree(comfyui)) == before
    done = repository.install(*both)
    assert done.returncode == 0 and "(2.1 GB" in done.stdout and "python -m trainer --demo trains it" in done.stdout, done
    assert is_miniature_file(webui / WEBUIS) and os.path.samefile(webui / WEBUIS, comfyui / COMFYS)
    again = repository.install(*both)
    assert again.stdout.count("is already there") == 2 and len(repository.calls()) == 1
    assert repository.install("--webui", webui, "--uninstall").returncode == 0
    assert tree(webui) == before[0] and is_miniature_file(comfyui / COMFYS)
    assert repository.install("--comfyui", comfyui, "--uninstall").returncode == 0 and tree(comfyui) == before[1]


def test_a_file_that_another_host_or_the_user_has_is_used(repository, webui, comfyui) -> None:
    repository.install("--webui", webui, "--demo")
    repository.install("--webui", webui, "--comfyui", comfyui, "--demo")
    assert os.path.samefile(webui / WEBUIS, comfyui / COMFYS) and len(repository.calls()) == 1
    shutil.copy(webui / WEBUIS, repository.path / "miniature.safetensors")
    repository.install("--webui", webui, "--comfyui", comfyui, "--uninstall")
    repository.install("--webui", webui, "--demo")
    assert os.path.samefile(webui / WEBUIS, repository.path / "miniature.safetensors") and len(repository.calls()) == 1


def test_where_no_link_is_possible_it_is_copied(repository, webui, comfyui) -> None:
    before = tree(comfyui)
    repository.change("        os.link(source, part)\n", "        raise OSError(1, 'Operation not permitted')\n")
    assert repository.install("--webui", webui, "--comfyui", comfyui, "--demo").returncode == 0
    assert (webui / WEBUIS).read_bytes() == (comfyui / COMFYS).read_bytes() and (comfyui / COMFYS).stat().st_nlink == 1
    assert repository.install("--comfyui", comfyui, "--uninstall").returncode == 0 and tree(comfyui) == before


def test_created_folders_are_removed_whatever_was_placed_first(repository, comfyui, lora) -> None:
    before = tree(comfyui)
    for first, second in ((("--demo",), ("--lora", lora)), (("--lora", lora), ("--demo",))):
        assert repository.install("--comfyui", comfyui, *first).returncode == 0
        assert repository.install("--comfyui", comfyui, *second).returncode == 0
        gone = repository.install("--comfyui", comfyui, "--uninstall")
        assert gone.returncode == 0 and tree(comfyui) == before, gone


def test_new_weights_replace_what_was_placed_and_only_that(repository, webui) -> None:
    bias = repository.path / "bias.json"
    bias.write_text("[1, 2, 3, 4]")
    repository.install("--webui", webui, "--demo")
    assert not is_miniature_file(webui / WEBUIS)
    bias.unlink()
    assert repository.install("--webui", webui, "--demo").returncode == 0 and is_miniature_file(webui / WEBUIS)
    (webui / WEBUIS).write_bytes(b"another checkpoint of that name")
    before = tree(webui)
    assert "is not the miniature" in one_line(repository.install("--webui", webui, "--demo"), 2)
    assert tree(webui) == before
    assert "was changed after installation: kept" in repository.install("--webui", webui, "--uninstall").stdout
    assert (webui / WEBUIS).read_bytes() == b"another checkpoint of that name"


def test_a_writer_that_fails_is_one_line_and_leaves_no_part(repository, webui) -> None:
    before = tree(webui)
    (repository.path / "fail").touch()
    said = one_line(repository.install("--webui", webui, "--demo"), 1)
    assert said == "install.py: the miniature could not be written: python -m trainer.miniature: the disk is full\n"
    assert [path.name for path in (webui / WEBUIS).parent.iterdir()] == [RECORD]
    (repository.path / "fail").unlink()
    assert repository.install("--webui", webui, "--demo").returncode == 0 and is_miniature_file(webui / WEBUIS)
    assert repository.install("--webui", webui, "--uninstall").returncode == 0 and tree(webui) == before


@pytest.mark.parametrize("killed_by", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_while_it_writes_leaves_nothing_that_uninstall_does_not_remove(repository, webui, killed_by) -> None:
    before, end = tree(webui), time.monotonic() + 60
    (repository.path / "hang").touch()
    command = [sys.executable, str(repository.path / "install.py"), "--webui", str(webui), "--demo"]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # fmt: skip
    while not list(webui.rglob(".*-0.part")) and time.monotonic() < end:
        time.sleep(0.02)
    (written,) = webui.rglob(".*-0.part")
    running.send_signal(killed_by)
    if killed_by == signal.SIGKILL:
        os.kill(int(repository.calls()[0].split()[0]), killed_by)
    said = running.communicate(timeout=60)[1]
    assert written.exists() is (killed_by == signal.SIGKILL)  # after Ctrl-C it has gone already
    stopped = killed_by == signal.SIGINT
    assert running.returncode == (130 if stopped else -9) and said.count("\n") == stopped
    assert repository.install("--webui", webui, "--uninstall").returncode == 0 and tree(webui) == before


def test_too_little_disk_space_is_reported_before_anything_is_done(repository, webui) -> None:
    before = tree(webui)
    repository.change("BYTES = 1000", "BYTES = 10**18")
    for more in ((), ("--dry-run",)):
        assert "needs 2.1 GB, but" in one_line(repository.install("--webui", webui, "--demo", *more), 2)
    assert tree(webui) == before and not repository.calls()


def test_without_the_trainers_environment_it_says_what_to_run(repository, webui, monkeypatch) -> None:
    before = tree(webui)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-S", str(repository.path / "install.py"), "--webui", str(webui), "--demo"]  # -S: no packages
    said = one_line(subprocess.run(command, capture_output=True, text=True), 2)
    assert f"{sys.executable} has no torch: first run, in {repository.path}: " in said
    assert "-m venv .venv && .venv/bin/python -m pip install -c constraints.txt -e .; then run this with" in said
    (repository.path / ".venv/bin").mkdir(parents=True)
    (repository.path / ".venv/bin/python").touch()
    said = one_line(subprocess.run(command, capture_output=True, text=True), 2)
    assert said.endswith(f"has no torch: run this with {repository.path}/.venv/bin/python\n") and tree(webui) == before


def test_the_demos_lora_is_placed_if_it_can_be(repository, webui, lora) -> None:
    demo = repository.path / "demo/scribble.safetensors"
    demo.parent.mkdir()
    save_file({f"{MODULE}.lora_down.weight": load_file(lora)[f"{MODULE}.lora_down.weight"][:, :64].contiguous(),
               f"{MODULE}.lora_up.weight": load_file(lora)[f"{MODULE}.lora_up.weight"][:64].contiguous()}, demo,
              {"ss_base_model_version": "scribble_miniature"})  # fmt: skip
    stale = repository.install("--webui", webui, "--demo")
    assert stale.returncode == 0 and f"not installed: {demo}: was trained on an earlier miniature" in stale.stdout, stale
    assert is_miniature_file(webui / WEBUIS) and not (webui / "models/Lora/scribble.safetensors").exists()
    save_file(load_file(lora), demo, {"scribble_base": "miniature"})
    demo.with_suffix(".json").write_text("{}")
    done = repository.install("--webui", webui, "--demo", "--lora", demo)
    assert done.returncode == 0 and done.stdout.count("place ") == 2, done
    assert (webui / "models/Lora/scribble.safetensors").read_bytes() == demo.read_bytes()
    assert json.loads((webui / "models/Lora/scribble.json").read_text()) == {}
