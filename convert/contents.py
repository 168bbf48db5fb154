"""The contents of a file or folder: its tensors sorted by module and part, its metadata, peft's configuration."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import identify, names
from .container import no_garbage_collection, open_container
from .errors import FileError, quote
from .peft_config import Config, configs_of_metadata, read_config
from .sd15 import TEXT_ENCODER, UNET, modules
from .tensors import Container, Tensor
from .words import missing

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The two files of a peft adapter folder."""

ADAPTER_PICKLE = "adapter_model.bin"

Grouped = Mapping[str, Mapping[str, Tensor]]
"""Module name -> part -> tensor."""


@dataclass(frozen=True)
class Contents:
    """Every tensor of a file or adapter folder, sorted by its meaning. Their shapes are not checked yet."""

    path: Path
    form: str
    """the form, in words"""
    groups: Grouped
    """in the order of the network"""
    embeddings: Mapping[str, Tensor]
    """key -> vectors; OneTrainer bundles them"""
    other_networks: tuple[str, ...]
    """keys of parts that only other networks have: LoHa, LoKr, …"""
    skipped: tuple[str, ...]
    """keys that were left out"""
    metadata: Mapping[str, str]
    configs: Mapping[str, Config]
    """scope ("" for any) -> peft's configuration"""
    size: int
    """bytes on disk"""

    def config_of(self, scope: str) -> Config | None:
        """peft's configuration for a scope."""
        return self.configs.get(scope, self.configs.get(""))


@no_garbage_collection()
def open_contents(path: Path | str, *, skip_unknown: bool = False, pickles: bool = False) -> Contents:
    """Open a .safetensors file, or a folder: one with `adapter_config.json`, one with `unet/` and `text_encoder/` that each
    have one, or one with a single .safetensors file. The form is recognised by content, not by name.

    Args:
        skip_unknown: leave out tensors with unknown names instead of refusing the file.
        pickles: also read PyTorch's .bin, .pt and .ckpt, without running any code in them.

    Raises `FileError`; its subclass depends on what the file is instead.
    """
    path = Path(path)
    containers, configs = _open(path, pickles)
    metadata = {key: value for container in containers for key, value in container.metadata.items()}
    groups: dict[str, dict[str, Tensor]] = {}
    forms: Counter[str] = Counter()
    embeddings: dict[str, Tensor] = {}
    unknown, twice, other = [], [], []
    for key, tensor in (item for container in containers for item in container.tensors.items()):
        meaning = names.parse(key)
        if meaning is None:
            if key.startswith(names.BUNDLED):
                embeddings[key] = tensor
            else:
                unknown.append(key)
            continue
        parts = groups.setdefault(meaning.module.name, {})
        if meaning.part in parts:
            twice.append(key)
        parts[meaning.part] = tensor
        forms[meaning.form] += meaning.part != "alpha"
        if meaning.part not in names.LORA_PARTS:
            other.append(key)
    if not groups or (unknown and not (skip_unknown and identify.is_nothing_known(unknown))):
        raise identify.refusal(path, unknown or list(embeddings), others=bool(groups))
    if twice:
        raise FileError(path, f"{quote(twice[0])} is a second name for a tensor that is already in the file")
    form = " + ".join(form for form, count in forms.most_common() if count) or forms.most_common(1)[0][0]
    return Contents(
        path, form, {name: groups[name] for name in modules() if name in groups}, embeddings, tuple(other), tuple(unknown),
        metadata, {**configs_of_metadata(metadata, path), **configs}, sum(container.size for container in containers),
    )  # fmt: skip


def demand_exists(path: Path) -> None:
    """Raise `FileError` if there is no such file or folder."""
    if not os.path.exists(path):  # unlike Path.exists, does not raise for an invalid name
        raise FileError(quote(str(path)), missing(path))


def _open(path: Path, pickles: bool) -> tuple[list[Container], dict[str, Config]]:
    """The headers, and the adapter configurations by scope ("" for any)."""
    demand_exists(path)
    if not path.is_dir():
        container = open_container(path, pickles=pickles)
        beside = path.with_name(ADAPTER_CONFIG)
        if beside.is_file() and any("base_model.model." in key for key in container.tensors):
            return [container], {"": read_config(beside)}
        return [container], {}
    if (path / ADAPTER_CONFIG).is_file():
        return [_weights(path, pickles)], {"": read_config(path / ADAPTER_CONFIG)}
    scopes = [scope for scope in (UNET, TEXT_ENCODER) if (path / scope / ADAPTER_CONFIG).is_file()]
    if scopes:
        return (
            [_weights(path / scope, pickles) for scope in scopes],
            {scope: read_config(path / scope / ADAPTER_CONFIG) for scope in scopes},
        )
    only = list(path.glob("*.safetensors"))
    if len(only) != 1:
        problem = f"is a folder without {ADAPTER_CONFIG} and with {len(only)} .safetensors files"
        raise FileError(path, problem, "give a .safetensors file or a peft adapter folder")
    return [open_container(only[0])], {}


def _weights(folder: Path, pickles: bool) -> Container:
    safe = folder / ADAPTER_WEIGHTS
    pickle = folder / ADAPTER_PICKLE
    return open_container(pickle if pickle.exists() and not safe.exists() else safe, pickles=pickles)
