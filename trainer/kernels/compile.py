"""torch.compile for the training's forward pass where it works and saves time; otherwise plain execution, with the reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo
import torch._functorch.config
from torch import Tensor

from trainer.base.models import Predictor, UNet, UNetConfig
from trainer.kernels.cuda_graphs import Graphed
from trainer.terminal import Say

MOST_SHAPES = 8
"""Most shapes of latents and prompt embeddings to compile for; others run uncompiled."""
LEAST_PASSES = 500
"""If there are several shapes, those with fewer passes are not compiled for unless asked: compiling takes a minute and saves 10
to 20 % of a pass."""
CHOICES = ("auto", "on", "off")
FUSE = {"realize_reads_threshold": 8, "realize_opcount_threshold": 64, "realize_acc_reads_threshold": 16}
"""Twice inductor's own limits on recomputation. With its own, a group norm's backward kernels write a map in float32; with
these they read the two bf16 maps again: 19.5 GB instead of 30.1 in a step's residual blocks."""


def missing(device: torch.device) -> str:
    """What torch.compile lacks on this machine; "" if nothing."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return "" if has_triton() else "Triton is not installed or cannot use this GPU"
    if device.type == "cpu":
        compilers = [os.environ.get("CXX", ""), "cl"] if os.name == "nt" else [os.environ.get("CXX", ""), "g++", "clang++"]
        return "" if any(name and shutil.which(name) for name in compilers) else "no C++ compiler was found"
    return f"it is not tried on {device.type}"


def training_forward(unet: UNet, device: torch.device, *, compile: str, cuda_graphs: str, cache: Path, say: Say) -> Predictor:
    """The forward pass for training: `unet`, compiled and captured in CUDA graphs if asked for and possible."""
    forward = Compiled(unet, device, compile, cache, say)
    if cuda_graphs == "off" or device.type != "cuda":
        return forward
    return Graphed(unet, forward, cuda_graphs, say)


class Compiled:
    """Calls `unet` with its residual and transformer blocks compiled one by one, so that all of a size share their kernels.

    Both kinds begin with group norms, which CUDA's own kernel computes in NCHW only: between channels_last convolutions
    each would cost two transposes forward and three backward. The compiler's norms keep the layout. (Its layout rule for
    graphs with a convolution would do the same to q, k and v; there is none in a transformer block, see kernels/conv.py.)

    wish: `on`; `auto`, on a CUDA GPU only (on CPUs it did not pay, see docs/PERFORMANCE.md); `off`. Kernels are kept in
    `cache` between runs. If compiling fails, this and all later steps run uncompiled; `say` gets one line.
    """

    def __init__(self, unet: UNet, device: torch.device, wish: str, cache: Path, say: Say) -> None:
        self.unet, self.say = unet, say
        self.dtype: torch.dtype = unet.dtype  # kept: diffusers looks through all modules for it, 6 ms each time
        self.blocks: list[tuple[torch.nn.Module, Callable[..., object]]] = []
        self.proven = False
        self.shapes: set[tuple[int, ...]] = set()
        lacking = missing(device)
        if wish == "off" or (wish == "auto" and device.type != "cuda"):
            return
        if lacking:
            say(f"not compiled: {lacking}; training continues without it, slower")
            return
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))
        import torch._inductor.config as inductor
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        options: dict[str, str | int | bool | Callable[..., object]] = {
            name: limit for name, limit in FUSE.items() if hasattr(inductor, name)}
        # each block has its own projection objects; beyond a limit torch would silently stop compiling blocks
        torch._dynamo.config.recompile_limit = 64 * MOST_SHAPES
        torch._dynamo.config.accumulated_recompile_limit = 128 * MOST_SHAPES
        if hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"):  # not before torch 2.8
            torch._functorch.config.force_non_lazy_backward_lowering = True  # or a failure would come in backward()
        blocks = [module for module in unet.modules() if isinstance(module, ResnetBlock2D | Transformer2DModel)]
        self.blocks = [(block, torch.compile(block._call_impl, dynamic=False, options=options)) for block in blocks]
        say("compiling: on a machine's first run the first step waits a minute or two, later ones seconds; --compile off goes "
            "without, slower")

    @property
    def config(self) -> UNetConfig:
        return self.unet.config

    def _is_compiled_for(self, *tensors: Tensor) -> bool:
        """Whether there is a graph for tensors of these shapes, or room for one more."""
        shape = tuple(n for tensor in tensors for n in tensor.shape)
        if len(self.shapes) < MOST_SHAPES:
            self.shapes.add(shape)
        return shape in self.shapes

    def __call__(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *,
                 return_dict: bool = True) -> tuple[Tensor, ...]:  # fmt: skip
        if not self.blocks or not self._is_compiled_for(sample, encoder_hidden_states):
            return self.unet(sample, timestep, encoder_hidden_states, return_dict=return_dict)
        from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
        from torch._inductor.exc import InductorError

        try:
            for block, compiled in self.blocks:
                block._compiled_call_impl = compiled
            predicted = self.unet(sample, timestep, encoder_hidden_states, return_dict=return_dict)
            self.proven = True
            return predicted
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a kernel's first launch may fail with any: what is not the compiler's fails again below
            if self.proven and not isinstance(error, BackendCompilerFailed | TorchDynamoException | InductorError):
                raise
            self.say(f"not compiled: {' '.join(str(error).split()[:30])}; training continues without it, slower")
        finally:  # whoever calls `unet` itself gets it plain
            for block, _ in self.blocks:
                block._compiled_call_impl = None
        self.blocks = []
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=return_dict)
