"""`python -m trainer.sample`: one picture or one grid, prompts and seeds by LoRA scales."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from convert.errors import UsageError
from trainer.cli import Parser, parse_scales
from trainer.recipe import flag
from trainer.terminal import command, progress, say

EXAMPLES = """examples:
  python -m trainer.sample scribble.safetensors --prompt "a scribble of fox" --scales 0,0.5,0.8,1 --seeds 4
  python -m trainer.sample scribble.safetensors --prompt "a scribble of fox" --scales 0.8 --out fox.png
"""
CELL = 256  # least side in pixels of a picture in a grid


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m trainer.sample", allow_abbrev=False, epilog=EXAMPLES,
               description="Draw with a LoRA: one picture for one scale and one seed, otherwise a labelled grid. Pictures that "
               "differ only in scale share seed and noise.",
               formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = p.add_argument
    add("lora", type=Path, metavar="LORA", help="the LoRA, .safetensors of any form or a peft folder")
    add("--prompt", action="append", required=True, metavar="TEXT", help="what to draw; may be given several times, a row each")
    add("--scales", default="", metavar="X,X", help="LoRA scales, with commas or first:last:step (default: the LoRA's "
        "recommended one)")
    add("--seeds", type=int, default=1, metavar="N", help="seeds per prompt, a row each (default 1)")
    add("--seed", type=int, default=0, metavar="N", help="the first seed (default 0)")
    add("--out", type=Path, default=Path("sample.png"), metavar="PNG", help="PNG to write (default sample.png)")
    add("--overwrite", action="store_true", help="replace an --out that exists")
    add("--base", default="", metavar="WORD", help="hub id, folder or checkpoint (default: what the LoRA was trained on)")
    add("--tokenizer", default="", metavar="WORD", help="as in training (default: what the LoRA was trained with)")
    add("--sampling-steps", type=int, default=0, metavar="N", help="sampling steps of a picture (default 25; the miniature 12)")
    add("--guidance", type=float, default=0.0, metavar="X", help="classifier-free guidance (default 7.5; the miniature 5)")
    add("--resolution", type=int, default=0, metavar="N", help="side in pixels, a multiple of 64 (default: the base's own)")
    add("--width", type=int, default=0, metavar="N", help="width in pixels, a multiple of 64 (default: --resolution)")
    add("--height", type=int, default=0, metavar="N", help="height in pixels, the same (default: --resolution)")
    add("--micro-batch", type=int, default=8, metavar="N", help="pictures drawn at once; halved if memory runs out (default 8)")
    add("--device", default="auto", metavar="NAME", help="auto, cuda, cuda:N, mps or cpu (default auto)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the job failed, 2 bad usage."""

    def work() -> int:
        options = parser().parse_args(argv)
        _check(options)
        return _draw(options)

    return command("trainer.sample", work)


def _check(options: argparse.Namespace) -> None:
    for name, least in (("seeds", 1), ("seed", 0), ("sampling_steps", 0), ("micro_batch", 1), ("guidance", 0),
                        ("resolution", 0), ("width", 0), ("height", 0)):  # fmt: skip
        if not getattr(options, name) >= least:
            raise UsageError(f"{flag(name)} {getattr(options, name)}: expected {least} or more")
    for name in ("resolution", "width", "height"):
        if getattr(options, name) % 64:
            raise UsageError(f"{flag(name)} {getattr(options, name)}: expected a multiple of 64")
    if options.out.suffix.lower() != ".png":
        raise UsageError(f"--out {options.out}: expected a name ending in .png")
    if not options.out.parent.is_dir():
        raise UsageError(f"--out {options.out}: there is no folder {options.out.parent}: make it first")
    if options.out.exists() and not options.overwrite:
        raise UsageError(f"--out {options.out}: exists: give another name or --overwrite")


def _draw(options: argparse.Namespace) -> int:
    import numpy as np
    from PIL import Image

    from trainer.base.load import load_base
    from trainer.lora.lora_file import read_lora, trained_by
    from trainer.sample.grid import draw_grid, write_png
    from trainer.sample.sampler import Sampler
    from trainer.training import devices

    lora = read_lora(options.lora)
    changed = {name: getattr(options, name) for name in ("base", "tokenizer") if getattr(options, name)}
    recipe = trained_by(lora, changed, needed=("base",))
    scales = parse_scales(options.scales) if options.scales else [lora.recommended]
    compute = devices.choose(options.device)
    base = load_base(recipe, dtype=compute.base_dtype, say=say)
    lora.attach(base)
    for prompt in base.without_words(options.prompt):
        say(f"{prompt!r}: names nothing that {base.name} can draw, so the picture will show something else")
    sampler = Sampler(base, compute, resolution=options.resolution or recipe.resolution,
                      size=(options.width, options.height), steps=options.sampling_steps, guidance=options.guidance)
    rows = [(prompt, options.seed + k) for prompt in options.prompt for k in range(options.seeds)]
    views = [(prompt, seed, scale) for prompt, seed in rows for scale in scales]
    if len(views) > 1:
        say(f"{len(views)} pictures to draw, {sampler.steps} steps each, {options.micro_batch} at once")
    parts = []
    with progress(len(views), 0, "drawing", "picture") as advance:
        for start in range(0, len(views), options.micro_batch):
            prompts, seeds, weights = map(list, zip(*views[start : start + options.micro_batch], strict=True))
            parts.append(sampler(prompts, seeds, scale=weights))
            advance(len(prompts))
    pictures = np.concatenate(parts)
    if len(views) == 1:
        write_png(Image.fromarray(pictures[0]), options.out)
    else:
        grid = pictures.reshape(len(rows), len(scales), *pictures.shape[1:])
        labels = [f"{prompt}, seed {seed}" if len(options.prompt) > 1 else f"seed {seed}" for prompt, seed in rows]
        title = options.prompt[0] if len(options.prompt) == 1 else ""
        sheet = draw_grid(grid, labels, [f"scale {scale:g}" for scale in scales], title=title,
                          cell=max(CELL, pictures.shape[2]))  # fmt: skip
        write_png(sheet, options.out)
    say(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
