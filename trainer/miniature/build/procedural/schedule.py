"""What the build's four training loops share: seeds, the learning rate's cosine, an optimizer step, a line of progress."""

from __future__ import annotations

import math
import time

import torch


def seeded(seed: int) -> torch.Generator:
    """Seed torch's global generator (weight initialisation) and return another for the loop's draws."""
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def cosine(step: int, steps: int, *, warmup: int) -> float:
    """The learning rate's factor at `step` of `steps`: linear warm-up, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def optimizer_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    """One step at learning rate `rate`, the gradient's norm clipped at 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimizer.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        group["lr"] = rate
    optimizer.step()


class Progress:
    """Prints the mean loss and the pace every 20 steps."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps, self.start, self.done = name, steps, time.monotonic(), 0
        self.losses: list[float] = []

    def __call__(self, step: int, loss: torch.Tensor) -> None:
        self.losses.append(loss.item())
        self.done += 1  # not `step`: a stage may have gone on from a kept state
        if (step + 1) % 20 == 0 or step + 1 == self.steps:
            pace = (time.monotonic() - self.start) / self.done
            mean = sum(self.losses) / len(self.losses)
            print(f"{self.name} {step + 1}/{self.steps} loss {mean:.4f} {pace:.2f} s/step", flush=True)
            self.losses = []
