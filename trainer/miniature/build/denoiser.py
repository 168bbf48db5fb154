"""Stage `unet`: trains the UNet and the text encoder together on the icons' latents, in any number of sittings.

Optimizer step k draws its batch, timesteps and noise from (SEED, k). The rate is constant after a warm-up, so that training can
continue as long as it improves; `--decay N` ends it with N steps in which the rate falls to zero. The averaged weights are
sampled and shipped; the average covers about a tenth of the training (Karras et al. 2024, EDM2, section 3.1).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler

from trainer.miniature.build.pair import Pair
from trainer.miniature.build.prompts import Captions
from trainer.miniature.build.sheet import draw_sheet
from trainer.miniature.build.sitting import Sitting

SEED, WARMUP, MEMORY = 33, 200, 6.94


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of one sitting; they may change between sittings."""

    steps: int
    """Total optimizer steps, including earlier sittings."""
    batch: int = 16
    rate: float = 6e-4
    """The UNet's rate; the text encoder's is three times as high."""
    decay: int = 0
    """The last steps, in which the rate falls linearly to zero."""
    sheet: int = 20_000
    """Samples between two sheets of pictures."""

    def factor(self, step: int) -> float:
        """The rate's factor at `step`."""
        left = (self.steps - step) / self.decay if self.decay else 1.0
        return min(1.0, (step + 1) / WARMUP, left)


class Training:
    """The networks, their optimizer and averaged weights, and the numbers of steps and samples so far."""

    def __init__(self, known: list[int]) -> None:
        torch.manual_seed(SEED)
        self.pair, self.step, self.samples = Pair(known), 0, 0
        self.average = [p.detach().clone() for p in self.pair.parameters()]
        self.optimizer = torch.optim.AdamW(
            [{"params": list(self.pair.unet.parameters()), "share": 1.0},
             {"params": list(self.pair.text.parameters()), "share": 3.0}], betas=(0.9, 0.99), weight_decay=0.01, fused=True)

    def optimizer_step(self, loss: torch.Tensor, rate: float) -> None:
        """One optimizer step at the UNet's `rate`, with the gradient norm clipped at 1, and an update of the average."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.pair.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.step()
        self.step += 1
        if self.step % 4 == 0:  # every fourth step, because the update reads all weights
            kept = (1 - 1 / (self.step / 4)) ** (MEMORY + 1)
            torch._foreach_lerp_(self.average, [p.detach() for p in self.pair.parameters()], 1 - kept)

    def state(self) -> dict[str, object]:
        names = [name for name, _ in self.pair.named_parameters()]
        return {"step": self.step, "samples": self.samples, "model": self.pair.state_dict(),
                "optimizer": self.optimizer.state_dict(), "average": dict(zip(names, self.average))}

    def restore(self, state: dict) -> None:
        self.step, self.samples = state["step"], state["samples"]
        self.pair.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for mine, theirs in zip(self.average, state["average"].values()):
            mine.copy_(theirs)

    def averaged(self) -> Pair:
        """A copy of the pair with the averaged weights."""
        pair = copy.deepcopy(self.pair).eval()
        for mine, theirs in zip(pair.parameters(), self.average):
            mine.data.copy_(theirs)
        return pair


class Noise:
    """SD1.5's schedule and this training's loss weights: sqrt(1 / SNR) at high noise, 1 / SNR elsewhere.

    With the plain noise loss nearly all of the gradient comes from timesteps at which the picture is already visible, and words
    are learned last: captions matter most at SNRs of about 0.02, where an error in the picture has a weight of only 0.02.
    """

    def __init__(self) -> None:
        schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
        self.signal, self.noise = schedule.alphas_cumprod.sqrt(), (1 - schedule.alphas_cumprod).sqrt()
        snr = (self.signal / self.noise).square()
        weights = torch.where(snr < 1, snr.rsqrt(), 1 / snr)
        self.weights = weights / weights.mean()

    def draw(self, x_0: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(x_t, eps, t) for a batch, with timesteps stratified over the schedule: one from each of B equal parts."""
        count = len(x_0)
        t = ((torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count * 1000).long()
        eps = torch.randn(x_0.shape, generator=generator)
        return self.signal[t].view(-1, 1, 1, 1) * x_0 + self.noise[t].view(-1, 1, 1, 1) * eps, eps, t

    def loss(self, predicted: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted loss and the plain one."""
        each = (predicted - eps).square().mean((1, 2, 3))
        return (each * self.weights[t]).mean(), each.detach().mean()


def train_unet(work: Path, mirror: Path | None, captions: Captions, known: list[int], plan: Plan) -> bool:
    """Train until `plan.steps`, resuming from `work`/unet.pt; writes a sheet of pictures every `plan.sheet` samples.

    Returns whether the end was reached.
    """
    data = torch.load(work / "latents.pt", weights_only=True)
    training, noise, sitting = Training(known), Noise(), Sitting(work / "unet.pt", mirror)
    if (state := sitting.load()) is not None:
        training.restore(state)
    losses: list[tuple[float, float]] = []
    while training.step < plan.steps:
        x_0, tokens, generator = batch_of(data, captions, training.step, plan.batch)
        x_t, eps, t = noise.draw(x_0, generator)
        weighted, plain = noise.loss(training.pair(x_t, t, tokens), eps, t)
        training.optimizer_step(weighted, plan.rate * plan.factor(training.step))
        losses.append((weighted.item(), plain.item()))
        before, training.samples = training.samples, training.samples + len(x_0)
        if training.step % 50 == 0:
            means = np.mean(losses, 0)
            print(f"unet step {training.step} samples {training.samples} loss {means[0]:.4f} plain {means[1]:.4f}", flush=True)
            losses = []
        if training.samples // plan.sheet > before // plan.sheet:
            draw_sheet(training.averaged(), work, f"sheet-{training.samples // 1000:04d}k", data, captions)
        if sitting.due or training.step == plan.steps:
            sitting.save(training.state())
        if sitting.over:
            return False
    sitting.end()
    return True


def draw_state(work: Path, captions: Captions, known: list[int]) -> Path:
    """Write a sheet of pictures sampled from the last saved state; returns its path."""
    data, training = torch.load(work / "latents.pt", weights_only=True), Training(known)
    training.restore(torch.load(work / "unet.pt", weights_only=True))
    name = f"sheet-{training.samples}"
    draw_sheet(training.averaged(), work, name, data, captions)
    return work / f"{name}.png"


def batch_of(data: dict, captions: Captions, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    """x_0 (N, 4, side, side), tokens (N, 77) and the generator of the noise of optimizer step `step`.

    N is `size` in the first pool, and as many pictures of the same area in all from the others.
    """
    rng = np.random.default_rng([SEED, step])
    pool = data["pools"][rng.choice(len(data["pools"]), p=[pool["share"] for pool in data["pools"]])]
    count = max(1, round(size * data["pools"][0]["latents"][0].numel() / pool["latents"][0].numel()))
    rows = rng.choice(len(pool["rows"]), count, replace=False)
    tokens = torch.tensor([captions.draw(words, icon_set, ground, rng)
                           for words, icon_set, ground in (pool["rows"][row] for row in rows)])
    return pool["latents"][rows].float(), tokens, torch.Generator().manual_seed(SEED * 1_000_003 + step)
