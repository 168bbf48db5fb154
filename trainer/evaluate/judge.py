"""The models that judge: unit features of pictures and texts by a CLIP, and of pictures by a DINOv2."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from convert.errors import JobError, UsageError
from trainer.base import hub
from trainer.recipe import home
from trainer.terminal import quiet

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

BATCH = 32
WEIGHTS = "model.safetensors"
SMALL = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
         "special_tokens_map.json")  # fmt: skip
Say = Callable[[str], None]


class Pooled(Protocol):
    """A model's output."""

    pooler_output: Tensor


class ImageJudge:
    """An image encoder of transformers, float32 on `device`, with its own image processor.

    name: a folder or an id of the hub; option: the flag that named it, for messages.

    Raises:
        UsageError: `name` does not exist, or is not such a model in safetensors form.
        JobError: it is damaged, or the hub cannot be reached.
    """

    kind = "DINOv2"
    types: tuple[str, ...] = ("dinov2", "dinov2_with_registers")

    def __init__(self, name: str, option: str, device: torch.device, say: Say) -> None:
        self.name, self.device = name, device
        folder, commit = _find(name, option, self.kind, say)
        try:
            with quiet():
                self._load(folder)
        except (OSError, ValueError, SafetensorError) as error:
            raise JobError(f"{option} {name}: is not a complete {self.kind} in transformers form ({_line(error)})") from error
        self.model.eval().requires_grad_(False).to(device)
        self.identity = commit or _digest(folder)

    def _load(self, folder: Path) -> None:
        from transformers import BitImageProcessor, Dinov2Model, Dinov2WithRegistersModel

        found = _model_type(folder, self.types)
        self.model: PreTrainedModel = _weights(Dinov2Model if found == "dinov2" else Dinov2WithRegistersModel, folder)
        self.processor: BaseImageProcessor = BitImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def images(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Features, float32 (N, width) of length 1 on the CPU, of uint8 (H, W, 3) pictures."""
        parts = []
        for k in range(0, len(pictures), BATCH):
            some = [Image.fromarray(picture) for picture in pictures[k : k + BATCH]]
            pixels = self.processor(some, return_tensors="pt")["pixel_values"].to(self.device)
            parts.append(_unit(self._features(pixels)))
        return torch.cat(parts)

    def _features(self, pixels: Tensor) -> Tensor | Pooled:
        return self.model(pixel_values=pixels)


class Judge(ImageJudge):
    """A CLIP image/text pair. Texts are cut to the text encoder's length."""

    kind = "CLIP"
    types = ("clip",)

    def _load(self, folder: Path) -> None:
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        _model_type(folder, self.types)
        self.model = _weights(CLIPModel, folder)
        self.tokenizer: PreTrainedTokenizerBase = CLIPTokenizer.from_pretrained(folder)
        self.processor = CLIPImageProcessor.from_pretrained(folder)

    def _features(self, pixels: Tensor) -> Tensor | Pooled:
        return self.model.get_image_features(pixel_values=pixels)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features, float32 (N, width) of length 1 on the CPU."""
        limit = self.model.config.text_config.max_position_embeddings
        parts = []
        for k in range(0, len(texts), BATCH):
            tokens = self.tokenizer(list(texts[k : k + BATCH]), padding=True, truncation=True, max_length=limit,
                                    return_tensors="pt").to(self.device)  # fmt: skip
            ids = {key: tokens[key] for key in ("input_ids", "attention_mask")}
            parts.append(_unit(self.model.get_text_features(**ids)))
        return torch.cat(parts)


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """CLIP scores (N,) of unit features (N, width): 100 max(cos, 0).

    This is the formula of the paper's library (torchmetrics); Hessel et al. 2021, which it cites, use 2.5 max(cos, 0).
    """
    return 100 * (images * texts).sum(dim=-1).clamp(min=0)


def similarity(images: Tensor, references: Tensor) -> Tensor:
    """Each image's mean cosine, (N,), with all references (R, width): section 4.3.2."""
    return (images @ references.T).mean(dim=1)


def _unit(output: Tensor | Pooled) -> Tensor:
    """Unit features from what transformers returns: a tensor in some versions, an output with `pooler_output` in others."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    return F.normalize(features.float(), dim=-1).cpu()


def _find(name: str, option: str, kind: str, say: Say) -> tuple[Path, str]:
    """The folder of model `name`, and the hub's commit, or "" for a local folder."""
    place = home(name)
    try:
        if place.is_dir():
            _needed([file.name for file in place.iterdir()])
            return place, ""
        if not hub.is_id(name):
            raise UsageError(f"{name}: there is no such folder: give a folder or hub id of a {kind} (transformers form)")
        return hub.download(name, _needed, say, landmark="config.json")
    except UsageError as error:
        said = str(error)
        raise UsageError(f"{option} {said if said.startswith(name) else f'{name}: {said}'}") from error
    except JobError as error:
        raise JobError(f"{option} {error}; go online, or give a folder of a {kind} in transformers form") from error


def _needed(names: list[str]) -> list[str]:
    """The files of a repository that a judge needs. UsageError if weights or configuration are missing.

    Only safetensors: a pickle (pytorch_model.bin) can run code when it is loaded.
    """
    if WEIGHTS not in names:
        pickled = any(name.startswith("pytorch_model") for name in names)
        raise UsageError(f"has no {WEIGHTS}" + (", only a pickle, which is never loaded: give a revision that has it, as "
                                                "id@refs/pr/N, or a folder with a converted copy" if pickled else ""))
    if "config.json" not in names:
        raise UsageError("has no config.json: it is not in transformers form")
    return [WEIGHTS, *(name for name in SMALL if name in names)]


def _model_type(folder: Path, expected: tuple[str, ...]) -> str:
    from transformers import AutoConfig

    found = str(AutoConfig.from_pretrained(folder).model_type)
    if found not in expected:
        raise ValueError(f"its config.json says model_type {found!r}, not {expected[0]!r}")
    return found


def _weights(model_class: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    """The model with every weight from its file. ValueError or OSError if one is missing."""
    model, found = model_class.from_pretrained(folder, output_loading_info=True, dtype=torch.float32, use_safetensors=True)
    if found["missing_keys"]:
        raise ValueError(f"{len(found['missing_keys'])} weights are missing, first {sorted(found['missing_keys'])[0]}")
    return model


def _digest(folder: Path) -> str:
    """sha256, hex, of a folder's weights."""
    with open(folder / WEIGHTS, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:160].rstrip(".")
