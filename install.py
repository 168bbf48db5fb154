"""Puts this repository, and LoRA files, where a web UI or a ComfyUI looks for them; and takes exactly that away again.

A host that runs this file at its start gives no arguments: then it does nothing, at once, in silence. Standard library
only; nothing is ever installed into a host's Python.
"""

# ruff: noqa: E402 - a host waits for this file at its start: it does not pay for the imports

from __future__ import annotations

import sys

AT_A_HOSTS_START = len(sys.argv) == 1 and not (sys.stdout and sys.stdout.isatty() and sys.stdin and sys.stdin.isatty())
if __name__ == "__main__" and AT_A_HOSTS_START:
    sys.exit(0)

import argparse
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
FOLDER = "scribble-lora"
"""What our folder is called inside a host."""
RECORD = ".scribble-lora-install.json"
"""Beside what was placed: names and sha256, so that --uninstall removes that and nothing else."""
BESIDE = (".json", ".png")
"""A LoRA's card and picture have its name and these endings."""
EXAMPLES = """examples:
  python install.py --webui ~/stable-diffusion-webui --lora scribble.safetensors
  python install.py --comfyui "C:\\ComfyUI_windows_portable" --webui D:\\webui --dry-run
  python install.py --webui ~/stable-diffusion-webui --uninstall
"""


class UsageError(Exception):
    """The command asks for what cannot be: one line, exit code 2."""


@dataclass(frozen=True)
class Host:
    """What tells a host's folder, and where it looks."""

    flag: str
    name: str
    marks: tuple[str, ...]
    """files and folders that every one of them has"""
    plugins: str
    loras: str
    inner: tuple[str, ...]
    """sub-folders in which its all-in-one packages keep it"""


WEBUI = Host("--webui", "web UI", ("webui.py", "modules/scripts.py", "extensions"), "extensions", "models/Lora", ("webui",))
COMFYUI = Host("--comfyui", "ComfyUI", ("main.py", "nodes.py", "comfy", "custom_nodes"), "custom_nodes", "models/loras",
               ("ComfyUI",))  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One thing to be done. text: what, beginning with a verb; None for do: it is so already."""

    text: str
    do: Callable[[], None] | None = None


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help shows all)")


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python install.py", description="Link this repository into AUTOMATIC1111's web UI, ComfyUI or both.",
               epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)  # fmt: skip
    p.add_argument("--webui", type=Path, metavar="PATH", help="the web UI's folder (AUTOMATIC1111, Forge, reForge)")
    p.add_argument("--comfyui", type=Path, metavar="PATH", help="ComfyUI's folder")
    p.add_argument("--lora", type=Path, metavar="FILE", action="append", default=[],
                   help="also place this LoRA, its card (.json) and picture (.png) with the host's LoRA files")
    p.add_argument("--uninstall", action="store_true", help="remove what this program placed there, and nothing else")
    p.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return p


def host_folder(host: Host, given: Path) -> Path:
    """The folder with the host's marks: `given` or the inner folder of an all-in-one package. UsageError for another."""
    given = given.expanduser().resolve()
    for place in (given, *(given / name for name in host.inner)):
        if all((place / mark).exists() for mark in host.marks):
            return place
    if not given.is_dir():
        raise UsageError(f"{host.flag} {given}: there is no such folder")
    lacking = next(mark for mark in host.marks if not (given / mark).exists())
    other = WEBUI if host is COMFYUI else COMFYUI
    found = all((given / mark).exists() for mark in other.marks)
    hint = f"; it looks like a {other.name}: give it with {other.flag}" if found else ""
    raise UsageError(f"{host.flag} {given}: is no {host.name}'s folder (it has no {lacking}){hint}")


def targets(options: argparse.Namespace) -> list[tuple[Host, Path]]:
    """The hosts to work on: those given, else the one that this repository lies in."""
    given = [(host, host_folder(host, path)) for host, path in ((WEBUI, options.webui), (COMFYUI, options.comfyui)) if path]
    if given:
        return given
    for host in (WEBUI, COMFYUI):
        home = HERE.parent.parent
        if HERE.parent.name == host.plugins and all((home / mark).exists() for mark in host.marks):
            return [(host, home)]
    raise UsageError("which host? Give --webui PATH or --comfyui PATH, its own folder")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_record(folder: Path) -> dict[str, str]:
    """Name -> sha256 of what was placed in `folder`; empty where nothing was."""
    try:
        stored = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        return {str(name): str(value) for name, value in stored.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(f"{folder / RECORD}: cannot be read ({error}): delete it; files that it named then stay") from error


def write_record(folder: Path, files: dict[str, str]) -> None:
    write(folder / RECORD, json.dumps({"files": files}, indent=2).encode())


def write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def is_link(path: Path) -> bool:
    """A symbolic link, or a Windows junction, which `is_symlink` does not count."""
    return path.is_symlink() or (os.name == "nt" and path.exists() and os.path.realpath(path) != os.path.abspath(path))


def link_steps(host: Host, home: Path) -> list[Step]:
    place = home / host.plugins / FOLDER
    if HERE.parent == (home / host.plugins).resolve():
        return [Step(f"{host.name}: this repository already lies in {HERE.parent}")]
    if is_link(place):
        if place.resolve() == HERE:
            return [Step(f"{host.name}: {place} is already linked")]
        raise UsageError(f"{place}: is a link to {place.resolve()}, not to this repository: remove it first")
    if place.exists() and not (place / RECORD).exists():
        raise UsageError(f"{place}: is there already and was not placed by this program: remove or rename it first")
    old = remove_steps(place)
    if changed := [step.text for step in old if step.do is None]:
        raise UsageError(f"{place}: the copy there cannot be renewed: {'; '.join(changed)[:300]}")
    return [*old, Step(f"link {place} to {HERE}", partial(link, place))]


def link(place: Path) -> None:
    """A symbolic link; on Windows a junction, which needs no rights; where neither is allowed, a copy."""
    try:
        if os.name == "nt":
            import _winapi

            _winapi.CreateJunction(str(HERE), str(place))  # type: ignore[attr-defined,unused-ignore]
        else:
            place.symlink_to(HERE, target_is_directory=True)
    except OSError as error:
        print(f"no link is possible there ({error.strerror or error}): copying instead; run this again after an update")
        copy(place)


def tracked() -> list[str]:
    """The repository's own files, as git lists them."""
    try:
        listed = subprocess.run(["git", "-C", str(HERE), "ls-files", "-z"], capture_output=True, check=True).stdout
        names = [name for name in listed.decode("utf-8", "surrogateescape").split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive, or no git: what an archive would hold
        left_out = {".git", ".venv", "venv", "runs", "build", "__pycache__"}
        paths = [path.relative_to(HERE) for path in HERE.rglob("*") if path.is_file()]
        names = [path.as_posix() for path in paths if not left_out & set(path.parts)]
    return [name for name in names if (HERE / name).is_file()]


def copy(place: Path) -> None:
    """The tracked files under `place`, with a record of them; it appears whole."""
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    files = {}
    try:
        for name in tracked():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(HERE / name, part / name)
            files[name] = digest(part / name)
        write_record(part, files)
        os.replace(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def lora_steps(host: Host, home: Path, lora: Path) -> list[Step]:
    folder = home / host.loras
    record = read_record(folder)
    steps = []
    for source in (lora, *(lora.with_suffix(ending) for ending in BESIDE)):
        if not source.is_file():
            continue
        target, now = folder / source.name, digest(source)
        if target.exists() and digest(target) == now:
            steps.append(Step(f"{target} is already there"))
        elif target.exists() and record.get(source.name) != digest(target):
            raise UsageError(f"{target}: is another file than {source}, or was changed since: rename one of them")
        else:
            steps.append(Step(f"place {target}", partial(place_file, source, target)))
    return steps


def place_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    write(target, source.read_bytes())
    write_record(target.parent, read_record(target.parent) | {target.name: digest(target)})


def check_lora(path: Path) -> None:
    """Refuse what a host would not apply: damaged files, other bases, forms that a web UI skips. UsageError says which."""
    sys.path.insert(0, str(HERE))
    from convert import JobError, read

    if not path.is_file():
        raise UsageError(f"--lora {path}: there is no such file")
    try:
        lora = read(path)
    except JobError as error:
        raise UsageError(f"--lora {error}") from error
    if any(module.shape != module.module.shape for module in lora.modules.values()):
        raise UsageError(f"--lora {path}: is a LoRA of {lora.base}, not of Stable Diffusion 1.5, and no host has that model: "
                         "train one with python -m trainer, without --demo")
    if lora.form != "kohya":
        raise UsageError(f"--lora {path}: is a file in the form {lora.form}, which a web UI skips in silence: convert it first "
                         f"with python -m convert {path}")


def uninstall_steps(host: Host, home: Path) -> list[Step]:
    place, steps = home / host.plugins / FOLDER, []
    if is_link(place) and place.resolve() == HERE:
        steps.append(Step(f"remove the link {place}", place.rmdir if os.name == "nt" else place.unlink))
    elif place.is_dir() and (place / RECORD).exists():
        steps += remove_steps(place)
    elif HERE.parent == (home / host.plugins).resolve():
        steps.append(Step(f"this repository itself lies in {HERE.parent}: delete the folder {HERE} to remove it"))
    steps += remove_steps(home / host.loras)
    return steps or [Step(f"{host.name}: nothing of this program is in {home}")]


def remove_steps(folder: Path) -> list[Step]:
    """Remove what the record names and is unchanged; what its owner has changed stays, and is said."""
    steps = []
    for name, placed in sorted(read_record(folder).items()):
        target = folder / name
        if not target.exists():
            continue
        if digest(target) != placed:
            steps.append(Step(f"{target} was changed since it was placed: it stays"))
        else:
            steps.append(Step(f"remove {target}", partial(remove, target, folder)))
    if (folder / RECORD).exists():
        steps.append(Step(f"remove {folder / RECORD}", partial(forget, folder)))
    return steps


def remove(target: Path, folder: Path) -> None:
    target.unlink()
    for parent in target.parents:
        if parent == folder or any(parent.iterdir()):
            return
        parent.rmdir()


def forget(folder: Path) -> None:
    (folder / RECORD).unlink()
    if folder.name == FOLDER and not any(folder.iterdir()):
        folder.rmdir()


def run(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    if options.uninstall and options.lora:
        raise UsageError("--uninstall takes away every LoRA that was placed: leave --lora out")
    for lora in options.lora:
        check_lora(lora)
    steps: list[Step] = []
    for host, home in targets(options):  # all checks come before the first change
        if options.uninstall:
            steps += uninstall_steps(host, home)
            continue
        steps += link_steps(host, home)
        for lora in options.lora:
            steps += lora_steps(host, home, lora)
    for step in steps:
        print(f"would {step.text}" if options.dry_run and step.do else step.text, flush=True)
        if step.do and not options.dry_run:
            step.do()
    if any(step.do for step in steps) and not options.dry_run:
        print("done: restart the host")
    return 0


def main() -> int:
    if len(sys.argv) == 1:
        parser().print_help()
        return 0
    try:
        return run(sys.argv[1:])
    except UsageError as error:
        print(f"install.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"install.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
