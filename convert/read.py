"""Reading: from a file or folder in any form to a `Lora`. Every key is accounted for or the file is refused."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from . import dtypes, foreign, names
from .alphas import Config, configs_of_metadata, load_json, parse_config
from .container import Container, Tensor, open_container, quote
from .errors import JobError, UsageError
from .lora import SD15, Lora, LoraModule
from .metadata import base_of, merged
from .sd15 import TEXT_ENCODER, UNET, Module, modules
from .shapes import WrongShape, canonical_parts, implied_shape

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The two files of a peft adapter folder."""

Grouped = dict[str, dict[str, Tensor]]
"""Module name -> part -> tensor."""


class UnknownKeys(JobError):
    """Some tensor names mean nothing to us; `keys` is the whole list."""

    def __init__(self, path: Path, keys: Sequence[str]):
        self.keys = list(keys)
        shown = ", ".join(quote(key) for key in self.keys[:5])
        more = f" and {len(keys) - 5} more (--check lists them)" if len(keys) > 5 else ""
        super().__init__(f"{path}: {len(keys)} tensors are no part of a LoRA of Stable Diffusion 1.5: {shown}{more}")


def read(path: Path | str, *, alpha: float | None = None, metadata: Mapping[str, object] | None = None) -> Lora:
    """Read a LoRA of any form: a .safetensors file, or a peft adapter folder. Recognised by content alone.

    Args:
        path: the file; or a folder with `adapter_config.json`, or with `unet/` and `text_encoder/` that each have one,
            or with a single .safetensors file.
        alpha: for where the form says nothing of alpha; None takes the rank, so a scale of 1.
        metadata: merged over the file's own; None as a value removes a key. `ss_base_model_version` decides the base.

    Raises:
        JobError: the file is unsound, is no LoRA of Stable Diffusion 1.5 (nor of another base with the same modules
            that its metadata names), or holds a key that is not understood.
        UsageError: `alpha` is no number above 0, or `metadata` holds what no header can.
    """
    if alpha is not None and not (math.isfinite(alpha) and 0 < alpha < 1e30):
        raise UsageError(f"--alpha {alpha:g}: must be a number above 0")
    path = Path(path)
    containers, configs = _open(path)
    own = {key: value for container in containers for key, value in container.metadata.items()}
    configs = {**configs_of_metadata(own, str(path)), **configs}
    metadata = merged(own, metadata or {})
    wrong_base = foreign.base_of_metadata(metadata)
    if wrong_base:
        raise JobError(f"{path}: its metadata says it is for {wrong_base}; only Stable Diffusion 1.5 can be converted")
    base = base_of(metadata)
    groups, form = _group(path, containers)
    shapes = _shapes(path, groups, base)
    adapters, origins = {}, Counter[str]()
    for name, (shape, rank) in shapes.items():
        module, parts = modules()[name], groups[name]
        value, origin = _alpha(path, module, rank, parts, configs, alpha) if rank else (0.0, "")
        origins[origin] += 1
        adapters[name] = LoraModule(module, shape, rank, value, canonical_parts(parts, shape, rank))
    notes = _notes(origins, alpha, base, metadata)
    found = " and ".join(sorted(origin for origin in origins if origin)) or "no factors, so none"
    return Lora(path, form, base, adapters, metadata, found, sum(c.size for c in containers), tuple(notes))


def _open(path: Path) -> tuple[list[Container], dict[str, Config]]:
    """The headers, and the adapter configurations by scope ("" for any)."""
    if not os.path.exists(path):  # unlike Path's, no error for a name that no file can have
        raise JobError(f"{quote(str(path))}: no such file or folder")
    if not path.is_dir():
        container = open_container(path)
        beside = path.with_name(ADAPTER_CONFIG)
        if beside.is_file() and any("base_model.model." in key for key in container.tensors):
            return [container], {"": _config(beside)}
        return [container], {}
    if (path / ADAPTER_CONFIG).is_file():
        return [_weights(path)], {"": _config(path / ADAPTER_CONFIG)}
    scopes = [scope for scope in (UNET, TEXT_ENCODER) if (path / scope / ADAPTER_CONFIG).is_file()]
    if scopes:
        return (
            [_weights(path / scope) for scope in scopes],
            {scope: _config(path / scope / ADAPTER_CONFIG) for scope in scopes},
        )
    only = list(path.glob("*.safetensors"))
    if len(only) != 1:
        raise JobError(
            f"{path}: is a folder without {ADAPTER_CONFIG} and with {len(only)} .safetensors files; "
            "give a .safetensors file or a peft adapter folder"
        )
    return [open_container(only[0])], {}


def _weights(folder: Path) -> Container:
    pickle = folder / "adapter_model.bin"
    safe = folder / ADAPTER_WEIGHTS
    return open_container(
        pickle if pickle.exists() and not safe.exists() else safe
    )  # a pickle is refused with the way out


def _config(path: Path) -> Config:
    try:
        text = path.read_bytes()[: 1 << 24].decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read: {error}") from error
    return parse_config(load_json(text, str(path)), str(path))


def _group(path: Path, containers: Iterable[Container]) -> tuple[Grouped, str]:
    """Sort the tensors by module and part, and say in which form they were."""
    groups: Grouped = {}
    forms: Counter[str] = Counter()
    unknown, twice = [], []
    for container in containers:
        for key, tensor in container.tensors.items():
            meaning = names.parse(key)
            if meaning is None:
                unknown.append(key)
                continue
            parts = groups.setdefault(meaning.module.name, {})
            if meaning.part in parts:
                twice.append(key)
            parts[meaning.part] = tensor
            forms[meaning.form] += meaning.part in ("down", "up", "diff", "diff_b")
    if unknown or not groups:
        kind = foreign.kind_of_keys(unknown)
        if kind:
            raise JobError(f"{path}: is {kind}; only LoRAs of Stable Diffusion 1.5 can be converted")
        if unknown:
            raise UnknownKeys(path, unknown)
        raise JobError(f"{path}: holds no tensors, so no LoRA")
    if twice:
        raise JobError(f"{path}: {quote(twice[0])} names a tensor that another key of the file names too")
    ordered = {name: groups[name] for name in modules() if name in groups}
    return ordered, " + ".join(form for form, count in forms.most_common() if count) or "kohya"


def _shapes(path: Path, groups: Grouped, base: str) -> dict[str, tuple[tuple[int, ...], int]]:
    """Module name -> (shape of the weight it patches, rank). Refuses what does not fit together, or the base."""
    shapes, misfits = {}, []
    for name, parts in groups.items():
        module = modules()[name]
        try:
            shape, rank = implied_shape(module, parts)
        except WrongShape as error:
            raise JobError(f"{path}: {name}: {error}") from error
        if base == SD15 and shape != module.shape:
            misfits.append((module, shape))
        shapes[name] = (shape, rank)
    if misfits:
        raise JobError(f"{path}: {_misfit(misfits, len(groups))}")
    return shapes


def _misfit(misfits: Sequence[tuple[Module, tuple[int, ...]]], total: int) -> str:
    for module, shape in misfits:
        if module.name.endswith(("attn2.to_k", "attn2.to_v")) and shape[1] in foreign.CONTEXT_WIDTHS:
            return f"is a LoRA of {foreign.CONTEXT_WIDTHS[shape[1]]}; only Stable Diffusion 1.5 can be converted"
    module, shape = misfits[0]
    return (
        f"{len(misfits)} of {total} modules do not have Stable Diffusion 1.5's shape ({module.name} patches a weight "
        f"of {list(shape)}, not {list(module.shape)}); a file for another base says so in its metadata: "
        "ss_base_model_version"
    )


def _alpha(
    path: Path,
    module: Module,
    rank: int,
    parts: Mapping[str, Tensor],
    configs: Mapping[str, Config],
    given: float | None,
) -> tuple[float, str]:
    """A module's alpha as a float32, and where it was found."""
    config = configs.get(module.scope, configs.get(""))
    if "alpha" in parts:
        value, origin = _scalar(path, module, parts["alpha"]), "the file"
    elif config is not None:
        value, origin = config.alpha_of(module, rank), config.origin
    elif given is not None:
        value, origin = given, "--alpha"
    else:
        value, origin = float(rank), "the rank"
    try:
        return float(dtypes.decode(dtypes.encode([value], "F32"), "F32")[0]), origin
    except dtypes.Unrepresentable as error:
        raise JobError(f"{path}: alpha of {module.name}: {error}") from error


def _scalar(path: Path, module: Module, tensor: Tensor) -> float:
    if math.prod(tensor.shape) != 1 or len(tensor.shape) > 1:
        raise JobError(f"{path}: alpha of {module.name} must be one number and has the shape {list(tensor.shape)}")
    try:
        value = float(dtypes.decode(tensor.read(), tensor.dtype)[0])
    except dtypes.Unrepresentable as error:
        raise JobError(f"{path}: alpha of {module.name}: {error}") from error
    if not math.isfinite(value):
        raise JobError(f"{path}: alpha of {module.name} is {value}; it must be a number")
    return value


def _notes(origins: Mapping[str, int], given: float | None, base: str, metadata: Mapping[str, str]) -> list[str]:
    notes = []
    if "the rank" in origins:
        stated = metadata.get("ss_network_alpha")
        aside = f" although the metadata says {quote(stated)}" if stated else ""
        notes.append(
            f"{origins['the rank']} modules have no alpha: their rank is taken, so a scale of 1, "
            f"as every loader does{aside}; --alpha sets another"
        )
    if given is not None and "--alpha" not in origins:
        notes.append(f"--alpha {given:g} was not needed: the file has its own alpha")
    if base != SD15:
        notes.append(f"it was trained on {quote(base)}, not on Stable Diffusion 1.5: it has no use with another base")
    return notes
