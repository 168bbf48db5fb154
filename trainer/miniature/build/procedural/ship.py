"""Stage `ship` of the miniature's build: everything in fp16 into the package, at most 20 MB."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel

WEIGHTS = Path(__file__).parents[2] / "weights"
LIMIT = 20_000_000  # bytes

_INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "_name_or_path": "scribble_miniature",
    "feature_extractor": [None, None], "image_encoder": [None, None], "requires_safety_checker": False,
    "safety_checker": [None, None], "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
}


def ship(folder: Path) -> None:
    """`folder`'s models -> `weights/`, a diffusers pipeline folder, with the judge in `clip/` where it is built."""
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel, "clip": CLIPModel}
    for name, kind in kinds.items():
        if (folder / name).exists():
            kind.from_pretrained(folder / name, torch_dtype=torch.float16).save_pretrained(WEIGHTS / name)
    for config in WEIGHTS.glob("*/config.json"):  # diffusers notes the folder that it was read from
        fields = json.loads(config.read_text(encoding="utf-8"))
        if fields.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in (*(folder / "clip").glob("tokenizer*.json"), *(folder / "clip").glob("p*processor_config.json")):
        shutil.copy(file, WEIGHTS / "clip" / file.name)
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(folder / name, WEIGHTS / name, dirs_exist_ok=True)
    (WEIGHTS / "model_index.json").write_text(json.dumps(_INDEX, indent=2) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ValueError(f"{WEIGHTS}: {size:,} bytes, more than {LIMIT:,}")
    print(f"{WEIGHTS}: {size:,} bytes")
