"""Runs a row's command in a subprocess: reports its failure in one line, and passes a stop on to it before the study ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from convert.files import write_text

FAILED = "failed.txt"
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_module(folder: Path, module: str, *arguments: object) -> None:
    """Run `python -m module`. If it fails, the last line of its stderr goes into `folder`/failed.txt.

    Ctrl-C, SIGTERM and SIGHUP are passed on to it once each; this then waits while it saves and exits.

    Raises:
        KeyboardInterrupt: a stop was requested, and the command has ended.
    """
    environment = {key: value for key, value in os.environ.items()
                   if key not in _LAUNCHER and not key.startswith("TORCHELASTIC_")}
    errors = folder / "stderr.txt"
    command = [sys.executable, "-m", module, *map(str, arguments)]
    # in a new session, so that a terminal's Ctrl-C reaches it only through us and not twice
    child = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, start_new_session=os.name == "posix")
    with _passing_on(child) as asked, open(errors, "wb") as stream:
        assert child.stderr
        pipe = child.stderr.fileno()
        for chunk in iter(lambda: os.read(pipe, 4096), b""):  # progress bars are passed through immediately
            stream.write(chunk)
            sys.stderr.buffer.write(chunk)
            sys.stderr.flush()
        status = child.wait()
    if asked or status == 130:
        raise KeyboardInterrupt
    if status:
        lines = errors.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().splitlines()
        write_text(folder / FAILED, lines[-1] if lines else f"exit status {status}")


@contextmanager
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Forward signals to `child` instead of ending this process; yields the list of received ones."""
    came: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if os.name == "posix":  # a Windows console signals both processes
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
