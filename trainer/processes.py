"""Several processes, one run: `accelerate launch -m trainer ...`.

Each process takes its slice of every step's batch; gradients are summed once per optimizer step, in one flat buffer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Processes:
    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        return self.rank == 0

    def slice_of(self, length: int) -> slice:
        """This process's rows of a batch of `length`: contiguous, sizes differing by one at most."""
        return slice(self.rank * length // self.count, (self.rank + 1) * length // self.count)

    def sum_(self, flat: torch.Tensor) -> None:
        """Add up `flat` over the processes, in place: one all-reduce."""
        if self.count > 1:
            distributed.all_reduce(flat)

    def least(self, number: int, device: torch.device) -> int:
        """The smallest of the processes' numbers."""
        if self.count == 1:
            return number
        least = torch.tensor([number], device=device)
        distributed.all_reduce(least, op=distributed.ReduceOp.MIN)
        return int(least.item())

    def wait(self) -> None:
        if self.count > 1:
            distributed.barrier()


def join(*, cpu: bool) -> Processes:
    """Join the processes that a launcher (accelerate, torchrun) started; alone without one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=cpu)
    return Processes(rank=state.process_index, count=state.num_processes, local_rank=state.local_process_index)
