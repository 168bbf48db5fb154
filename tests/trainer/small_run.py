"""A complete training in seconds: the narrowest base of SD1.5's layout, in a forked process that can be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import convert


def write_base(folder: Path) -> Path:
    """A diffusers folder with random weights: UNet 8 wide, pictures of 64 pixels."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from tests.random_base import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer(folder / "tokenizer")
    UNet2DConditionModel(sample_size=8, block_out_channels=(8, 16, 24, 24), norm_num_groups=2, cross_attention_dim=8,
                         attention_head_dim=2).save_pretrained(folder / "unet")
    AutoencoderKL(sample_size=64, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2, latent_channels=4,
                  down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                  ).save_pretrained(folder / "vae")  # fmt: skip
    CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id)).save_pretrained(folder / "text_encoder")
    DDPMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


def write_drawings(folder: Path) -> Path:
    from tests.drawings import write_drawings

    folder.mkdir()
    write_drawings(folder, per_category=4, seed=1)
    return folder


def arguments(base: Path, drawings: Path, cache: Path, out: Path, run: Path) -> list[str]:
    """Four steps with a checkpoint at each; memory is not measured, which would take as many passes as the training."""
    return ["--out", str(out), "--run", str(run), "--base", str(base), "--data", str(drawings), "--categories", "apple,star",
            "--per-category", "2", "--batch", "2", "--accumulation", "1", "--learning-rate", "1e-2", "--steps", "4",
            "--checkpoint-every", "1", "--cache", str(cache), "--device", "cpu", "--micro-batch", "2",
            "--gradient-checkpointing", "off", "--no-preview"]


class Forked:
    """`main(argv)` of a command in a forked process, with its output."""

    def __init__(self, main: Callable[[list[str]], int], argv: list[str], log: Path) -> None:
        self.log = log
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._become(main, argv)

    def _become(self, main: Callable[[list[str]], int], argv: list[str]) -> None:
        import torch

        status = 70  # after a traceback
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))  # not pytest's
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            torch.set_num_threads(1)
            status = main(argv)
        except Exception:  # noqa: BLE001 - whoever reads the log looks for it
            traceback.print_exc()
        finally:
            os._exit(status)

    def kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @property
    def ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self) -> tuple[int, str]:
        """Exit status (negative: the signal that ended it) and output."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), self.log.read_text(errors="replace")

    def wait_for(self, path: Path) -> None:
        """Until `path` exists, or the process has ended."""
        while not path.exists() and not self.ended:
            time.sleep(0.002)


def data_hash(lora: Path) -> str:
    """Computed from the tensors, not read from the metadata."""
    found = convert.check(lora)
    return found.hash or ""
