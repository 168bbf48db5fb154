"""install.py, run as users and hosts run it: in folders like a web UI's and a ComfyUI's, empty, full and wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.install.command import MODULE, RECORD, ROOT, install
from tests.install.kill_points import main as kill_at_every_point
from tests.install.kill_points import tree

pytestmark = pytest.mark.skipif(os.name == "nt", reason="junctions are not tried here")


def test_both_hosts_and_back(webui, comfyui, lora) -> None:
    before = tree(webui), tree(comfyui)
    both = ("--webui", webui, "--comfyui", comfyui.parent)
    dry = install(*both, "--lora", lora, "--dry-run")
    assert dry.returncode == 0 and dry.stdout.count("would ") == 8 and (tree(webui), tree(comfyui)) == before
    done = install(*both, "--lora", lora)
    assert done.returncode == 0, done.stderr
    assert (webui / "extensions/scribble-lora").resolve() == ROOT == (comfyui / "custom_nodes/scribble-lora").resolve()
    for ending in (".safetensors", ".json", ".png"):
        placed = lora.with_suffix(ending).read_bytes()
        assert (webui / "models/Lora/scribble").with_suffix(ending).read_bytes() == placed
        assert (comfyui / "models/loras/scribble").with_suffix(ending).read_bytes() == placed
    after = tree(webui), tree(comfyui)
    again = install(*both, "--lora", lora)
    assert again.returncode == 0 and again.stdout.count("already") == 8 and (tree(webui), tree(comfyui)) == after
    gone = install(*both, "--uninstall")
    assert gone.returncode == 0 and (tree(webui), tree(comfyui)) == before, gone.stderr
    assert "nothing of this program" in install(*both, "--uninstall").stdout
    assert (ROOT / "install.py").exists(), "the link went, not what it leads to"


def test_a_newer_lora_replaces_what_was_placed_and_only_that(webui, lora) -> None:
    install("--webui", webui, "--lora", lora)
    lora.with_suffix(".png").write_bytes(b"newer")
    assert install("--webui", webui, "--lora", lora).returncode == 0
    assert (webui / "models/Lora/scribble.png").read_bytes() == b"newer"
    (webui / "models/Lora/scribble.json").write_text('{"notes": "my own"}')
    lora.with_suffix(".json").write_text('{"notes": "theirs"}')
    before = tree(webui)
    refused = install("--webui", webui, "--lora", lora)
    assert refused.returncode == 2 and "scribble.json: differs from" in refused.stderr and tree(webui) == before
    assert "scribble.json was changed after installation: kept" in install("--webui", webui, "--uninstall").stdout
    assert sorted(p.name for p in (webui / "models/Lora").iterdir()) == ["mine.safetensors", "scribble.json"]


def test_wrong_folders_are_one_line(webui, comfyui, lora, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    theirs = tmp_path / "theirs.safetensors"
    save_file({"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight": torch.ones(4, 320),
               "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.up.weight": torch.ones(320, 4)}, theirs)
    narrow = {f"{MODULE}.lora_down.weight": torch.ones(4, 64), f"{MODULE}.lora_up.weight": torch.ones(64, 4)}
    earlier, other = tmp_path / "earlier.safetensors", tmp_path / "other.safetensors"
    save_file(narrow, earlier, metadata={"ss_base_model_version": "scribble_miniature"})
    save_file(narrow, other, metadata={"ss_base_model_version": "like_sd_v1"})
    before = tree(tmp_path)
    for arguments, said in (
        (("--webui", tmp_path / "no"), "no such folder"), (("--webui", tmp_path / "empty"), "has no webui.py"),
        (("--webui", comfyui), "give it with --comfyui"), (("--comfyui", webui), "give it with --webui"),
        (("--dry-run",), "--webui PATH or --comfyui PATH"), (("--web",), "--web"),
        (("--webui", webui, "--lora", webui / "webui.py"), "webui.py"),
        (("--webui", webui, "--lora", "no.safetensors"), "no such file"),
        (("--webui", webui, "--lora", theirs), "python -m convert"),
        (("--webui", webui, "--lora", earlier), "an earlier miniature, which this project no longer has: train it again"),
        (("--webui", webui, "--lora", other), "is a LoRA of like_sd_v1, without Stable Diffusion 1.5's shapes"),
        (("--webui", webui, "--lora", lora, "--uninstall"), "--lora"), (("--webui", webui, "--demo", "--uninstall"), "--demo"),
        (("--webui", webui, "--comfyui", tmp_path / "empty"), "has no main.py"),
    ):  # fmt: skip
        result = install(*arguments)
        assert result.returncode == 2 and said in result.stderr and result.stderr.count("\n") == 1, result
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_existing_files_are_kept(webui, tmp_path, kind) -> None:
    place = webui / "extensions/scribble-lora"
    if kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(tmp_path)
    before = tree(webui)
    for arguments in ((), ("--uninstall",)):
        result = install("--webui", webui, *arguments)
        assert result.returncode == (0 if arguments else 2) and tree(webui) == before
    assert "remove" in install("--webui", webui).stderr


def test_when_a_host_starts_it_prints_nothing_and_imports_nothing_heavy(webui) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "install.py")]
    result = subprocess.run(command, cwd=webui, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    heavy = {"argparse", "convert", "hashlib", "installer", "torch"}
    assert (result.returncode, result.stdout) == (0, "") and not imported & heavy


def test_no_arguments_on_a_terminal_is_help() -> None:
    ours, theirs = os.openpty()
    process = subprocess.run([sys.executable, str(ROOT / "install.py")], stdin=theirs, stdout=theirs, timeout=60)
    os.close(theirs)
    assert process.returncode == 0 and b"usage: python install.py" in os.read(ours, 4096)
    os.close(ours)


@pytest.fixture
def repository(tmp_path) -> Path:
    """The path of install.py in a small repository, where links fail as on a disk without links."""
    repository = tmp_path / "repository"
    shutil.copytree(ROOT / "installer", repository / "installer", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "install.py", repository)
    (repository / "extension").mkdir()
    (repository / "extension/a.py").write_text("a = 1\n")
    placing = repository / "installer/placing.py"
    blocked = "def no(*a, **k): raise OSError(1, 'Operation not permitted')\nPath.symlink_to = no\n"
    placing.write_text(placing.read_text(encoding="utf-8").replace("HERE = ", blocked + "HERE = ", 1), encoding="utf-8")
    subprocess.run(["git", "init", "-q", repository], check=True)
    subprocess.run(["git", "-C", repository, "add", "."], check=True)
    return repository / "install.py"


def test_where_no_link_is_allowed_the_tracked_files_are_copied(webui, repository) -> None:
    script, repository = repository, repository.parent
    (repository / "untracked.bin").write_text("big")
    before, place = tree(webui), webui / "extensions/scribble-lora"
    result = install("--webui", webui, script=script)
    assert result.returncode == 0 and "copying instead" in result.stdout, result.stderr
    record = json.loads((place / RECORD).read_text())["files"]
    assert {name for name in record if not name.startswith("installer/")} == {"extension/a.py", "install.py"}
    assert record["extension/a.py"] == [hashlib.sha256(b"a = 1\n").hexdigest()]
    assert not (place / "untracked.bin").exists()
    (repository / "extension/a.py").write_text("a = 2\n")
    assert install("--webui", webui, script=script).returncode == 0 and (place / "extension/a.py").read_text() == "a = 2\n"
    (place / "extension/a.py").write_text("a = 3  # mine\n")
    refused = install("--webui", webui, script=script)
    assert refused.returncode == 2 and "extension/a.py was added or changed" in refused.stderr
    assert "kept" in install("--webui", webui, "--uninstall", script=script).stdout
    assert (place / "extension/a.py").exists() and not (place / "install.py").exists()
    (place / "extension/a.py").unlink()
    (place / "extension").rmdir()
    place.rmdir()
    assert tree(webui) == before


def test_a_copy_whose_host_has_run_is_renewed_and_removed(webui, repository) -> None:
    before, place = tree(webui), webui / "extensions/scribble-lora"
    install("--webui", webui, script=repository)
    for compiled in (place / "__pycache__/install.cpython-310.pyc", place / "extension/__pycache__/a.cpython-310.pyc"):
        compiled.parent.mkdir()
        compiled.write_bytes(b"compiled")
    (repository.parent / "extension/a.py").write_text("a = 2\n")
    assert install("--webui", webui, script=repository).returncode == 0
    assert (place / "extension/a.py").read_text() == "a = 2\n"
    (place / "settings.json").write_text("mine")
    refused = install("--webui", webui, script=repository)
    assert refused.returncode == 2 and "settings.json was added or changed: move it away first" in refused.stderr
    (place / "settings.json").unlink()
    assert install("--webui", webui, "--uninstall", script=repository).returncode == 0 and tree(webui) == before


@pytest.mark.parametrize("name", [
    "../mine.txt", "../../../mine.txt", "{outside}", "link/mine.txt", "a/../../mine.txt", "", ".", "C:mine.txt", "..\\mine.txt",
])  # fmt: skip
def test_a_record_is_data(webui, lora, tmp_path, name) -> None:
    """A path outside the folder never counts as an installed file, even if its hash matches."""
    install("--webui", webui, "--lora", lora)
    folder = webui / "models/Lora"
    for place in (tmp_path, webui, webui / "models"):
        (place / "mine.txt").write_text("mine")
    (folder / "link").symlink_to(webui, target_is_directory=True)
    record = json.loads((folder / RECORD).read_text())
    record["files"][name.format(outside=tmp_path / "mine.txt")] = hashlib.sha256(b"mine").hexdigest()
    (folder / RECORD).write_text(json.dumps(record))
    result = install("--webui", webui, "--uninstall")
    assert result.returncode == 0 and "was not installed in that folder: kept" in result.stdout, result
    assert all((place / "mine.txt").exists() for place in (tmp_path, webui, webui / "models"))
    assert not (folder / "scribble.safetensors").exists()


@pytest.mark.parametrize("content", [
    "{", "[]", '{"files": []}', '{"files": {"a": 1}}', "[" * 100000, '{"files": {}, "made": "x"}',
])  # fmt: skip
def test_a_damaged_record_is_one_line(webui, content) -> None:
    (webui / "models/Lora" / RECORD).write_text(content)
    result = install("--webui", webui, "--uninstall")
    assert result.returncode == 2 and "delete it; its files are then kept" in result.stderr
    assert result.stderr.count("\n") == 1 and len(result.stderr) < 500


def test_a_file_in_the_loras_place_is_named_and_kept(webui, lora) -> None:
    folder = webui / "models/Lora"
    (folder / "scribble.json").symlink_to("/nowhere/scribble.json")
    (folder / "scribble.png").mkdir()
    for name, take_away in (("scribble.json", os.unlink), ("scribble.png", os.rmdir)):
        before = tree(webui)
        result = install("--webui", webui, "--lora", lora)
        assert result.returncode == 2 and name in result.stderr and "remove it first" in result.stderr
        assert tree(webui) == before
        take_away(folder / name)
    shutil.rmtree(folder)
    for kind, make in (("a file", folder.touch), ("a broken link", lambda: folder.symlink_to("/nowhere"))):
        make()
        before = tree(webui)
        result = install("--webui", webui, "--lora", lora)
        assert result.returncode == 2 and f"models/Lora: is {kind}, not a folder" in result.stderr and tree(webui) == before
        folder.unlink()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named_and_can_be_undone(webui, lora, repository) -> None:
    before = tree(webui)
    record = webui / "models/Lora" / f".{RECORD}.part"
    record.symlink_to("/dev/full")
    result = install("--webui", webui, "--lora", lora)
    assert result.returncode == 1 and "No space left on device" in result.stderr and "models/Lora" in result.stderr
    assert result.stderr.count("\n") == 1
    assert install("--webui", webui, "--uninstall").returncode == 0 and tree(webui) == before


def test_a_user_that_does_not_exist_is_one_line() -> None:
    result = install("--webui", "~nobody-of-that-name/webui")
    assert result.returncode == 2 and "--webui ~nobody-of-that-name/webui: cannot be looked up" in result.stderr


def test_a_kill_leaves_nothing_that_uninstall_does_not_remove(tmp_path) -> None:
    """Tries every sixth change of the disk; `python tests/install/kill_points.py DIR` tries all."""
    found = kill_at_every_point(tmp_path, every=6)
    assert sum(way["points"] for way in found.values()) >= 20
    assert {way: result["wrong"] for way, result in found.items() if result["wrong"]} == {}


def test_a_repository_inside_a_host_needs_no_path(webui, lora) -> None:
    place = webui / "extensions/scribble-lora"
    place.mkdir()
    (place / "convert").symlink_to(ROOT / "convert")
    shutil.copytree(ROOT / "installer", place / "installer")
    script = Path(shutil.copy(ROOT / "install.py", place))
    result = install("--lora", lora, script=script)
    assert result.returncode == 0 and "is already in" in result.stdout, result.stderr
    assert (webui / "models/Lora/scribble.safetensors").exists()
    said = install("--uninstall", script=script).stdout
    assert "delete the folder" in said and not (webui / "models/Lora/scribble.safetensors").exists()
