"""Build the miniature Stable Diffusion: `python -m trainer.miniature.build STAGE [STAGE ...] --work DIR`.

Stages, each using the files of the earlier ones in DIR: `icons`, `vae`, `latents`, `unet`, `decoder`, `drawings`, `ship`; and
`judge`. `sheet` samples pictures from the saved state; `judged` prints the accuracy of the judge in DIR, also on pictures that
the shipped networks draw; `remembered` shows such pictures beside the nearest training pictures. The long stages save their
state every ten minutes and on SIGTERM; run the same command to continue.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trainer.miniature.build.icons import STYLES, Icons


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trainer.miniature.build", description=__doc__)
    parser.add_argument("stages", nargs="+", choices=list(STAGES))
    parser.add_argument("--work", type=Path, required=True, help="folder for the stages' files")
    parser.add_argument("--mirror", type=Path, help="folder for a second copy of the long stages' states")
    parser.add_argument("--icons", type=Path, help="icons: folder with the icon packages, one folder each")
    parser.add_argument("--drawings", type=Path, help="icons, drawings, judge, judged: folder of QuickDraw's <word>.npy files")
    parser.add_argument("--vae-steps", type=int, default=2500, help="default: %(default)s")
    parser.add_argument("--decoder-steps", type=int, default=3000, help="default: %(default)s")
    parser.add_argument("--words", choices=("some", "all"), default="some",
                        help="latents: the 60 words that all sets draw alike, or all words")
    parser.add_argument("--mixed", action="store_true",
                        help="latents: also several things in a picture, and pictures of 192 and 256 pixels")
    parser.add_argument("--side", type=int, choices=(64, 128), default=128,
                        help="latents: pixels of a picture; start with 64, where words are learned at a quarter of the cost")
    parser.add_argument("--views", type=int, default=32, help="latents: pictures of each icon (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1_000_000, help="unet: total steps (default: until it is stopped)")
    parser.add_argument("--batch", type=int, default=16, help="unet: pictures a step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=6e-4, help="unet: learning rate (default: %(default)s)")
    parser.add_argument("--decay", type=int, default=0, help="unet: number of last steps in which the rate falls to zero")
    parser.add_argument("--judge-steps", type=int, default=2200, help="default: %(default)s")
    parser.add_argument("--without", default="", metavar="SET", choices=list(STYLES),
                        help=f"judge, judged: leave out an icon set, and judge that one: {', '.join(STYLES)}")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # Adam's second moments of unused rows decay to denormals
    for stage in options.stages:
        if not run(stage, options):
            print(f"{stage}: stopped and saved; run the same command to continue")
            break


def run(stage: str, options: argparse.Namespace) -> bool:
    """Run one stage; False if it was stopped before its end."""
    return STAGES[stage](options) is not False


def _icons(options: argparse.Namespace) -> None:
    from trainer.miniature.build.icons import render_icons

    icons = render_icons(options.icons, sorted(path.stem for path in options.drawings.glob("*.npy")))
    np.savez_compressed(options.work / "icons.npz", rgba=icons.rgba, words=icons.words, sets=icons.sets)


def _drawings(options: argparse.Namespace) -> None:
    import torch

    from trainer.miniature.drawings import write_drawings

    words = torch.load(options.work / "latents.pt", weights_only=True)["words"]
    write_drawings(options.work / "drawings.npz", options.drawings, words)


def _vae(options: argparse.Namespace) -> bool:
    from trainer.miniature.build.autoencoder import train_vae

    return train_vae(_read_icons(options), options.work, options.mirror, options.vae_steps)


def _latents(options: argparse.Namespace) -> None:
    from trainer.miniature.build.latents import MIXED, Pool, fold_and_check, make_latents
    from trainer.miniature.build.pictures import MILD, WORDS

    icons = _read_icons(options)
    fold_and_check(options.work, icons, MILD)
    chosen = icons if options.words == "all" else icons.of(set(WORDS))
    single = (Pool(side=options.side, share=1.0, views=options.views, spread=MILD),)
    make_latents(options.work, chosen, MIXED if options.mixed else single)


def _unet(options: argparse.Namespace) -> bool:
    from trainer.miniature.build.denoiser import Plan, train_unet
    from trainer.miniature.build.prompts import Captions

    plan = Plan(steps=options.steps, batch=options.batch, rate=options.rate, decay=options.decay)
    tokenizer, known = _tokens(options)
    return train_unet(options.work, options.mirror, Captions(tokenizer, known), known, plan)


def _decoder(options: argparse.Namespace) -> bool:
    from trainer.miniature.build.decoder import train_decoder

    return train_decoder(_read_icons(options), options.work, options.mirror, options.decoder_steps)


def _sheet(options: argparse.Namespace) -> None:
    from trainer.miniature.build.denoiser import draw_state
    from trainer.miniature.build.prompts import Captions

    tokenizer, known = _tokens(options)
    print(draw_state(options.work, Captions(tokenizer, known), known))


def _ship(options: argparse.Namespace) -> None:
    from trainer.miniature.build.prompts import Captions
    from trainer.miniature.build.ship import ship

    tokenizer, known = _tokens(options)
    ship(options.work, Captions(tokenizer, known), known)


def _judge(options: argparse.Namespace) -> bool:
    from trainer.miniature.build.judge import train_judge

    return train_judge(_read_icons(options), options.drawings, options.work, options.judge_steps, options.without)


def _judged(options: argparse.Namespace) -> None:
    from trainer.miniature.build.judge import check_judge, path_of
    from trainer.miniature.build.judge_drawn import check_drawn
    from trainer.miniature.judge import read_judge

    judge = read_judge(path_of(options.work, options.without))
    check_judge(judge, _read_icons(options), options.drawings, options.without)
    check_drawn(judge, [STYLES[options.without]] if options.without else list(dict.fromkeys(STYLES.values())))


def _remembered(options: argparse.Namespace) -> None:
    from trainer.miniature.build.remembered import draw_remembered

    draw_remembered(_read_icons(options), options.work / "remembered.png")


def _read_icons(options: argparse.Namespace) -> Icons:
    return Icons.read(options.work / "icons.npz")


def _tokens(options: argparse.Namespace) -> tuple[Any, list[int]]:
    """CLIP's tokenizer, and the tokens that captions of all words of the icons are made of."""
    from trainer.base.tokenizers import clip_tokenizer
    from trainer.miniature.build.prompts import known_tokens

    tokenizer = clip_tokenizer("", max_positions=77, vocabulary=49408)
    return tokenizer, known_tokens(tokenizer, _read_icons(options).all_words)


STAGES: dict[str, Callable[[argparse.Namespace], bool | None]] = {
    "icons": _icons, "drawings": _drawings, "vae": _vae, "latents": _latents, "unet": _unet,
    "decoder": _decoder, "sheet": _sheet, "ship": _ship, "judge": _judge, "judged": _judged,
    "remembered": _remembered,
}


if __name__ == "__main__":
    main()
