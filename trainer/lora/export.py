"""The output files of a run: the diffusers file in the run folder; the kohya file `--out` with its card."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from convert import Report, convert_file, keys, read
from convert.errors import BadCard
from convert.files import card, write_bytes
from convert.miniature import is_miniature
from trainer.base.load import Base
from trainer.base.sd15 import SCRIBBLE_NARROW, SD_V1
from trainer.data.captions import split_tags
from trainer.data.records import Dataset, fingerprint
from trainer.lora import adapter
from trainer.miniature import adapters
from trainer.recipe import Recipe
from trainer.terminal import Say

OPTIMIZERS = {"adamw": "torch.optim.AdamW", "prodigy": "prodigyopt.prodigy.Prodigy"}
"""kohya's names: the classes'."""
MOST_TAG_BYTES, TAG_OVERHEAD = 2**16, 16
"""Bytes of ss_tag_frequency in all, and of a tag's quotes, escapes and count."""


def write_lora(run: Path, out: Path, recipe: Recipe, base: Base, dataset: Dataset, *, steps: int, started: float,
               total: int = 0) -> Report:  # fmt: skip
    """Write the diffusers file into `run` and the kohya file to `out`, in `recipe.dtype`, with metadata to repeat the run.

    A DoRA has no diffusers file: diffusers has no place for norms of input columns.
    total: optimizer steps of the whole run, if it has not ended.
    """
    said = metadata(recipe, base, dataset, out.stem, steps=steps, total=total or steps, started=started)
    with TemporaryDirectory() as spare:
        folder, form = (Path(spare), "kohya") if recipe.dora else (run, "diffusers")
        source = adapter.save_dora(base.unet, recipe, folder, base.text_encoder) if recipe.dora else adapter.save(
            base.unet, folder, base.text_encoder)
        if base.family == SCRIBBLE_NARROW:
            narrow = read(source, metadata={keys.BASE: SCRIBBLE_NARROW})
            source = folder / "wide_lora_weights.safetensors"
            write_bytes(source, adapters.lora_bytes(adapters.widened(narrow), out.stem, form))
        return convert_file(source, out, to="kohya", dtype=recipe.dtype, overwrite=True, metadata=said)


def metadata(recipe: Recipe, base: Base, dataset: Dataset, name: str, *, steps: int, total: int,
             started: float) -> dict[str, object]:  # fmt: skip
    """kohya's `ss_*` and ModelSpec keys that this run knows after `steps` of `total` steps; `convert` completes and hashes."""
    resolution = recipe.resolution or base.resolution
    values: dict[str, object] = {
        keys.OUTPUT_NAME: name, "ss_training_started_at": started, "ss_training_finished_at": datetime.now(UTC).timestamp(),
        keys.STEPS: steps, "ss_max_train_steps": total, "ss_num_train_images": len(dataset.without_reg),
        "ss_num_epochs": math.ceil(steps / recipe.steps_per_epoch(dataset.per_epoch)),
        "ss_total_batch_size": recipe.batch * recipe.accumulation,
        "ss_gradient_accumulation_steps": recipe.accumulation, "ss_learning_rate": recipe.learning_rate,
        "ss_unet_lr": recipe.learning_rate, "ss_text_encoder_lr": "None", "ss_lr_scheduler": recipe.lr_schedule,
        "ss_lr_warmup_steps": recipe.warmup_steps(total), "ss_optimizer": OPTIMIZERS[recipe.optimizer], "ss_seed": recipe.seed,
        "ss_max_grad_norm": recipe.clip_norm, "ss_min_snr_gamma": recipe.min_snr_gamma or "None",
        "ss_noise_offset": recipe.noise_offset or "None", "ss_caption_dropout_rate": recipe.caption_dropout,
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_sd_model_name": Path(base.name).name,
        "ss_cache_latents": True, "ss_tag_frequency": {name: _frequency(dataset)},
        keys.TRIGGER: dataset.trigger, keys.RESOLUTION: f"{resolution}x{resolution}",
        "modelspec.date": datetime.now(UTC).date().isoformat(),
        keys.RECIPE: recipe.published(), keys.SCALE: recipe.scale,
        "scribble_versions": {p: version(p) for p in ("torch", "diffusers", "transformers", "peft")},
    }
    values |= {key: value for used, key, value in _choices(recipe) if used}
    if base.family == SCRIBBLE_NARROW:
        values |= {keys.BASE: SD_V1, adapters.KEY: adapters.MINIATURE, "ss_sd_model_name": adapters.MINIATURE}
    elif base.family != SD_V1:  # otherwise convert derives it from the tensors' shapes
        values[keys.BASE] = base.family
    elif _is_miniature(base):
        values[adapters.KEY] = adapters.MINIATURE
    if recipe.published() != recipe.as_dict():  # its paths are shortened to names, so digests identify base and data
        values |= {"scribble_base_hash": base.identity, "scribble_data_hash": fingerprint(dataset)}
    if len(dataset.without_reg) < len(dataset.train):
        values["ss_num_reg_images"] = len(dataset.train) - len(dataset.without_reg)
    if dataset.attribution:
        values["scribble_data"] = dataset.attribution
    return values


def _is_miniature(base: Base) -> bool:
    """Whether a base of SD1.5's shape is the widened miniature."""
    places = ("conv_out.bias", "conv_out.base_layer.bias")  # the second where the LoRA patches that layer too
    return any(is_miniature(value.float().tolist()) for name, value in base.unet.named_parameters() if name in places)


def _choices(recipe: Recipe) -> list[tuple[object, str, object]]:
    """(whether it is used, kohya's key, kohya's value) of settings that are written only if they are used."""
    warm = recipe.lr_schedule == "constant" and (recipe.warmup or recipe.warmup_share)
    huber = recipe.loss == "huber"
    arguments = {"conv_dim": str(recipe.conv_rank), "conv_alpha": f"{recipe.alpha_of(3):g}"} if recipe.conv_rank else {}
    arguments |= {"algo": "lora", "dora_wd": "True", "wd_on_output": "False"} if recipe.dora else {}  # LyCORIS's names
    return [(recipe.text_encoder, "ss_text_encoder_lr", recipe.true_text_encoder_rate),
            (warm, "ss_lr_scheduler", "constant_with_warmup"),
            (arguments, keys.NETWORK_ARGS, arguments), (recipe.dora, keys.NETWORK_MODULE, "lycoris.kohya"),
            (huber, "ss_loss_type", "huber"), (huber, "ss_huber_schedule", "snr"), (huber, "ss_huber_c", recipe.huber_c),
            (recipe.clip_skip > 1, "ss_clip_skip", recipe.clip_skip), (recipe.debiased, "ss_debiased_estimation", True)]


def _frequency(dataset: Dataset) -> dict[str, int]:
    """How many captions have each tag (separated by commas, as kohya's sd-scripts counts them), the most common first.

    The web UI shows them as the LoRA's tags. At most 500 and 64 KiB, because a header must stay small.
    """
    counts = Counter(tag for example in dataset.without_reg for tag in split_tags(example.caption))
    frequency, size = {}, 0
    for tag, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:500]:
        size += len(tag.encode()) + TAG_OVERHEAD
        if size > MOST_TAG_BYTES:
            break
        frequency[tag] = number
    return frequency


def write_card(out: Path, recipe: Recipe, base: Base, dataset: Dataset, say: Say, *, again: bool = False) -> None:
    """Write A1111's card beside `out`. Of an existing card, fields that are not ours are kept; with `again` all are, since the
    user may have changed them after this run wrote them.

    A card that cannot be read is renamed, and `say` gets a line.
    """
    try:
        present = card.read_card(out)
    except BadCard as error:
        say(f"{error}; it is kept as {card.set_aside(out).name}, and a new card is written")
        present = {}
    fields = {"sd version": "SD1" if base.family in (SD_V1, SCRIBBLE_NARROW) else "Unknown", "activation text": dataset.trigger,
              "preferred weight": recipe.scale}
    described = {"description": present.get("description") or description(base, dataset)}
    if recipe.clip_skip > 1:
        described["notes"] = present.get("notes") or f"Set Clip skip to {recipe.clip_skip}: it was trained with that."
    card.write_card(out, described if again else fields | described, defaults=card.EMPTY | fields)


def description(base: Base, dataset: Dataset) -> str:
    what = f"LoRA trained on {len(dataset.without_reg)} pictures."
    if base.family == SCRIBBLE_NARROW:
        what += " For Scribble LoRA's own miniature Stable Diffusion: draw at 128 x 128."
    return f"{what} {dataset.attribution}".strip()
