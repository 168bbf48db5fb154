"""The CLIP that judges: unit features of pictures and texts, the CLIP score and the cosine similarity."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from convert.errors import JobError, UsageError
from trainer.base import MINIATURE_FOLDER
from trainer.quiet import quiet
from trainer.recipe import MINIATURE

BATCH = 32


class Judge:
    """A CLIP image/text pair of transformers, float32 on `device`, with its own image processor and tokenizer.

    name: `miniature`, a folder, or an id of the hub; option: the flag that named it, for messages. Features come as
    float32 (N, width) of length 1 on the CPU.

    Raises:
        UsageError: `name` is nothing, or no CLIP.
        JobError: it is damaged, or the hub that has it cannot be reached.
    """

    def __init__(self, name: str, option: str, device: torch.device, say: Callable[[str], None]) -> None:
        self.name, self.device = name, device
        place = str(MINIATURE_FOLDER / "clip") if name == MINIATURE else str(Path(name).expanduser())
        with quiet():
            self.model, self.tokenizer, self.processor = _load(place, name, option, say)
        self.model.eval().requires_grad_(False).to(device)
        self.identity = _identity(place, self.model)

    @torch.no_grad()
    def images(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Features of uint8 (H, W, 3) pictures."""
        parts = []
        for k in range(0, len(pictures), BATCH):
            some = [Image.fromarray(picture) for picture in pictures[k : k + BATCH]]
            pixels = self.processor(some, return_tensors="pt")["pixel_values"].to(self.device)
            parts.append(_features(self.model.get_image_features(pixel_values=pixels)))
        return torch.cat(parts)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, cut to what the text encoder reads."""
        limit = self.model.config.text_config.max_position_embeddings
        parts = []
        for k in range(0, len(texts), BATCH):
            tokens = self.tokenizer(list(texts[k : k + BATCH]), padding=True, truncation=True, max_length=limit,
                                    return_tensors="pt").to(self.device)  # fmt: skip
            ids = {key: tokens[key] for key in ("input_ids", "attention_mask")}
            parts.append(_features(self.model.get_text_features(**ids)))
        return torch.cat(parts)


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """CLIP scores (N,) of unit features (N, width): 100 max(cos, 0) (Hessel et al. 2021, with the weight of torchmetrics)."""
    return 100 * (images * texts).sum(dim=-1).clamp(min=0)


def similarity(images: Tensor, references: Tensor) -> Tensor:
    """Each image's mean cosine, (N,), with all references (R, width): section 4.3.2."""
    return (images @ references.T).mean(dim=1)


def _features(output: Any) -> Tensor:
    """Unit features from what transformers returns: a tensor in some versions, an output with `pooler_output` in others."""
    features: Tensor = getattr(output, "pooler_output", output)
    return F.normalize(features.float(), dim=-1).cpu()


def _load(place: str, name: str, option: str, say: Callable[[str], None]) -> tuple[Any, Any, Any]:
    from transformers import AutoConfig

    local = Path(place).is_dir()
    if not local and (place.startswith((".", "/", "~")) or place.count("/") > 1):
        raise UsageError(f"{option} {name}: there is no such folder: give a folder or hub id of a CLIP (transformers form)")
    try:
        return _parts(place, local_files_only=True)
    except (OSError, ValueError) as error:
        if local:
            raise JobError(f"{option} {name}: is no whole CLIP in transformers form ({_line(error)})") from error
    try:
        say(f"{name}: fetching from the hub into its cache, once")
        AutoConfig.from_pretrained(place)  # small: an unreachable hub or a wrong name shows at once
        return _parts(place, local_files_only=False)
    except (OSError, ValueError) as error:
        raise JobError(f"{option} {name}: is not on this machine and cannot be had from the hub ({_line(error)}): go online, "
                       "or give a folder of a CLIP in transformers form") from error


def _parts(place: str, *, local_files_only: bool) -> tuple[Any, Any, Any]:
    from transformers import AutoConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    here = {"local_files_only": local_files_only}
    kind = AutoConfig.from_pretrained(place, **here).model_type
    if kind != "clip":
        raise ValueError(f"its config.json says model_type {kind!r}, not 'clip'")
    model, found = CLIPModel.from_pretrained(place, output_loading_info=True, dtype=torch.float32, **here)
    if found["missing_keys"]:
        raise ValueError(f"{len(found['missing_keys'])} weights are missing, first {sorted(found['missing_keys'])[0]}")
    return model, CLIPTokenizer.from_pretrained(place, **here), CLIPImageProcessor.from_pretrained(place, **here)


def _identity(place: str, model: Any) -> str:
    """Which weights: the hub's commit, or the sha256 of a folder's weights."""
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        return str(commit)
    digest = hashlib.sha256()
    for file in sorted(Path(place).glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:160].rstrip(".")
