"""Installs this repository, and LoRA files, into a web UI or ComfyUI; and uninstalls exactly what it installed.

Hosts run this file at start without arguments; then it exits at once without output. Standard library only; it never
installs packages into a host's Python.
"""

# ruff: noqa: E402 - a host waits for this file at start, so it must exit before the imports

from __future__ import annotations

import sys

AT_A_HOSTS_START = len(sys.argv) == 1 and not (sys.stdout and sys.stdout.isatty() and sys.stdin and sys.stdin.isatty())
if __name__ == "__main__" and AT_A_HOSTS_START:
    sys.exit(0)

import argparse
from pathlib import Path
from typing import NoReturn

from convert.errors import escape_what_a_console_lacks
from installer import JobError, UsageError
from installer.hosts import COMFYUI, WEBUI, Host, around, host_folder
from installer.miniature import miniature_steps
from installer.placing import HERE, Step, link_steps, lora_steps, uninstall_steps

DEMO = HERE / "demo" / "scribble.safetensors"
"""The LoRA that `python -m trainer --demo` writes."""

EXAMPLES = """examples:
  python install.py --webui ~/stable-diffusion-webui --lora scribble.safetensors
  python install.py --comfyui "C:\\ComfyUI_windows_portable" --webui D:\\webui --dry-run
  python install.py --webui ~/stable-diffusion-webui --demo
  python install.py --webui ~/stable-diffusion-webui --uninstall
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help shows all)")


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python install.py", description="Link this repository into AUTOMATIC1111's web UI, ComfyUI or both.",
               epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)  # fmt: skip
    p.add_argument("--webui", type=Path, metavar="PATH", help="the web UI's folder (AUTOMATIC1111, Forge, reForge)")
    p.add_argument("--comfyui", type=Path, metavar="PATH", help="ComfyUI's folder")
    p.add_argument("--lora", type=Path, metavar="FILE", action="append", default=[],
                   help="also install this LoRA, its card (.json) and picture (.png) with the host's LoRA files")
    p.add_argument("--demo", action="store_true", help="also write the miniature's checkpoint (2.1 GB) and install the "
                   "demo's LoRA; needs the trainer's environment")
    p.add_argument("--uninstall", action="store_true", help="remove what this program installed, and nothing else")
    p.add_argument("--dry-run", action="store_true", help="print the steps without running them")
    return p


def targets(options: argparse.Namespace) -> list[tuple[Host, Path]]:
    """The hosts to work on: those given, else the one that contains this repository."""
    given = [(host, host_folder(host, path)) for host, path in ((WEBUI, options.webui), (COMFYUI, options.comfyui)) if path]
    if given:
        return given
    own = around(HERE)
    if own is not None:
        return [own]
    raise UsageError("no host is given: give --webui PATH or --comfyui PATH, the host's own folder")


def check_lora(path: Path) -> None:
    """Raise UsageError for a file that hosts do not apply: damaged, for another base, or in a form that a web UI skips."""
    from convert import JobError, read
    from convert.miniature import EARLIER, EARLIER_IS_GONE

    if not path.is_file():
        raise UsageError(f"--lora {path}: no such file")
    try:
        lora = read(path)
    except JobError as error:
        raise UsageError(f"--lora {error}") from error
    if lora.base == EARLIER:
        raise UsageError(f"--lora {path}: {EARLIER_IS_GONE}")
    if not lora.fits_sd15:
        raise UsageError(f"--lora {path}: is a LoRA of {lora.base}, without Stable Diffusion 1.5's shapes, so hosts cannot "
                         "apply it to such a checkpoint: give another")
    if lora.form != "kohya":
        raise UsageError(f"--lora {path}: is in the form {lora.form}, which a web UI silently skips: convert it first "
                         f"with python -m convert {path}")


def demo_lora() -> tuple[list[Path], list[Step]]:
    """The demo's LoRA if it can be installed; else a step that explains how to make it."""
    if not DEMO.exists():
        return [], [Step(f"{DEMO} does not exist: python -m trainer --demo trains it in a few minutes; then run this again")]
    try:
        check_lora(DEMO)
    except UsageError as error:
        return [], [Step(f"not installed: {str(error).removeprefix('--lora ')}")]
    return [DEMO], []


def steps_of(options: argparse.Namespace) -> list[Step]:
    """All steps of the command. All checks run before the first step."""
    if options.uninstall and (options.lora or options.demo):
        raise UsageError("--uninstall removes everything that was installed: leave out --lora and --demo")
    for lora in options.lora:
        check_lora(lora)
    hosts = targets(options)
    if options.uninstall:
        return [step for host, home in hosts for step in uninstall_steps(host, home)]
    demo, notes = demo_lora() if options.demo else ([], [])
    steps: list[Step] = []
    for host, home in hosts:
        steps += link_steps(host, home)
        for lora in dict.fromkeys([*options.lora, *demo]):
            steps += lora_steps(host, home, lora)
    return [*steps, *(miniature_steps(hosts) if options.demo else ()), *notes]


def run(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    steps = steps_of(options)
    for step in steps:
        print(f"would {step.text}" if options.dry_run and step.do else step.text, flush=True)
        if step.do and not options.dry_run:
            step.do()
    if any(step.do for step in steps) and not options.dry_run:
        print("done: restart the host")
    return 0


def main() -> int:
    escape_what_a_console_lacks()
    if len(sys.argv) == 1:
        parser().print_help()
        return 0
    try:
        return run(sys.argv[1:])
    except UsageError as error:
        print(f"install.py: {error}", file=sys.stderr)
        return 2
    except (JobError, OSError) as error:
        print(f"install.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install.py: stopped: run the same command to continue, or --uninstall to remove everything", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
