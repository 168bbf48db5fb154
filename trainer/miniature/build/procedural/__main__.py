"""Build the miniature Stable Diffusion from nothing: `python -m trainer.miniature.build --work DIR [--stages ...]`.

Stages, each from the files of those before it in DIR: `pictures` (the world, rendered), `vae`, `unet` (with its text
encoder), `clip` (the judge), `unet-on` (more of the same), `decoder` (of the VAE, again), `ship` (fp16 into the package).
Seeded: the same machine and versions give the same weights. The shipped weights took about three hours on two CPU cores.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from trainer.miniature.build.procedural import world

STAGES = ("pictures", "vae", "unet", "clip", "unet-on", "decoder", "ship")
PICTURES, STROKES, SEED = 8000, 1200, 20


def _render(index: int) -> tuple[np.ndarray, world.Subject]:
    rng = np.random.default_rng([SEED, index])
    subject = world.draw_subject(rng)
    return world.picture(subject, rng), subject


def _render_strokes(index: int) -> np.ndarray:
    return world.loose_strokes(np.random.default_rng([SEED + 1, index]))


def pictures(folder: Path) -> None:
    """Render the world into `folder`/world.npz: `pictures`, `strokes` uint8 (N, 64, 64, 3) and `subjects` (N, 4) words."""
    with ProcessPoolExecutor() as pool:
        rendered = list(pool.map(_render, range(PICTURES), chunksize=64))
        strokes = list(pool.map(_render_strokes, range(STROKES), chunksize=64))
    subjects = np.array([(s.category, s.style, s.colour, s.ground) for _, s in rendered])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "world.npz", pictures=np.stack([p for p, _ in rendered]), strokes=np.stack(strokes), subjects=subjects)


def run(stage: str, folder: Path) -> None:
    """Run one stage; see the module's text."""
    if stage == "pictures":
        return pictures(folder)
    data = np.load(folder / "world.npz")
    subjects = [world.Subject(*(str(word) for word in row)) for row in data["subjects"]]
    if stage == "vae":
        from trainer.miniature.build.procedural.build_vae import train_vae

        train_vae(np.concatenate([data["pictures"], data["strokes"]]), folder)
    elif stage == "unet":
        from trainer.miniature.build.procedural.build_unet import train_unet

        train_unet(data["pictures"], subjects, folder)
    elif stage == "unet-on":
        from trainer.miniature.build.procedural.build_unet import lengthen

        lengthen(data["pictures"], subjects, folder)
    elif stage == "decoder":
        from trainer.miniature.build.procedural.build_vae import train_decoder

        train_decoder(data["pictures"], data["strokes"], folder)
    elif stage == "clip":
        from trainer.miniature.build.procedural.build_clip import train_clip

        train_clip(data["pictures"], subjects, folder)
    elif stage == "ship":
        from trainer.miniature.build.procedural.ship import ship

        ship(folder)
    else:
        raise ValueError(f"no stage {stage!r}: choose from {', '.join(STAGES)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trainer.miniature.build", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the stages' files")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="which, in order (default: all)")
    options = parser.parse_args()
    for stage in options.stages:
        run(stage, options.work)


if __name__ == "__main__":
    main()
