"""The recipe: everything that decides a run, in one frozen object, and the presets as a table.

The command line is generated from the fields of `Recipe`: each field's help, unit and flag stand here and nowhere else.
The defaults are the paper's (sections 2.1 to 3.2.2), except the noise schedule: the paper's section 4.4 calls its cosine
scheduler the noise schedule; ours is the base's own, because that is what the hosts sample with.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.errors import UsageError

DEFAULT_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MINIATURE = "miniature"
PAPER_LEARNING_RATE = 1e-4  # the diffusers recipe that the paper cites; the paper names none
NOISE_SCHEDULES = ("base", "linear", "scaled_linear", "squaredcos_cap_v2")
DTYPES = ("fp32", "fp16", "bf16")
TARGETS: dict[str, str] = {
    # name: regular expression over the UNet's module names (peft matches it whole)
    "attention": r".*\.attn[12]\.to_(q|k|v|out\.0)",
    "cross-attention": r".*\.attn2\.to_(q|k|v|out\.0)",
    "decoder-cross-attention": r"up_blocks\..*\.attn2\.to_(q|k|v|out\.0)",
}


def option(default: Any, help: str, *, choices: tuple[str, ...] = (), metavar: str = "", later: bool = False,
           hidden: bool = False) -> Any:  # fmt: skip
    """A field of the recipe that is also a flag of the command line.

    later: added after recipes were first stored; left out of the stored form at its default, so that older runs resume
    and files that do not use it keep their bytes. Every new field is one. hidden: has no flag of its own.
    """
    metadata = {"help": help, "choices": choices, "metavar": metavar, "later": later, "hidden": hidden}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run, decided. Equal recipes on equal data give equal LoRAs. Raises UsageError, naming the flag."""

    # where from
    base: str = option(DEFAULT_BASE, "hub id (or id@revision), diffusers folder or single .safetensors checkpoint of SD1.5, or "
                                     "'miniature'")
    tokenizer: str = option("", "tokenizer folder or bpe_simple_vocab_16e6.txt.gz, for a base that has none (default: CLIP's)")
    data: str = option("quickdraw", "'quickdraw' (downloaded), 'doodles' (made up), or a folder of .npy drawings or pictures")
    data_url: str = option("https://storage.googleapis.com/quickdraw_dataset/full/numpy_bitmap",
                           "where <category>.npy files are served, for --data quickdraw")
    # what is learnt
    categories: str = option("100", "how many QuickDraw categories, drawn by the seed, or their names with commas")
    per_category: int = option(20, "training drawings per category, drawn from its 70%% part")
    trigger: str = option("", "words put before own pictures' captions and into the card (drawings: 'a scribble of')")
    held_out: float = option(0.0, "share of own pictures kept from training for the held-out loss (drawings: always 0.3)")
    caption_dropout: float = option(0.0, "share of captions left out at random, so that pictures drawn without one, and with "
                                         "them guidance, learn the style too; 0.1 is usual")
    flip: bool = option(True, "mirror half of the pictures at random")
    resolution: int = option(0, "side of a training picture in pixels, a multiple of 64; 0: the base's own (SD1.5: 512)")
    # the adapter
    rank: int = option(4, "rank of the LoRA")
    alpha: float = option(0.0, "LoRA alpha, the update is alpha / rank * B A; 0: equal to the rank")
    targets: str = option("attention", "modules that learn: attention (128), cross-attention, decoder-cross-attention, "
                                       "or a regular expression over the UNet's module names")
    # the schedule
    epochs: int = option(70, "passes over the pictures")
    steps: int = option(0, "optimizer steps; 0: epochs decide")
    batch: int = option(8, "pictures per micro-batch of the recipe")
    accumulation: int = option(4, "micro-batches per optimizer step")
    learning_rate: float = option(PAPER_LEARNING_RATE, "peak learning rate of AdamW")
    warmup: int = option(0, "optimizer steps of linear warm-up before the cosine")
    weight_decay: float = option(1e-2, "AdamW's weight decay")
    clip_norm: float = option(1.0, "gradient norm above which gradients are scaled down")
    # the objective
    noise_schedule: str = option("base", "betas of the training noise", choices=NOISE_SCHEDULES)
    min_snr_gamma: float = option(0.0, "min-SNR loss weighting, 5 is usual; 0: off")
    noise_offset: float = option(0.0, "standard deviation of a per-channel offset added to the noise; 0: off")
    seed: int = option(0, "seed of every random draw")
    # what comes out
    dtype: str = option("fp32", "number format of the factors in --out", choices=DTYPES)
    scale: float = option(0.8, "recommended scale, the card's preferred weight (the paper's best)")

    def __post_init__(self) -> None:
        for name in ("per_category", "rank", "epochs", "batch", "accumulation"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("steps", "warmup", "seed", "alpha", "weight_decay", "min_snr_gamma", "noise_offset"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, name, "0 or more", value)
        _require(math.isfinite(self.clip_norm) and self.clip_norm > 0, "clip_norm", "more than 0", self.clip_norm)
        _require(0 < self.learning_rate <= 1, "learning_rate", "above 0, at most 1", self.learning_rate)
        for name, most in (("rank", 1280), ("alpha", 65504), ("noise_offset", 10), ("weight_decay", 100)):
            _require(getattr(self, name) <= most, name, f"at most {most}", getattr(self, name))
        _require(0 <= self.held_out < 1, "held_out", "a share from 0 to below 1", self.held_out)
        _require(0 <= self.caption_dropout < 1, "caption_dropout", "a share from 0 to below 1", self.caption_dropout)
        _require(0 < self.scale <= 2, "scale", "above 0, at most 2", self.scale)
        _require(self.resolution % 64 == 0 and self.resolution >= 0, "resolution", "a multiple of 64", self.resolution)
        for f in dataclasses.fields(self):
            if f.metadata["choices"]:
                value = getattr(self, f.name)
                _require(value in f.metadata["choices"], f.name, "one of " + ", ".join(f.metadata["choices"]), value)
        try:
            re.compile(self.target_pattern)
        except re.error as error:
            raise UsageError(f"{flag('targets')} {self.targets!r} is no regular expression ({error}): use "
                             f"{', '.join(TARGETS)} or correct it") from error

    @property
    def target_pattern(self) -> str:
        """The regular expression over the UNet's module names that says which learn."""
        return TARGETS.get(self.targets, self.targets)

    @property
    def true_alpha(self) -> float:
        return self.alpha or float(self.rank)

    def steps_per_epoch(self, pictures: int) -> int:
        """ceil(ceil(pictures / batch) / accumulation): the paper's ceil(250 / 4) = 63 for its 2,000 pictures."""
        return math.ceil(math.ceil(pictures / self.batch) / self.accumulation)

    def total_steps(self, pictures: int) -> int:
        """Optimizer steps of the run: the paper's 70 * 63 = 4,410 by default."""
        return self.steps or self.epochs * self.steps_per_epoch(pictures)

    def as_dict(self) -> dict[str, Any]:
        """The stored form, JSON values: fields that were added later are left out at their defaults."""
        fields = {f.name: f for f in dataclasses.fields(self)}
        return {name: value for name, value in self.values().items()
                if not (fields[name].metadata["later"] and getattr(self, name) == fields[name].default)}

    def values(self) -> dict[str, Any]:
        """Every field, JSON values."""
        return {f.name: list(value) if isinstance(value := getattr(self, f.name), tuple) else value
                for f in dataclasses.fields(self)}


# Presets: a row says only what differs from the paper's recipe.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # noise offset and min-SNR: without them the miniature keeps a tint from the starting noise behind the strokes
    "demo": dict(base=MINIATURE, data="doodles", categories="apple,cup,fish,flower,house,mushroom,sailboat,star,sun,tree",
                 per_category=20, rank=16, learning_rate=5e-3, batch=16, accumulation=1, steps=360, warmup=10,
                 noise_offset=0.3, min_snr_gamma=5.0),
}


def home(path: str) -> Path:
    """`path` with `~` and `~user` put in; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def flag(name: str) -> str:
    """The command line's spelling of a recipe field."""
    return "--" + name.replace("_", "-")


def _require(true: bool, name: str, expected: str, value: object) -> None:
    if not true:
        raise UsageError(f"{flag(name)} {value}: expected {expected}")
