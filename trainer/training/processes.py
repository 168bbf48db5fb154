"""A run in several processes: `accelerate launch -m trainer ...`.

Each process takes its slice of every step's batch; gradients are summed once per optimizer step, in one flat buffer.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread

import torch
from torch import distributed

from convert.errors import JobError


@dataclass(frozen=True)
class Processes:
    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        return self.rank == 0

    def slice_of(self, length: int) -> slice:
        """This process's rows of a batch of `length`: contiguous, with sizes that differ by at most one."""
        return slice(self.rank * length // self.count, (self.rank + 1) * length // self.count)

    def all_reduce_sum(self, flat: torch.Tensor) -> None:
        """Sum `flat` over the processes in place, with one all-reduce."""
        if self.count > 1:
            distributed.all_reduce(flat)

    def all_reduce_min(self, number: int, device: torch.device) -> int:
        """The smallest of the processes' numbers."""
        if self.count == 1:
            return number
        least = torch.tensor([number], device=device)
        distributed.all_reduce(least, op=distributed.ReduceOp.MIN)
        return int(least.item())

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process runs the body, then all others, which can read a cache that it has filled."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def wait(self) -> None:
        if self.count > 1:
            distributed.barrier()


LONGEST_WAIT = timedelta(days=1)
"""The first process may encode for hours while the others wait; torch's own limit is 10 to 30 minutes."""


LAUNCHED = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}
"""Set by torchrun and by `accelerate launch`, but not in a process started by hand, whose shell may end first."""
POLL = 5.0  # seconds


def _stop_without(launcher: int) -> None:
    """Stop this process, as SIGTERM does, once its launcher has ended: a launcher killed with -9 cannot do so itself, and its
    processes would continue unnoticed."""
    while os.getppid() == launcher:  # an orphan is reparented
        time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGTERM)


def join(device: str) -> Processes:
    """Join the processes started by a launcher (accelerate, torchrun); a single process without one. `device`: as in
    `devices.choose`.

    Raises:
        JobError: the launcher's processes cannot connect to each other.
    """
    if os.name == "posix" and not os.environ.keys().isdisjoint(LAUNCHED):
        Thread(target=_stop_without, args=(os.getppid(),), daemon=True).start()
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if wanted == 1:
        return Processes()
    from accelerate import PartialState

    cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    state = PartialState(cpu=cpu, timeout=LONGEST_WAIT)
    if state.num_processes != wanted:
        raise JobError(f"the launcher started {wanted} processes and accelerate joined {state.num_processes}: give the same "
                       "--device to all, and no other distributed settings of accelerate")
    return Processes(rank=state.process_index, count=state.num_processes, local_rank=state.local_process_index)
