"""The recipe: everything that affects a run's result, in one frozen object. (Its presets: presets.py.)

The command line is generated from the fields of `Recipe`: each field's help, unit and flag are defined only here.
The defaults are the paper's (sections 2.1 to 3.2.2), except the noise schedule: the paper's section 4.4 calls its cosine
scheduler the noise schedule; ours is the base's own, because that is what the hosts sample with.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from convert.errors import UsageError
from convert.files.json_file import Json
from trainer.layers import TARGETS

DEFAULT_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MINIATURE = "miniature"
PAPER_LEARNING_RATE = 1e-4  # from the diffusers recipe that the paper cites; the paper gives none
NOISE_SCHEDULES = ("base", "linear", "scaled_linear", "squaredcos_cap_v2")
LR_SCHEDULES = ("cosine", "constant", "cosine_with_restarts")
OPTIMIZERS = ("adamw", "prodigy")
LOSSES = ("l2", "huber")
PREDICTIONS = ("base", "epsilon", "v")
DTYPES = ("fp32", "fp16", "bf16")
LENGTH = ("steps", "epochs", "samples")
"""Fields that set the length of a run. A run can be resumed with other values of them."""
LEAST_PASSES = 10
"""Least passes over the pictures with `samples`, because otherwise each picture of a large folder would be used too rarely."""
T = TypeVar("T")
Fields = dict[str, Any]
"""Some of a recipe's fields, by name, for `Recipe` to check."""
Stored = dict[str, Json]
"""A recipe's stored form: fields as JSON values."""


def option(default: T, help: str, *, choices: tuple[str, ...] = (), metavar: str = "", later: bool = False,
           hidden: bool = False, rest: str = "", shown: str = "") -> T:  # fmt: skip
    """A field of the recipe that is also a flag of the command line.

    later: added after recipes were first stored; left out of the stored form at its default, so that older runs resume
    and files that do not use it keep their bytes. Every new field is one. hidden: has no flag of its own. rest: the flag may be
    given several times, and this field takes the values after the first. shown: the default as text for --help, if the value
    itself is not informative.
    """
    metadata = {"help": help, "choices": choices, "metavar": metavar, "later": later, "hidden": hidden, "rest": rest,
                "shown": shown}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a training run. Equal recipes on equal data give equal LoRAs. Raises UsageError with the flag."""

    # base and data
    base: str = option(DEFAULT_BASE, "hub id (or id@revision), diffusers folder or single .safetensors checkpoint of SD1.5, or "
                                     "'miniature'")
    tokenizer: str = option("", "tokenizer folder or bpe_simple_vocab_16e6.txt.gz, for a base without one", shown="CLIP's")
    vae: str = option("", "VAE instead of the base's own, .safetensors, for checkpoints without one", later=True)
    prediction: str = option("base", "the base's prediction type, if its files do not give it", choices=PREDICTIONS, later=True)
    zero_snr: bool = option(False, "zero terminal SNR for the training noise, for bases trained with it", later=True)
    data: str = option("quickdraw", "'quickdraw' (downloaded), 'doodles' (of the miniature's words), or a folder of .npy "
                       "drawings or pictures; of pictures several, with settings: \"dir, repeats=10, trigger=sks dog, "
                       "reg=yes, masks=dir\"", rest="more_data")
    more_data: tuple[str, ...] = option((), "the second and further --data", later=True, hidden=True)
    follow_links: bool = option(False, "follow links that leave the folders of --data", later=True)
    data_url: str = option("https://storage.googleapis.com/quickdraw_dataset/full/numpy_bitmap",
                           "where <category>.npy files are served, for --data quickdraw")
    # training data
    categories: str = option("100", "number of QuickDraw categories, chosen by the seed, or their names with commas")
    per_category: int = option(20, "training drawings per category, chosen from its 70%% part")
    trigger: str = option("", "trigger words, put before pictures' captions and into the card (drawings: 'a scribble of')")
    held_out: float = option(0.0, "share of pictures held out from training for the held-out loss (drawings: always 0.3)")
    caption_dropout: float = option(0.0, "share of captions left out at random, so that unconditional pictures, and so "
                                         "guidance, learn the style too; 0.1 is usual")
    caption_lines: str = option("each", "several lines of a caption: each is a caption, one of which is drawn each time, or "
                                        "join them into one", choices=("each", "join"), later=True)
    shuffle_tags: bool = option(False, "shuffle captions' tags, which are separated by commas, each time", later=True)
    keep_tokens: int = option(0, "tags at the beginning that --shuffle-tags and --tag-dropout do not change", later=True)
    tag_dropout: float = option(0.0, "share of tags left out at random", later=True)
    reg: bool = option(True, "train on regularisation pictures (folders called reg, or reg=yes) to keep the base's knowledge; "
                             "otherwise they are left out", later=True)
    prior_weight: float = option(1.0, "weight of the loss of regularisation pictures", later=True)
    masks: bool = option(True, "weight the loss by masks found beside pictures", later=True)
    alpha_mask: bool = option(False, "weight the loss by pictures' alpha channels", later=True)
    crop: str = option("bucket", "use pictures in the nearest of several shapes, or all as squares",
                       choices=("bucket", "square"), later=True)
    bucket_max_aspect: float = option(4.0, "largest aspect ratio of a bucket, long side / short side", later=True)
    flip: bool = option(True, "mirror half of the pictures at random")
    resolution: int = option(0, "side of a training picture in pixels, a multiple of 64; 0: the base's own (SD1.5: 512)")
    # the adapter
    init: str = option("", "LoRA to continue from, in any form; it determines rank, alpha and layers", later=True)
    rank: int = option(4, "rank of the LoRA")
    alpha: float = option(0.0, "LoRA alpha, the update is alpha / rank * B A; 0: equal to the rank")
    targets: str = option("attention", "layers to train: attention (128), attention+ff (160), kohya (192), locon (278, with "
                                       "the convolutions), cross-attention, decoder-cross-attention, or a regular expression "
                                       "over the UNet's module names")
    conv_rank: int = option(0, "rank of 3 x 3 convolutions; 0: --rank", later=True)
    conv_alpha: float = option(0.0, "their alpha; 0: --alpha, or with --conv-rank equal to it", later=True)
    dora: bool = option(False, "DoRA: also train a magnitude per input column, as web UIs and ComfyUI apply it; steps take "
                               "longer", later=True)
    clip_skip: int = option(1, "layer of the text encoder, counted from its end, whose output is used; anime bases: 2. "
                               "Set the same value in your web UI", later=True)
    text_encoder: bool = option(False, "also train the text encoder, 72 modules: helps with a character's name, but costs time",
                                later=True)
    text_encoder_rate: float = option(0.0, "peak learning rate of the text encoder; 0: --learning-rate", later=True)
    text_encoder_until: float = option(1.0, "share of the steps after which the text encoder is frozen", later=True)
    # the schedule
    epochs: int = option(70, "passes over the pictures")
    steps: int = option(0, "optimizer steps; 0: set by epochs")
    samples: int = option(0, "total training pictures, in whole passes and at least 10 of them; 0: set by epochs", later=True)
    batch: int = option(8, "pictures per micro-batch of the recipe")
    accumulation: int = option(4, "micro-batches per optimizer step")
    optimizer: str = option("adamw", "AdamW, or Prodigy, which estimates the step size", choices=OPTIMIZERS, later=True)
    learning_rate: float = option(PAPER_LEARNING_RATE, "peak learning rate; with Prodigy a factor, 1 by default")
    lr_schedule: str = option("cosine", "learning rate after the warm-up: decays to 0, is constant, or decays several times",
                              choices=LR_SCHEDULES, later=True)
    lr_cycles: int = option(3, "how often the learning rate decays to 0 with cosine_with_restarts", later=True)
    warmup: int = option(0, "optimizer steps of linear warm-up at the start")
    warmup_share: float = option(0.0, "the same as a share of all steps, if --warmup is 0", later=True)
    weight_decay: float = option(1e-2, "the optimizer's weight decay")
    clip_norm: float = option(1.0, "gradient norm above which gradients are scaled down")
    # the objective
    noise_schedule: str = option("base", "betas of the training noise", choices=NOISE_SCHEDULES)
    loss: str = option("l2", "squared error, or pseudo-Huber, which is less sensitive to outliers", choices=LOSSES, later=True)
    huber_c: float = option(0.1, "error at which the Huber loss becomes linear at the noisiest timestep, 0 to 1", later=True)
    min_snr_gamma: float = option(0.0, "min-SNR loss weighting, 5 is usual; 0: off")
    debiased: bool = option(False, "debiased-estimation loss weighting, 1 / sqrt(SNR), instead of min-SNR", later=True)
    min_timestep: int = option(0, "lowest trained timestep, of 1000", later=True)
    max_timestep: int = option(1000, "end of the trained timesteps (exclusive), of 1000", later=True)
    noise_offset: float = option(0.0, "standard deviation of a per-channel offset added to the noise; 0: off")
    seed: int = option(0, "seed of every random draw")
    data_seed: int = option(-1, "seed for choosing categories, drawings and held-out pictures, so that runs with other "
                                "seeds can use the same data; -1: as --seed", later=True)
    # output
    dtype: str = option("fp32", "number format of the factors in --out", choices=DTYPES)
    scale: float = option(0.8, "recommended scale, the card's preferred weight (the paper's best)")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if isinstance(f.default, tuple):  # a list in JSON
                object.__setattr__(self, f.name, tuple(getattr(self, f.name)))
        for name in ("per_category", "rank", "epochs", "batch", "accumulation", "lr_cycles", "clip_skip"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("steps", "samples", "warmup", "seed", "alpha", "conv_rank", "conv_alpha", "weight_decay", "min_snr_gamma",
                     "noise_offset", "keep_tokens", "prior_weight"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, name, "0 or more", value)
        _require(self.data_seed >= -1, "data_seed", "0 or more, or -1 for the seed", self.data_seed)
        _require(math.isfinite(self.clip_norm) and self.clip_norm > 0, "clip_norm", "more than 0", self.clip_norm)
        _require(0 < self.learning_rate <= 1, "learning_rate", "above 0, at most 1", self.learning_rate)
        for name, most in (("rank", 1280), ("alpha", 65504), ("conv_rank", 1280), ("conv_alpha", 65504), ("noise_offset", 10),
                           ("weight_decay", 100)):
            _require(getattr(self, name) <= most, name, f"at most {most}", getattr(self, name))
        for name in ("held_out", "caption_dropout", "tag_dropout"):
            _require(0 <= getattr(self, name) < 1, name, "a share from 0 to below 1", getattr(self, name))
        _require(1 <= self.bucket_max_aspect <= 16, "bucket_max_aspect", "from 1 to 16", self.bucket_max_aspect)
        _require(self.prior_weight <= 100, "prior_weight", "at most 100", self.prior_weight)
        _require(0 <= self.warmup_share < 1, "warmup_share", "a share from 0 to below 1", self.warmup_share)
        _require(0 <= self.text_encoder_rate <= 1, "text_encoder_rate", "from 0 to 1", self.text_encoder_rate)
        _require(0 < self.text_encoder_until <= 1, "text_encoder_until", "a share above 0, at most 1", self.text_encoder_until)
        if self.optimizer == "prodigy" and self.text_encoder_rate not in (0, self.learning_rate):
            raise UsageError("--text-encoder-rate: Prodigy has one rate for all: leave it out, or give --optimizer adamw")
        _require(0 < self.huber_c <= 1, "huber_c", "above 0, at most 1", self.huber_c)
        _require(0 <= self.min_timestep < self.max_timestep <= 1000, "min_timestep",
                 f"from 0 to below --max-timestep ({self.max_timestep}), which is at most 1000", self.min_timestep)
        if self.dora and self.init:
            raise UsageError("--dora and --init: a run can only continue from plain LoRAs: give one of them")
        if self.debiased and self.min_snr_gamma:
            raise UsageError("--debiased and --min-snr-gamma both weight the loss: give one of them")
        _require(0 < self.scale <= 2, "scale", "above 0, at most 2", self.scale)
        _require(self.resolution % 64 == 0 and self.resolution >= 0, "resolution", "a multiple of 64", self.resolution)
        for f in dataclasses.fields(self):
            if f.metadata["choices"]:
                value = getattr(self, f.name)
                _require(value in f.metadata["choices"], f.name, "one of " + ", ".join(f.metadata["choices"]), value)
        try:
            re.compile(self.target_pattern)
        except (re.error, RecursionError) as error:
            raise UsageError(f"{flag('targets')} {self.targets!r} is not a regular expression ({error}): use "
                             f"{', '.join(TARGETS)} or correct it") from error

    @property
    def target_pattern(self) -> str:
        """The regular expression for the names of the UNet's trained modules."""
        return TARGETS.get(self.targets, self.targets)

    @property
    def bucket_step(self) -> int:
        """Pixels in which buckets differ: the UNet halves the latents three times. 0: no buckets."""
        return 0 if self.crop == "square" else 64

    @property
    def data_seed_used(self) -> int:
        """The seed that chooses categories, drawings and held-out pictures."""
        return self.seed if self.data_seed == -1 else self.data_seed

    @property
    def true_alpha(self) -> float:
        return self.alpha or float(self.rank)

    def rank_of(self, kernel: int) -> int:
        """Rank for a layer whose filter has this side in pixels: 1 for a linear layer."""
        return self.conv_rank if kernel > 1 and self.conv_rank else self.rank

    def alpha_of(self, kernel: int) -> float:
        """Alpha for such a layer."""
        if kernel == 1 or not (self.conv_rank or self.conv_alpha):
            return self.true_alpha
        return self.conv_alpha or float(self.conv_rank)

    @property
    def true_text_encoder_rate(self) -> float:
        return self.text_encoder_rate or self.learning_rate

    def steps_per_epoch(self, pictures: int) -> int:
        """ceil(ceil(pictures / batch) / accumulation): the paper's ceil(250 / 4) = 63 for its 2,000 pictures."""
        return math.ceil(math.ceil(pictures / self.batch) / self.accumulation)

    def total_steps(self, pictures: int) -> int:
        """Optimizer steps of the run: the paper's 70 * 63 = 4,410 by default."""
        return self.steps or self.passes(pictures) * self.steps_per_epoch(pictures)

    def passes(self, pictures: int) -> int:
        """Epochs of the run, where no number of steps is given."""
        return max(LEAST_PASSES, math.ceil(self.samples / pictures)) if self.samples else self.epochs

    def warmup_steps(self, total: int) -> int:
        """Optimizer steps of warm-up in a run of `total`."""
        return self.warmup or round(self.warmup_share * total)

    def as_dict(self) -> Stored:
        """The stored form, JSON values: fields that were added later are left out at their defaults."""
        fields = {f.name: f for f in dataclasses.fields(self)}
        return {name: value for name, value in self.values().items()
                if not (fields[name].metadata["later"] and getattr(self, name) == fields[name].default)}

    def published(self) -> Stored:
        """The stored form for files that are given away: paths are shortened to their last name."""
        stored = self.as_dict()
        for name in ("base", "tokenizer", "vae", "data", "init"):
            if name in stored:
                stored[name] = _last_name(str(stored[name]))
        if self.more_data:
            stored["more_data"] = [_last_name(text) for text in self.more_data]
        return stored

    def values(self) -> Stored:
        """Every field, JSON values."""
        return {f.name: list(value) if isinstance(value := getattr(self, f.name), tuple) else value
                for f in dataclasses.fields(self)}


def _last_name(text: str) -> str:
    """A path's last name with the settings after it, whose own paths are shortened too; any other text as it is."""
    path, comma, settings = text.partition(", ")
    settings = re.sub(r"(masks\s*=\s*)[^,]*?([^/\\,]+)[/\\]?(?=,|$)", r"\1\2", settings)
    local = path.startswith((".", "/", "~")) or "\\" in path or home(path).exists()
    return (re.split(r"[/\\]", path.rstrip("/\\"))[-1] if local else path) + comma + settings


def apart_from_length(stored: Mapping[str, Json]) -> Stored:
    """A recipe's stored form without the fields of `LENGTH`."""
    return {name: value for name, value in stored.items() if name not in LENGTH}


def home(path: str) -> Path:
    """`path` with `~` and `~user` expanded; unchanged if there is no such user."""
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
