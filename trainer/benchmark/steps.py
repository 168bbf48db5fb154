"""The optimizer steps to time: ours, and plain ones that encode at every step or compute a LoRA module by module."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional

from trainer.base.models import VAE, UNet
from trainer.benchmark.models import Encoders, scheduler
from trainer.encoding.encoded_set import EncodedSet
from trainer.encoding.formats import storage_dtype
from trainer.encoding.vae import Posterior
from trainer.kernels import training_kernels
from trainer.kernels.compile import training_forward
from trainer.lora import adapter
from trainer.recipe import Recipe
from trainer.training.devices import Compute
from trainer.training.loop import backward, update
from trainer.training.objective import choose_objective
from trainer.training.processes import Processes
from trainer.training.state import State, Training, prepare

Step = Callable[[], None]
PICTURES = 64


def ours(unet: UNet, recipe: Recipe, compute: Compute, resolution: int, compile: str, cuda_graphs: str, cache: Path,
         say: Callable[[str], None]) -> tuple[Training, State]:  # fmt: skip
    """A training over random encodings of `unet`'s shapes, set up as in trainer/train.py."""
    side, dtype, device = resolution // 8, storage_dtype(compute.device), compute.device
    latents = torch.randn(2, PICTURES, 2, 4, side, side, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    embeddings = torch.randn(PICTURES, 77, unet.config.cross_attention_dim, device=device).to(dtype)
    encoded = EncodedSet(mean=latents[0], std=latents[1].abs() * 0.1, embeddings=embeddings,
                         caption_index=torch.arange(PICTURES, device=device))
    factors = adapter.attach(unet, recipe)
    return prepare(recipe=recipe, unet=unet, factors=factors, encoded=encoded, held_out=None, compute=compute,
                   objective=choose_objective(recipe, scheduler(), device), processes=Processes(),
                   run=Path(tempfile.gettempdir()), total=1000, checkpoint_every=1000,
                   kernels=training_kernels(unet, device, attention="auto", compile=compile),
                   forward=training_forward(unet, device, compile=compile, cuda_graphs=cuda_graphs, cache=cache, say=say))


def our_step(t: Training, state: State) -> Step:
    """One optimizer step of trainer/training/loop.py on the next draws."""
    number = iter(range(t.total))

    def step() -> None:
        k = next(number)
        backward(t, state, t.draw(k))
        update(t, state, k)

    return step


def plain_steps(unet: UNet, encoders: Encoders, recipe: Recipe, compute: Compute, resolution: int) -> dict[str, Step]:
    """`plain`: like diffusers' train_text_to_image_lora.py: VAE and CLIP at every micro-batch, peft's modules, torch's AdamW.

    `plain_cached`: latents are cached and only CLIP is computed, like sd-scripts with `--cache_latents`. Frozen models are in
    the compute's dtype; on a GPU under autocast, like accelerate's mixed precision.
    """
    vae, text_encoder, schedule = encoders.vae, encoders.text_encoder, scheduler()
    parameters = [factor for _, factor in adapter.attach(unet, recipe)]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    device, batch = compute.device, recipe.batch
    pictures = torch.rand(batch, 3, resolution, resolution, device=device, dtype=compute.base_dtype) * 2 - 1
    captions = torch.randint(text_encoder.config.vocab_size, (batch, 77), device=device)
    kept = torch.randn(batch, 4, resolution // 8, resolution // 8, device=device, dtype=compute.base_dtype)

    def step(cached: bool) -> None:
        for _ in range(recipe.accumulation):
            with torch.no_grad():
                latents = kept if cached else vae.encode(pictures).latent_dist.sample() * vae.config.scaling_factor
                embeddings = text_encoder(captions).last_hidden_state
            noise = torch.randn_like(latents)
            timesteps = torch.randint(schedule.config.num_train_timesteps, (batch,), device=device)
            noisy = schedule.add_noise(latents, noise, timesteps)
            with compute.context():
                predicted = unet(noisy, timesteps, embeddings, return_dict=False)[0]
            loss = functional.mse_loss(predicted.float(), noise.float())
            (loss / recipe.accumulation).backward()
            loss.item()  # the script logs it
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return {"plain": partial(step, False), "plain_cached": partial(step, True)}


def encoding(vae: VAE, compute: Compute, resolution: int, say: Callable[[str], None]) -> tuple[Step, int]:
    """Encoding one batch of pictures and their mirror images, and the number of VAE inputs in it."""
    posterior = Posterior(SimpleNamespace(vae=vae), compute.device, resolution, views=2, say=say)  # type: ignore[arg-type]
    pictures = np.random.default_rng(0).integers(0, 256, (posterior.batch, resolution, resolution, 3), dtype=np.uint8)

    def step() -> None:
        posterior(pictures)

    return step, posterior.batch * posterior.views
