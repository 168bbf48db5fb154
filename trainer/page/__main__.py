"""`python -m trainer.page`: pictures, recipe, training and result in a browser. It runs the command-line programs."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convert.errors import JobError, UsageError
from trainer.cli import CACHE, Parser
from trainer.recipe import home
from trainer.terminal import command, say

if TYPE_CHECKING:
    from trainer.page.context import Context

EXAMPLES = """examples:
  python -m trainer.page --folder ~/Pictures                  offers the folders inside it
  python -m trainer.page --demo                               also queues the demo's training
"""
PORT = 7870
KEEP = ".page"
"""Subfolder of the work folder with the queue and the named folders."""


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m trainer.page", description="Train from a page in your browser.", allow_abbrev=False,
               epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--folder", type=Path, action="append", default=[], metavar="DIR", help="a folder whose pictures, "
                   "checkpoints and web UIs the page may use; may be given again (on this machine, the page can add more)")
    p.add_argument("--work", type=Path, default=Path("loras"), metavar="DIR", help="folder for LoRAs, runs, reports and the "
                   "queue (default loras)")
    p.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default 127.0.0.1, this "
                   "machine only); on any other the page has a password, and only the folders of --folder")
    p.add_argument("--port", type=int, default=PORT, metavar="N", help=f"port (default {PORT})")
    p.add_argument("--browser", action=argparse.BooleanOptionalAction, default=True, help="open the browser (default: yes)")
    p.add_argument("--demo", action="store_true", help="add the demo's training to the queue")
    p.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help="folder for downloads and encodings "
                   "(default ~/.cache/scribble-lora)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 stopped by the user, 1 the page could not start, 2 bad usage."""
    return command("trainer.page", lambda: _run(parser().parse_args(argv)))


def _run(options: argparse.Namespace) -> int:
    if not 1 <= options.port <= 65535:
        raise UsageError(f"--port {options.port}: expected 1 to 65535")
    for folder in options.folder:
        if not home(str(folder)).is_dir():
            raise UsageError(f"--folder {folder}: there is no such folder")
    if not importlib.util.find_spec("gradio"):
        raise JobError(f"{sys.executable} has no package 'gradio': pip install -e '.[page]' in this environment")
    from trainer.page.server import serve
    from trainer.runs.lock import lock

    work = home(str(options.work)).absolute()
    keep = work / KEEP
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with lock(keep, "give another --work"):
        context = _context(options, work, keep)
        if options.demo:
            _queue_demo(context)
        serve(context, host=options.host, port=options.port, browser=options.browser, stop=stop)
    say("the page is closed")
    return 0


def _context(options: argparse.Namespace, work: Path, keep: Path) -> Context:
    from trainer.page.commands import Places
    from trainer.page.context import Context
    from trainer.page.folders import Folders
    from trainer.page.guard import LOOPBACK
    from trainer.page.queue import Queue

    folders = Folders(keep, [work, *(home(str(folder)) for folder in options.folder)], more=options.host in LOOPBACK)
    return Context(folders, Queue(keep / "queue"), Places(work), home(str(options.cache)))


def _queue_demo(context: Context) -> None:
    """Queue the demo unless it is in the queue or done."""
    from trainer.page.training import DEMO_WISH, start_training

    out = context.places.out(DEMO_WISH.name)
    if not any(job.out == out for job in context.queue.jobs()):
        start_training(context, DEMO_WISH)


if __name__ == "__main__":
    sys.exit(main())
