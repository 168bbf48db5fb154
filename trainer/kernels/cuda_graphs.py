"""The UNet's forward and backward pass as CUDA graphs: two launches instead of some 2,000.

With few pictures at a time the host takes longer to launch a pass's kernels (41 ms, measured) than a GPU to run them.
Off by default: it has not been run on a GPU yet (docs/PERFORMANCE.md).
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from trainer.base.models import Predictor, UNet
from trainer.terminal import Say

CHOICES = ("off", "auto", "on")
MOST_GRAPHS = 8
"""Most shapes to capture; each graph keeps the memory of its activations."""
HOST_BOUND = 0.8
"""The host is the bottleneck if launching takes this share of a pass's time."""
TOLERANCE = 1e-2
"""Relative difference to the plain pass, in half precision, above which a graph is not used."""


class _Pass(torch.nn.Module):
    """What torch.cuda.make_graphed_callables takes: tensors in, one tensor out, the parameters below."""

    def __init__(self, unet: UNet, forward: Predictor) -> None:
        super().__init__()
        self.unet = unet
        self._called = forward

    def forward(self, sample: Tensor, timestep: Tensor, embedding: Tensor) -> Tensor:
        return self._called(sample, timestep, embedding, return_dict=False)[0]


class Graphed:
    """Calls `forward` (`unet`, or it compiled) through one pair of CUDA graphs for each input shape.

    wish: `on`; `auto`, for shapes at which the host is the bottleneck, measured on their first pass. A shape that cannot be
    captured, or whose graph does not agree with the plain pass, runs without a graph; `say` gets one line.
    """

    def __init__(self, unet: UNet, forward: Predictor, wish: str, say: Say) -> None:
        self.unet, self.forward, self.say = unet, forward, say
        self.always = wish == "on"
        self._graphs: dict[tuple[torch.Size, torch.Size], torch.nn.Module | None] = {}

    @property
    def dtype(self) -> torch.dtype:
        return self.forward.dtype

    def __call__(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *,
                 return_dict: bool = False) -> tuple[Tensor, ...]:  # fmt: skip
        shape = sample.shape, encoder_hidden_states.shape
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(sample, timestep, encoder_hidden_states)
        graph = self._graphs[shape]
        if graph is None:
            return self.forward(sample, timestep, encoder_hidden_states, return_dict=return_dict)
        return (graph(sample, timestep, encoder_hidden_states),)

    def _capture(self, *inputs: Tensor) -> torch.nn.Module | None:
        if len(self._graphs) >= MOST_GRAPHS or not (self.always or self._host_is_the_limit(*inputs)):
            return None
        plain = _Pass(self.unet, self.forward)
        try:
            examples = tuple(tensor.detach().clone() for tensor in inputs)
            graph = torch.cuda.make_graphed_callables(_Pass(self.unet, self.forward), examples)
            assert isinstance(graph, torch.nn.Module)
            off = _difference(graph, plain, inputs)
        except torch.OutOfMemoryError:
            raise  # the micro-batch is halved
        except (RuntimeError, AssertionError) as error:
            self.say(f"no CUDA graph: {' '.join(str(error).split()[:20])}; training continues without it")
            return None
        if off > TOLERANCE:
            self.say(f"no CUDA graph: it differs from the plain pass by {off:.1e}; training continues without it")
            return None
        return graph

    def _host_is_the_limit(self, *inputs: Tensor) -> bool:
        sample, timestep, embedding = inputs
        for _ in range(2):  # the first pass may compile
            torch.cuda.synchronize(sample.device)
            start = time.perf_counter()
            self.forward(sample, timestep, embedding, return_dict=False)
            launched = time.perf_counter()
            torch.cuda.synchronize(sample.device)
            done = time.perf_counter()
        return launched - start > HOST_BOUND * (done - start)


def _difference(mine: torch.nn.Module, theirs: torch.nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """The largest relative difference of the output and of all gradients together, with equal inputs."""
    results = []
    for module in (mine, theirs):
        parameters = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
        output = module(*inputs)
        gradients = torch.autograd.grad(output.float().square().mean(), parameters)
        results.append((output.detach().float().clone(), torch.cat([g.float().flatten() for g in gradients])))
    return max(((a - b).norm() / b.norm().clamp(min=1e-12)).item() for a, b in zip(*results, strict=True))
