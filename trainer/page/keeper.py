"""`python -m trainer.page.keeper JOB`: runs the command of a job folder to its end, even if the page is closed.

It holds the folder's lock, passes on a request to stop, and records the exit status, which only a parent process receives.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convert.errors import JobError
from convert.files import write_json
from trainer.page.jobs import EXIT, STOP, read_job
from trainer.runs.lock import lock

LOOK = 0.3  # seconds between checks of the stop file
TRIES, PAUSE = 40, 0.05  # seconds


def main(argv: list[str]) -> int:
    """Returns the command's exit status."""
    folder = Path(argv[0])
    with _locked(folder):
        job = read_job(folder)
        status = keep([sys.executable, "-m", job.module, *job.argv], folder / STOP)
        if status < 0 and not (folder / STOP).exists():
            print(f"{job.module}: was ended by {_name(-status)}; the system does so if memory runs out", flush=True)
        write_json(folder / EXIT, {"status": status, "ended": time.time()})
    return max(status, 0)


def keep(command: list[str], stop: Path) -> int:
    """Run `command`, ask it to stop once the file `stop` exists, and return its exit status."""
    flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # on Windows only a separate process group can be asked to stop
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, creationflags=flags)
    signal.signal(signal.SIGTERM, lambda *_: _ask(child))
    asked = False
    while True:
        try:
            return child.wait(LOOK)
        except subprocess.TimeoutExpired:
            if not asked and stop.exists():
                asked = True
                _ask(child)


def _ask(child: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        child.send_signal(signal.CTRL_BREAK_EVENT)
    else:
        child.send_signal(signal.SIGTERM)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder's lock. Retried, because the page takes it briefly to see whether it is held."""
    for attempt in range(TRIES):
        held = lock(folder, "wait for it")
        try:
            held.__enter__()
            break
        except JobError:
            if attempt == TRIES - 1:
                raise
            time.sleep(PAUSE)
    try:
        yield
    finally:
        held.__exit__(None, None, None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
