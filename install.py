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
                   help="also place this LoRA, its card (.json) and picture (.png) with the host's LoRA files")
    p.add_argument("--demo", action="store_true", help="also make and place the miniature's checkpoint (2.1 GB) and place the "
                   "demo's LoRA; needs the trainer's environment")
    p.add_argument("--uninstall", action="store_true", help="remove what this program placed there, and nothing else")
    p.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return p


def targets(options: argparse.Namespace) -> list[tuple[Host, Path]]:
    """The hosts to work on: those given, else the one that this repository lies in."""
    given = [(host, host_folder(host, path)) for host, path in ((WEBUI, options.webui), (COMFYUI, options.comfyui)) if path]
    if given:
        return given
    own = around(HERE)
    if own is not None:
        return [own]
    raise UsageError("which host? Give --webui PATH or --comfyui PATH, its own folder")


def check_lora(path: Path) -> None:
    """Refuse what a host would not apply: damaged files, other bases, forms that a web UI skips. UsageError says which."""
    from convert import JobError, read
    from convert.miniature import EARLIER, EARLIER_IS_GONE

    if not path.is_file():
        raise UsageError(f"--lora {path}: there is no such file")
    try:
        lora = read(path)
    except JobError as error:
        raise UsageError(f"--lora {error}") from error
    if lora.base == EARLIER:
        raise UsageError(f"--lora {path}: {EARLIER_IS_GONE}")
    if not lora.fits_sd15:
        raise UsageError(f"--lora {path}: is a LoRA of {lora.base}, not of Stable Diffusion 1.5's shapes: no host applies it "
                         "to a checkpoint of that; place another")
    if lora.form != "kohya":
        raise UsageError(f"--lora {path}: is a file in the form {lora.form}, which a web UI skips in silence: convert it first "
                         f"with python -m convert {path}")


def demo_lora() -> tuple[list[Path], list[Step]]:
    """The demo's LoRA if it can be placed; else a step that says what to do for it."""
    if not DEMO.exists():
        return [], [Step(f"{DEMO} is not there yet: python -m trainer --demo trains it in some minutes; then run this again")]
    try:
        check_lora(DEMO)
    except UsageError as error:
        return [], [Step(f"not placed: {str(error).removeprefix('--lora ')}")]
    return [DEMO], []


def steps_of(options: argparse.Namespace) -> list[Step]:
    """All that is to be done. Every check comes before the first change."""
    if options.uninstall and (options.lora or options.demo):
        raise UsageError("--uninstall removes everything that was placed: leave --lora and --demo out")
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
        print("install.py: stopped: the same command goes on, --uninstall removes what was placed", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
