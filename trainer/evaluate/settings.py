"""The settings of an evaluation in one frozen object; the command line is generated from its fields."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from convert.errors import UsageError
from convert.files.json_file import Json
from trainer.base.sd15 import SCRIBBLE_NARROW
from trainer.cli import parse_scales
from trainer.recipe import MINIATURE, flag, option

CLIP, IMAGE_CLIP = "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14"  # the paper's, section 4.3
DINO, NONE = "facebook/dinov2-base", "none"
COMPLEX = ("Cabin in the woods with the forest fire in the background and smoke",  # the paper's, section 4.2.2
           "A castle on a hill under a full moon with birds in the sky", "A fisherman in a small boat on a stormy sea")
# words that the miniature knows, with grounds that are rare in its training pictures
MINIATURE_COMPLEX = ("house on a green background", "a drawing of fish on a yellow background",
                     "an icon of star on a blue background")
SCALES, MINIATURE_SCALES = "0:1:0.1", "0:1:0.2"
"""Defaults; the miniature is measured on CPUs, where all eleven scales would double the time without narrowing the interval."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one evaluation. Equal settings on equal files give equal numbers. Raises UsageError, naming the flag."""

    scales: str = option("", "LoRA scales, first:last:step or with commas, up to 2; 0, the base, is always drawn; 1 is "
                             "the full LoRA", shown=f"{SCALES}; the miniature {MINIATURE_SCALES}")
    prompts: int = option(10, "categories whose CLIP score is taken, seen and unseen each (the paper: ten prompts)")
    per_scale: int = option(20, "pictures per scale, of seen and of unseen categories each (the paper: twenty)")
    drawings: int = option(10, "held-out drawings of its category that a picture is compared with")
    seeds: int = option(4, "rows of the grid of one prompt (figure 5)")
    rows: int = option(6, "rows of the grids of categories (figures 6 and 7)")
    complex: tuple[str, ...] = option((), "a complex prompt without trigger words; may be repeated (figures 8 and 9)",
                                      metavar="PROMPT", shown="the paper's three; the miniature's own")
    clip: str = option("", "CLIP of the CLIP score, hub id or folder", shown="ViT-B/16; the miniature's own for the miniature")
    image_clip: str = option("", "CLIP of the image-image similarity", shown="ViT-L/14; the miniature's own")
    dino: str = option("", "DINOv2 of a second image-image similarity, hub id or folder, or 'none'",
                       shown="ViT-B/14 if it can be loaded; the miniature none")
    noises: int = option(2, "noise levels per held-out drawing in the denoising loss")
    sampling_steps: int = option(0, "sampling steps of a picture", shown="25; the miniature 12")
    guidance: float = option(0.0, "classifier-free guidance", shown="7.5; the miniature 5")
    seed: int = option(0, "seed of pictures, of choices, and of the resampling for intervals")

    def __post_init__(self) -> None:
        for name in ("prompts", "per_scale", "drawings", "seeds", "rows", "noises"):
            if getattr(self, name) < 1:
                raise UsageError(f"{flag(name)} {getattr(self, name)}: expected at least 1")
        for name in ("sampling_steps", "guidance", "seed"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UsageError(f"{flag(name)} {getattr(self, name)}: expected 0 or more")
        if max(self.scale_list) == 0:
            raise UsageError(f"--scales {self.scales}: expected a scale above 0; 0 is the base, which is always drawn")

    @property
    def scale_list(self) -> list[float]:
        """Ascending, starting with 0, because scales are tested against the base."""
        return sorted({0.0, *parse_scales(self.scales or SCALES)})

    def as_dict(self) -> dict[str, Json]:
        return dataclasses.asdict(self)

    def settled(self, family: str) -> Settings:
        """With the defaults that depend on the base's `family` filled in."""
        small = family == SCRIBBLE_NARROW
        return dataclasses.replace(
            self, scales=self.scales or (MINIATURE_SCALES if small else SCALES),
            clip=self.clip or (MINIATURE if small else CLIP),
            image_clip=self.image_clip or (MINIATURE if small else IMAGE_CLIP), dino=self.dino or (NONE if small else ""),
            complex=self.complex or (MINIATURE_COMPLEX if small else COMPLEX))
