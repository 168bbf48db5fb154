"""The miniature as a Stable Diffusion 1.5: one file with LDM names, or a diffusers folder; float16, about 2.1 GB.

Each tensor is widened just before it is written, so memory use stays low. All operations are elementwise and the header has no
date or machine name, so the bytes are the same everywhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from convert import keys
from convert.errors import JobError, UsageError
from convert.files import atomic_path, write_json
from convert.stream import CHECKPOINT_HASHES, Output, write_container
from convert.tensors import Tensor as Bytes
from trainer.miniature import vocabulary, widen
from trainer.miniature.ldm import PREFIXES, ldm_name
from trainer.miniature.narrow import PICTURE
from trainer.miniature.packed import EMBEDDING, PARTS, Narrow
from trainer.miniature.widen import SD15, Factors, Rule

LAYERS = 12
"""Layers of CLIP's text encoder; those beyond the narrow one's are identities."""

METADATA = {
    keys.ARCHITECTURE: "stable-diffusion-v1",
    keys.TITLE: "Scribble LoRA's miniature",
    keys.RESOLUTION: f"{PICTURE}x{PICTURE}",
    "modelspec.description": "A narrow network in Stable Diffusion 1.5's shapes that draws simple things at 128 x 128.",
    "scribble_miniature": "2",
}


@dataclass(frozen=True)
class Wide:
    """A tensor of the wide model: its part and diffusers name, its narrow form, and the rule that widens it."""

    part: str
    name: str
    narrow: Tensor
    rule: Rule

    @property
    def shape(self) -> tuple[int, ...]:
        out, *rest = self.narrow.shape
        return (out * self.rule.rows.factor, *(n * self.rule.columns.factor if d == 0 else n for d, n in enumerate(rest)))

    def float16(self) -> Tensor:
        """The wide tensor, float16. Columns and factors are applied to the narrow rows, which are copied last."""
        return self.rule.rows.spread(self.rule.columns_of(self.narrow).half(), 0)


def wide_tensors(narrow: Narrow, by: Factors = SD15) -> Iterator[Wide]:
    """Every tensor of the wide networks."""
    for part in PARTS:
        state: Mapping[str, Tensor] = getattr(narrow, part)
        for name, tensor in state.items():
            yield Wide(part, name, tensor, widen.rule(part, name.rpartition(".")[0], by))
    width, inner = narrow.text_encoder[EMBEDDING].shape[1], len(narrow.text_encoder["encoder.layers.0.mlp.fc1.bias"])
    own = len({name.split(".")[2] for name in narrow.text_encoder if name.startswith("encoder.layers.")})
    for layer in range(own, LAYERS):
        for name, tensor in widen.silent_layer(width, inner).items():
            full = f"encoder.layers.{layer}.{name}"
            yield Wide("text_encoder", full, tensor, widen.rule("text_encoder", full.rpartition(".")[0], by))


def write_checkpoint(target: Path, narrow: Narrow, by: Factors = SD15) -> None:
    """Write the single file. Raises UsageError if `target` exists, JobError if space is missing or writing fails."""
    outputs = [_output(ldm_name(wide.part, wide.name), _ldm_shape(wide), wide) for wide in wide_tensors(narrow, by)]
    positions = np.arange(77, dtype="<i8")  # a buffer that SD1.5's own file has and old readers expect
    outputs.append(Output(PREFIXES["text_encoder"] + "embeddings.position_ids",
                          Bytes("I64", (1, 77), positions.nbytes, data=positions.tobytes()), (1, 77), "I64"))
    _room(target, sum(output.size for output in outputs))
    with atomic_path(target) as temporary, temporary.open("wb+") as file:
        write_container(file, outputs, METADATA, hashes=CHECKPOINT_HASHES)


def write_diffusers(folder: Path, narrow: Narrow, by: Factors = SD15) -> None:
    """Write a diffusers pipeline folder. Raises as `write_checkpoint`; an incomplete folder lacks model_index.json."""
    files = {"unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors",
             "text_encoder": "model.safetensors"}
    outputs: dict[str, list[Output]] = {part: [] for part in PARTS}
    for wide in wide_tensors(narrow, by):
        prefix = "text_model." if wide.part == "text_encoder" else ""
        outputs[wide.part].append(_output(prefix + wide.name, wide.shape, wide))
    _room(folder, sum(output.size for part in outputs.values() for output in part))
    for part, config in _configs(narrow, by).items():
        (folder / part).mkdir(parents=True)
        write_json(folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), config)
    for part, name in files.items():
        with atomic_path(folder / part / name) as temporary, temporary.open("wb+") as file:
            write_container(file, outputs[part], {"format": "pt"}, hashes={})
    _write_tokenizer(folder / "tokenizer")
    write_json(folder / "model_index.json", _INDEX)


def _output(name: str, shape: tuple[int, ...], wide: Wide) -> Output:
    def compute(_: bytes, wide: Wide = wide) -> bytes:
        return wide.float16().numpy().tobytes()

    return Output(name, Bytes("F32", tuple(wide.narrow.shape), 0), shape, "F16", compute=partial(compute))


def _ldm_shape(wide: Wide) -> tuple[int, ...]:
    """The shape in an LDM checkpoint, where the autoencoder's attention consists of 1 x 1 convolutions."""
    attention = wide.part == "vae" and ".attentions." in wide.name and len(wide.shape) == 2
    return (*wide.shape, 1, 1) if attention else wide.shape


def _room(target: Path, needed: int) -> None:
    if target.exists():
        raise UsageError(f"{target}: already exists: remove it, or choose another name")
    parent = target.resolve().parent
    if not parent.is_dir():
        raise UsageError(f"{target}: there is no folder {parent}")
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise JobError(f"{target}: needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free: free some space, or "
                       "choose another disk")


_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline", "feature_extractor": [None, None], "image_encoder": [None, None],
    "requires_safety_checker": False, "safety_checker": [None, None], "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip

_SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
}  # fmt: skip


def _configs(narrow: Narrow, by: Factors) -> dict[str, dict[str, Any]]:
    """SD1.5's configurations: those of the narrow networks with multiplied widths."""
    models = narrow.models()
    unet, vae = (json.loads(models[part].to_json_string()) for part in ("unet", "vae"))
    text = models["text_encoder"].config.to_dict()
    unet |= {"block_out_channels": [n * by.unet for n in unet["block_out_channels"]],
             "cross_attention_dim": unet["cross_attention_dim"] * by.text}
    vae |= {"block_out_channels": [n * by.vae for n in vae["block_out_channels"]],
            "norm_num_groups": vae["norm_num_groups"] * by.vae}
    text |= {"hidden_size": text["hidden_size"] * by.text, "intermediate_size": text["intermediate_size"] * by.text,
             "num_attention_heads": text["num_attention_heads"] * by.text_heads, "num_hidden_layers": LAYERS,
             "architectures": ["CLIPTextModel"]}
    configs = {"unet": unet, "vae": vae, "text_encoder": text, "scheduler": _SCHEDULER}
    return {part: {key: value for key, value in config.items() if key not in ("_diffusers_version", "transformers_version")}
            for part, config in configs.items()}


def _write_tokenizer(folder: Path) -> None:
    folder.mkdir()
    vocabulary.write_vocabulary(vocabulary.SHIPPED, folder)
    end = vocabulary.END
    marks = {"bos_token": "<|startoftext|>", "eos_token": end, "pad_token": end, "unk_token": end}
    write_json(folder / "special_tokens_map.json", marks)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77,
                                                  "do_lower_case": True, "add_prefix_space": False, **marks})
