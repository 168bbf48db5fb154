"""Stopping on request: Ctrl-C, SIGTERM and a closed terminal let the current step end and be saved."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

from trainer.terminal import Say

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]

Handler = Callable[[int, FrameType | None], object] | int | None


class StopRequest:
    """Inside the context, a first signal requests a stop, with a message; a second one has its usual effect. Calling it returns
    whether a stop was requested."""

    def __init__(self, say: Say) -> None:
        self.asked, self._say = False, say
        self._before: dict[int, Handler] = {}

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[number])
        try:
            self._say("stopping: the current step is finished and saved; press Ctrl-C again to stop at once")
        except OSError:  # the terminal is gone: that is why SIGHUP came
            self._say = lambda text: None

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
