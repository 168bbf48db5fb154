"""Build the miniature Stable Diffusion: `python -m trainer.miniature.build STAGE [STAGE ...] --work DIR`.

Stages, each from the files of those before it in DIR: `icons`, `drawings`, `vae`, `latents`, `unet`. The long ones save their
state every ten minutes and on SIGTERM; the same command goes on from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

STAGES = ("icons", "drawings", "vae", "latents", "unet")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trainer.miniature.build", description=__doc__)
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--work", type=Path, required=True, help="folder for the stages' files")
    parser.add_argument("--mirror", type=Path, help="folder for a second copy of the long stages' states")
    parser.add_argument("--icons", type=Path, help="icons: folder with the icon packages, one folder each")
    parser.add_argument("--drawings", type=Path, help="icons, drawings: folder of QuickDraw's <word>.npy files")
    parser.add_argument("--vae-steps", type=int, default=2500, help="default: %(default)s")
    parser.add_argument("--words", choices=("some", "all"), default="some",
                        help="latents: 60 words that all sets draw alike, or all")
    parser.add_argument("--full", action="store_true", help="latents: pictures turned, mirrored, of all sizes, anywhere")
    parser.add_argument("--views", type=int, default=32, help="latents: pictures of each icon (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1_000_000, help="unet: in all (default: until it is stopped)")
    parser.add_argument("--batch", type=int, default=16, help="unet: pictures a step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=6e-4, help="unet: learning rate (default: %(default)s)")
    parser.add_argument("--decay", type=int, default=0, help="unet: last steps, in which the rate falls to zero")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    for stage in options.stages:
        if run(stage, options) is False:
            print(f"{stage}: stopped and saved; the same command goes on")
            break


def run(stage: str, options: argparse.Namespace) -> bool | None:
    """Run one stage; False if it was stopped before its end."""
    from trainer.miniature.build.icons import Icons, render_icons

    work = options.work
    if stage == "icons":
        icons = render_icons(options.icons, sorted(path.stem for path in options.drawings.glob("*.npy")))
        np.savez_compressed(work / "icons.npz", rgba=icons.rgba, words=icons.words, sets=icons.sets)
        return None
    icons = Icons.read(work / "icons.npz")
    if stage == "drawings":
        from trainer.miniature.drawings import write_drawings

        write_drawings(work / "drawings.npz", options.drawings, sorted(set(icons.words.tolist())))
        return None
    if stage == "vae":
        from trainer.miniature.build.autoencoder import train_vae

        return train_vae(icons, work, options.mirror, options.vae_steps)
    if stage == "latents":
        from trainer.miniature.build.latents import fold_and_check, make_latents
        from trainer.miniature.build.pictures import FULL, MILD, WORDS

        spread = FULL if options.full else MILD
        fold_and_check(work, icons, MILD)
        make_latents(work, icons if options.words == "all" else icons.of(set(WORDS)), spread, options.views)
        return None
    from trainer.base.tokenizers import clip_tokenizer
    from trainer.miniature.build.denoiser import Plan, train_unet
    from trainer.miniature.build.prompts import Captions, known_tokens

    tokenizer = clip_tokenizer("", max_positions=77, vocabulary=49408)
    known = known_tokens(tokenizer, sorted(set(icons.words.tolist())))
    plan = Plan(steps=options.steps, batch=options.batch, rate=options.rate, decay=options.decay)
    return train_unet(work, options.mirror, Captions(tokenizer, known), known, plan)


if __name__ == "__main__":
    main()
