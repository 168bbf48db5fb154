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
from safetensors import SafetensorError
from torch import Tensor

from convert.errors import JobError, UsageError
from trainer.base import hub
from trainer.base.load import MINIATURE_FOLDER
from trainer.recipe import MINIATURE, home
from trainer.terminal import quiet

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
        folder, commit = _find(name, option, say)
        try:
            with quiet():
                self.model, self.tokenizer, self.processor = _parts(folder)
        except (OSError, ValueError, SafetensorError) as error:
            raise JobError(f"{option} {name}: is no whole CLIP in transformers form ({_line(error)})") from error
        self.model.eval().requires_grad_(False).to(device)
        self.identity = commit or _digest(folder)

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


def _find(name: str, option: str, say: Callable[[str], None]) -> tuple[Path, str]:
    """The folder of CLIP `name`, and which weights they are: the hub's commit, or "" where the files must tell."""
    place = MINIATURE_FOLDER / "clip" if name == MINIATURE else home(name)
    if place.is_dir():
        return place, ""
    if name.startswith((".", "/", "~", "\\")) or name.count("/") > 1:
        raise UsageError(f"{option} {name}: there is no such folder: give a folder or hub id of a CLIP (transformers form)")
    try:
        return _cached(name) or hub.download(name, _needed, say)
    except UsageError as error:
        raise UsageError(f"{option} {error}") from error
    except JobError as error:
        raise JobError(f"{option} {error}; go online, or give a folder of a CLIP in transformers form") from error


def _cached(name: str) -> tuple[Path, str] | None:
    """The hub's snapshot and its commit if it is whole in the cache, without any network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, revision = hub.split(name)
    try:
        found = try_to_load_from_cache(repository, "config.json", revision=revision)
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
        _needed([file.name for file in folder.iterdir()])
    except (HFValidationError, UsageError):
        return None  # not there, or not whole: the hub decides
    return folder, folder.name


def _needed(names: list[str]) -> list[str]:
    """Of a repository's files those that a judge needs. UsageError where the weights or their configuration lack."""
    weights = next((name for name in ("model.safetensors", "pytorch_model.bin") if name in names), None)
    if weights is None or "config.json" not in names:
        raise UsageError("has no config.json with model.safetensors or pytorch_model.bin: it is no CLIP in transformers form")
    small = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
             "special_tokens_map.json")  # fmt: skip
    return [weights, *(name for name in small if name in names)]


def _parts(folder: Path) -> tuple[Any, Any, Any]:
    """Model, tokenizer and image processor. ValueError or OSError where the folder is no whole CLIP."""
    from transformers import AutoConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    kind = AutoConfig.from_pretrained(folder).model_type
    if kind != "clip":
        raise ValueError(f"its config.json says model_type {kind!r}, not 'clip'")
    model, found = CLIPModel.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    if found["missing_keys"]:
        raise ValueError(f"{len(found['missing_keys'])} weights are missing, first {sorted(found['missing_keys'])[0]}")
    return model, CLIPTokenizer.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)


def _digest(folder: Path) -> str:
    """sha256, hex, of a folder's weights."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:160].rstrip(".")
