"""Kills install.py before each change that it makes to a disk, one after the other, and checks the result.

    python tests/install/kill_points.py SCRATCH [EVERY]   prints, as JSON, the points tried and the failures after them

Ways: `link`, `copy` (a disk without links), `renew` (a copy again over one whose host has run), `demo` (the miniature too),
`remove`, `remove copy` and `remove demo` (--uninstall is killed).
After each kill the advice is followed: --uninstall leaves the host as it was, and another installation completes.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import shutil
import struct
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CHANGES = {"os.rename", "os.mkdir", "os.symlink", "os.link", "os.remove", "os.rmdir", "shutil.copyfile", "subprocess.Popen"}
KILLED = 9

WRITER = """import json, os, struct, sys
from pathlib import Path
out, here = Path(sys.argv[2]), Path.cwd()
with open(here / "calls", "a") as calls:
    calls.write(f"{os.getpid()} {out}\\n")
given = here / "bias.json"
bias = json.loads(given.read_text()) if given.exists() else BIAS
header = json.dumps({"model.diffusion_model.out.2.bias": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}})
part = out.with_name(f".{out.name}.1-{os.getpid()}-0.part")
part.write_bytes(struct.pack("<Q", len(header)) + header.encode() + struct.pack("<4f", *bias))
if (here / "hang").exists():
    sys.stdin.read()
if (here / "fail").exists():
    sys.exit("first line\\npython -m trainer.miniature: the disk is full")
os.replace(part, out)
"""
"""A stand-in for `python -m trainer.miniature --out FILE`: writes 100 bytes beside FILE and renames, as that does."""


def with_writer(repository: Path) -> None:
    """Add a stand-in trainer to a small repository."""
    from convert.miniature import OUT_BIAS

    (repository / "trainer/miniature").mkdir(parents=True)
    for name in ("trainer/__init__.py", "trainer/miniature/__init__.py"):
        (repository / name).touch()
    (repository / "trainer/miniature/__main__.py").write_text(WRITER.replace("BIAS", repr(list(OUT_BIAS))), encoding="utf-8")
    placing = repository / "installer/miniature.py"
    placing.write_text(placing.read_text(encoding="utf-8").replace("BYTES = 2_200_000_000", "BYTES = 1000"), encoding="utf-8")


def tree(folder: Path) -> dict[str, str]:
    """Every file, link and folder with its content; links are not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            content = os.readlink(path) if path.is_symlink() else "" if path.is_dir() else path.read_bytes().hex()
            found[str(path.relative_to(folder))] = content
    return found


def in_child(work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def install(repository: Path, arguments: list[str], kill_at: int = 0, links: bool = True) -> int:
    def work() -> int:
        changes = 0

        def hook(event: str, details: tuple[Any, ...]) -> None:
            nonlocal changes
            writes = event == "open" and isinstance(details[1], str) and any(letter in details[1] for letter in "wax+")
            if event in CHANGES or writes:
                changes += 1
                if changes == kill_at:
                    os._exit(KILLED)

        def no_link(*args: object, **options: object) -> None:
            raise OSError(1, "Operation not permitted")

        if not links:
            Path.symlink_to = no_link  # type: ignore[method-assign,assignment]
        for name in [name for name in sys.modules if name.partition(".")[0] in ("convert", "installer")]:
            del sys.modules[name]  # of another checkout, if a test of this process imported them
        sys.path.insert(0, str(repository))  # as `python install.py` does
        sys.argv = ["install.py", *arguments]
        sys.addaudithook(hook)
        try:
            runpy.run_path(str(repository / "install.py"), run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return in_child(work)


def series(scratch: Path, every: int, links: bool, renew: bool, remove: bool, demo: bool) -> tuple[int, list[str]]:
    repository, lora = scratch / "repository", scratch / "scribble.safetensors"
    wrong: list[str] = []
    for points, point in enumerate(count(1, every)):
        home = scratch / "host"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(scratch / "fresh", home)
        before = tree(home)
        arguments = ["--comfyui", str(home), "--lora", str(lora), *(["--demo"] if demo else [])]
        if renew or remove:
            install(repository, arguments, links=links)
            for name in ("custom_nodes/scribble-lora/__pycache__/a.cpython-310.pyc",) if renew else ():
                (home / name).parent.mkdir()
                (home / name).write_bytes(b"compiled")
            (repository / "a.py").write_text(f"a = {points}\n")
        ended = install(repository, ["--comfyui", str(home), "--uninstall"] if remove else arguments, point, links)
        if ended != KILLED:
            return points, wrong if ended == 0 else [*wrong, f"ended with {ended}"]
        if points % 2 == 0:  # the user tries again first
            again = install(repository, arguments, links=links)
            placed = home / "custom_nodes/scribble-lora/a.py"
            here = placed.is_file() and placed.read_bytes() == (repository / "a.py").read_bytes()
            here = here and (home / "models/checkpoints/scribble-miniature.safetensors").is_file() == demo
            wrong += [] if again == 0 and here else [f"point {point}: installing again ends with {again}, whole: {here}"]
        gone = install(repository, ["--comfyui", str(home), "--uninstall"], links=links)
        left = sorted(set(tree(home).items()) ^ set(before.items()))
        wrong += [] if gone == 0 and not left else [f"point {point}: uninstall ends with {gone} and leaves {left}"]
    raise AssertionError("unreachable")


def prepare(scratch: Path) -> None:
    shutil.copytree(ROOT / "installer", scratch / "repository/installer", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "install.py", scratch / "repository")
    (scratch / "repository/a.py").write_text("a = 1\n")
    with_writer(scratch / "repository")
    for name in ("comfy", "custom_nodes"):
        (scratch / "fresh" / name).mkdir(parents=True)
    for name in ("main.py", "nodes.py"):
        (scratch / "fresh" / name).write_text("")
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    header = json.dumps({
        f"{module}.lora_down.weight": {"dtype": "F32", "shape": [1, 320], "data_offsets": [0, 1280]},
        f"{module}.lora_up.weight": {"dtype": "F32", "shape": [320, 1], "data_offsets": [1280, 2560]},
    })  # fmt: skip
    lora = scratch / "scribble.safetensors"
    lora.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(2560))
    lora.with_suffix(".json").write_text("{}")


def main(scratch: Path, every: int = 1) -> dict[str, Any]:
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(scratch / "repository"), str(ROOT)]
    prepare(scratch)
    for name in ("installer.placing", "installer.hosts", "convert"):  # once, for all the forks
        importlib.import_module(name)
    ways = {"link": (True, False, False, False), "copy": (False, False, False, False), "renew": (False, True, False, False),
            "demo": (True, False, False, True), "remove": (True, False, True, False),
            "remove copy": (False, False, True, False), "remove demo": (True, False, True, True)}  # fmt: skip
    return {way: dict(zip(("points", "wrong"), series(scratch, every, *options))) for way, options in ways.items()}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:])), indent=1))
