"""The user's own sample prompts during a run: a file with a prompt per line, and one sheet that gets a row each time.

A line is a prompt and, after it, any of kohya's options: `--n` negative prompt, `--w` and `--h` width and height in pixels,
`--d` seed, `--s` sampling steps, `--l` guidance, `--am` LoRA scale. Empty lines and lines that begin with # are skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from convert.errors import JobError, UsageError
from trainer.recipe import Fields
from trainer.sample.grid import draw_grid, write_png

if TYPE_CHECKING:  # prompts are read without torch
    from trainer.sample.sampler import Sampler

CELL = 256  # pixels of a picture on the sheet
SHEET = "sheet.png"


@dataclass(frozen=True)
class SamplePrompt:
    """One picture to draw each time. 0 stands for the sampler's own value."""

    text: str
    negative: str = ""
    width: int = 0
    height: int = 0
    seed: int = 0
    steps: int = 0
    guidance: float = 0.0
    scale: float = 1.0


OPTIONS: dict[str, tuple[str, type[str] | type[int] | type[float]]] = {
    "n": ("negative", str), "w": ("width", int), "h": ("height", int), "d": ("seed", int), "s": ("steps", int),
    "l": ("guidance", float), "am": ("scale", float),
}  # fmt: skip


def read_prompts(path: Path) -> list[SamplePrompt]:
    """The prompts of a file. UsageError names an invalid line, JobError a file that cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"--sample-prompts {path}: cannot be read ({error}): give a text file, a prompt a line") from error
    prompts = [_prompt(line.strip(), f"--sample-prompts {path}, line {number}") for number, line in enumerate(lines, 1)
               if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise UsageError(f"--sample-prompts {path}: has no prompts: expected one a line")
    return prompts


def _prompt(line: str, where: str) -> SamplePrompt:
    text, *options = re.split(r"\s--(?=[a-z]+\s)", f"{line} ")
    values: Fields = {"text": text.strip()}
    for option in options:
        name, _, value = option.strip().partition(" ")
        if name not in OPTIONS:
            raise UsageError(f"{where}: --{name} is not known: expected {', '.join('--' + known for known in OPTIONS)}")
        field, kind = OPTIONS[name]
        try:
            values[field] = kind(value.strip())
        except ValueError as error:
            raise UsageError(f"{where}: --{name} {value}: expected a number") from error
    prompt = SamplePrompt(**values)
    sizes = [size for size in (prompt.width, prompt.height) if size % 64 or size < 0]
    if sizes:
        raise UsageError(f"{where}: {sizes[0]} pixels: expected a multiple of 64")
    if not (prompt.seed >= 0 and prompt.steps >= 0 and prompt.guidance >= 0 and 0 <= prompt.scale <= 2):
        raise UsageError(f"{where}: expected a seed, steps and guidance of 0 or more, a scale from 0 to 2")
    return prompt


def write_samples(sampler: Sampler, prompts: list[SamplePrompt], folder: Path, step: int) -> None:
    """Draw every prompt at optimizer step `step` into `folder`, and redraw its sheet: a row per step, a column per prompt."""
    for number, prompt in enumerate(prompts):
        pictures = sampler([prompt.text], [prompt.seed], scale=prompt.scale, negative=prompt.negative,
                           size=(prompt.width, prompt.height), steps=prompt.steps, guidance=prompt.guidance)
        write_png(Image.fromarray(pictures[0]), folder / f"prompt-{step:06d}-{number:02d}.png")
    write_sheet(prompts, folder, step)


def write_sheet(prompts: list[SamplePrompt], folder: Path, last: int) -> None:
    """All pictures up to optimizer step `last` as one image; later ones are from steps that a resumed run repeats."""
    steps = sorted({int(path.name.split("-")[1]) for path in folder.glob("prompt-??????-??.png")})
    rows = [[folder / f"prompt-{step:06d}-{number:02d}.png" for number in range(len(prompts))]
            for step in steps if step <= last]
    whole = [row for row in rows if all(path.exists() for path in row)]
    pictures = np.stack([np.stack([_square(path) for path in row]) for row in whole])
    labels = [f"step {int(row[0].name.split('-')[1])}" for row in whole]
    write_png(draw_grid(pictures, labels, [_short(prompt.text) for prompt in prompts], cell=CELL), folder / SHEET)


def _square(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(ImageOps.pad(image.convert("RGB"), (CELL, CELL), color="white"))


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"
