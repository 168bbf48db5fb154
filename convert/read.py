"""Reading: from a file or folder in any form to a `Lora`. Every key is accounted for or the file is refused."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from . import dtypes, errors, identify, names
from .container import Container, Tensor, open_container
from .errors import DoesNotFit, FileError, UsageError, WrongBase, quote
from .lora import SD15, Lora, LoraModule
from .metadata import base_of, merged
from .peft_config import Config, configs_of_metadata, read_config
from .sd15 import TEXT_ENCODER, UNET, Module, modules
from .shapes import WrongShape, canonical_parts, implied_shape

UnknownKeys = errors.UnknownKeys  # the old place of it, until every importer has followed

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The two files of a peft adapter folder."""

Grouped = dict[str, dict[str, Tensor]]
"""Module name -> part -> tensor."""


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
    configs = {**configs_of_metadata(own, path), **configs}
    metadata = merged(own, metadata or {})
    wrong_base = identify.base_of_metadata(metadata)
    if wrong_base:
        raise WrongBase(path, wrong_base, f"its metadata says it is for {wrong_base}")
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
        raise FileError(quote(str(path)), "no such file or folder")
    if not path.is_dir():
        container = open_container(path)
        beside = path.with_name(ADAPTER_CONFIG)
        if beside.is_file() and any("base_model.model." in key for key in container.tensors):
            return [container], {"": read_config(beside)}
        return [container], {}
    if (path / ADAPTER_CONFIG).is_file():
        return [_weights(path)], {"": read_config(path / ADAPTER_CONFIG)}
    scopes = [scope for scope in (UNET, TEXT_ENCODER) if (path / scope / ADAPTER_CONFIG).is_file()]
    if scopes:
        return (
            [_weights(path / scope) for scope in scopes],
            {scope: read_config(path / scope / ADAPTER_CONFIG) for scope in scopes},
        )
    only = list(path.glob("*.safetensors"))
    if len(only) != 1:
        problem = f"is a folder without {ADAPTER_CONFIG} and with {len(only)} .safetensors files"
        raise FileError(path, problem, "give a .safetensors file or a peft adapter folder")
    return [open_container(only[0])], {}


def _weights(folder: Path) -> Container:
    pickle = folder / "adapter_model.bin"
    safe = folder / ADAPTER_WEIGHTS
    return open_container(
        pickle if pickle.exists() and not safe.exists() else safe
    )  # a pickle is refused with the way out


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
        raise identify.refusal(path, unknown)
    if twice:
        raise FileError(path, f"{quote(twice[0])} names a tensor that another key of the file names too")
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
            raise DoesNotFit(path, name, f"{name}: {error}") from error
        if base == SD15 and shape != module.shape:
            misfits.append((module, shape))
        shapes[name] = (shape, rank)
    if misfits:
        raise _misfit(path, misfits, len(groups))
    return shapes


def _misfit(path: Path, misfits: Sequence[tuple[Module, tuple[int, ...]]], total: int) -> FileError:
    for module, shape in misfits:
        if module.name.endswith(("attn2.to_k", "attn2.to_v")) and shape[1] in identify.CONTEXT_WIDTHS:
            base = identify.CONTEXT_WIDTHS[shape[1]]
            return WrongBase(path, base, f"is a LoRA of {base}")
    module, shape = misfits[0]
    return DoesNotFit(
        path, module.name,
        f"{len(misfits)} of {total} modules do not have Stable Diffusion 1.5's shape ({module.name} patches a weight "
        f"of {list(shape)}, not {list(module.shape)})",
        "a file for another base says so in its metadata: ss_base_model_version",
    )  # fmt: skip


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
        raise FileError(path, f"alpha of {module.name}: {error}") from error


def _scalar(path: Path, module: Module, tensor: Tensor) -> float:
    if math.prod(tensor.shape) != 1 or len(tensor.shape) > 1:
        raise FileError(path, f"alpha of {module.name} must be one number and has the shape {list(tensor.shape)}")
    try:
        value = float(dtypes.decode(tensor.read(), tensor.dtype)[0])
    except dtypes.Unrepresentable as error:
        raise FileError(path, f"alpha of {module.name}: {error}") from error
    if not math.isfinite(value):
        raise FileError(path, f"alpha of {module.name} is {value}; it must be a number")
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
