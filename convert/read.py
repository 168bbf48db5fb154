"""Reads a file or folder in any form as a `Lora`. A file with an unknown key is refused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import dtypes, identify, keys
from .contents import Contents, Grouped, open_contents
from .errors import DoesNotFit, FileError, UsageError, WrongBase, quote
from .lora import SD15, Lora, LoraModule
from .metadata import merged, says_sd15
from .miniature import EARLIER, EARLIER_IS_GONE, is_of_miniature
from .sd15 import SPECIAL_INPUTS, Module, fits, modules
from .shapes import WrongShape, canonical_parts, implied_shape
from .tensors import Tensor
from .words import Note, counted

LARGEST_ALPHA = 1e30
"""Far above any real alpha, and within float32."""


def read(
    path: Path | str,
    *,
    alpha: float | None = None,
    metadata: Mapping[str, object] | None = None,
    skip_unknown: bool = False,
    pickles: bool = False,
) -> Lora:
    """Read a LoRA of any form: a .safetensors file, or a peft adapter folder. The form is recognised by content.

    Args:
        path: the file; or a folder with `adapter_config.json`, or with `unet/` and `text_encoder/` that each have one,
            or with a single .safetensors file.
        alpha: for a file without alpha; None takes the rank, so a scale of 1.
        metadata: merged over the file's own; None as a value removes a key. If the shapes do not fit Stable Diffusion 1.5,
            `ss_base_model_version` determines the base.
        skip_unknown: leave out tensors with unknown names; `Lora.notes` lists them.
        pickles: also read PyTorch's .bin, .pt and .ckpt, without running any code in them.

    Raises:
        FileError: the file is damaged, is not a LoRA of Stable Diffusion 1.5 or of another base with the same modules that
            its metadata names, or has an unknown key. The subclass depends on the reason.
        UsageError: `alpha` is not a number above 0, or `metadata` cannot be stored in a header.
    """
    if alpha is not None and not (math.isfinite(alpha) and 0 < alpha < LARGEST_ALPHA):
        raise UsageError(f"--alpha {alpha:g}: must be a number above 0")
    contents = open_contents(path, skip_unknown=skip_unknown, pickles=pickles)
    if contents.other_networks:
        raise identify.refusal(contents.path, contents.other_networks)
    merged_metadata = merged(contents.metadata, metadata or {})
    shapes, base = shapes_and_base(contents.path, contents.groups, merged_metadata)
    adapters, origins = {}, Counter[str]()
    for name, (shape, rank) in shapes.items():
        module, parts = modules()[name], contents.groups[name]
        value, origin = alpha_of(contents, module, rank, alpha) if rank else (0.0, "")
        origins[origin] += 1
        adapters[name] = LoraModule(module, shape, rank, value, canonical_parts(parts, shape, rank))
    found = " and ".join(sorted(origin for origin in origins if origin)) or "no factors, so none"
    lora = Lora(
        contents.path, contents.form, base, adapters, merged_metadata, found, contents.size,
        (*notes_of_alpha(origins, alpha, merged_metadata), *notes_of(contents, shapes, base)), contents.embeddings,
    )  # fmt: skip
    return lora


def shapes_and_base(
    path: Path, groups: Grouped, metadata: Mapping[str, str]
) -> tuple[dict[str, tuple[tuple[int, ...], int]], str]:
    """Module name -> (shape of the weight it patches, rank), and the base: `SD15`, or another base's name in the metadata.

    The shapes determine the base. The metadata's name counts only if it is a known other base, or if the shapes are not
    Stable Diffusion 1.5's.
    """
    wrong_base = identify.base_of_metadata(metadata)
    if wrong_base:
        raise WrongBase(path, wrong_base, f"its metadata names the base {wrong_base}")
    shapes = {}
    for name, parts in groups.items():
        try:
            shapes[name] = implied_shape(modules()[name], parts)
        except WrongShape as error:
            raise DoesNotFit(path, name, f"{name}: {error}") from error
    return shapes, base_of(path, {name: shape for name, (shape, _) in shapes.items()}, metadata)


def base_of(path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str:
    """`SD15`, or the metadata's name of a base with other widths, or of one that only its name distinguishes."""
    word = metadata.get(keys.BASE, "")
    misfits = [(modules()[name], shape) for name, shape in shapes.items() if not fits(modules()[name], shape)]
    if word in identify.KNOWN_BY_WORD:
        return word
    if not misfits:
        return SD15
    if says_sd15(word):
        raise _misfit(path, misfits, len(shapes))
    return word


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
        "a file for another base must name it in its metadata: ss_base_model_version",
    )  # fmt: skip


def alpha_of(contents: Contents, module: Module, rank: int, given: float | None) -> tuple[float, str]:
    """A module's alpha as a float32, and its source in words."""
    parts, config = contents.groups[module.name], contents.config_of(module.scope)
    if "alpha" in parts:
        value, origin = _scalar(contents.path, module, parts["alpha"]), "the file"
    elif config is not None:
        value, origin = config.alpha_of(module, rank), config.origin
    elif given is not None:
        value, origin = given, "--alpha"
    else:
        value, origin = float(rank), "the rank"
    try:
        return float(dtypes.decode(dtypes.encode([value], "F32"), "F32")[0]), origin
    except dtypes.Unrepresentable as error:
        raise FileError(contents.path, f"alpha of {module.name}: {error}") from error


def _scalar(path: Path, module: Module, tensor: Tensor) -> float:
    if math.prod(tensor.shape) != 1 or len(tensor.shape) > 1:
        raise FileError(path, f"alpha of {module.name} must be one number, but has shape {list(tensor.shape)}")
    try:
        value = float(dtypes.decode(tensor.read(), tensor.dtype)[0])
    except dtypes.Unrepresentable as error:
        raise FileError(path, f"alpha of {module.name}: {error}") from error
    if not math.isfinite(value):
        raise FileError(path, f"alpha of {module.name} is {value}; it must be a number")
    return value


def notes_of_alpha(origins: Mapping[str, int], given: float | None, metadata: Mapping[str, str]) -> list[Note]:
    """Notes about the alphas. `origins` counts their sources (see `alpha_of`), `given` is the caller's."""
    notes = []
    if "the rank" in origins:
        stated = metadata.get(keys.NETWORK_ALPHA)
        aside = f" although the metadata says {quote(stated)}" if stated else ""
        bare = origins["the rank"]
        have = f"{counted(bare, 'module')} {'has' if bare == 1 else 'have'}"
        text = f"{have} no alpha: the rank is used, so the scale is 1, as in every loader{aside}"
        notes.append(Note(text, "--alpha sets another"))
    if given is not None and "--alpha" not in origins:
        notes.append(Note(f"--alpha {given:g} was not needed: the file has its own alpha"))
    return notes


def notes_of(contents: Contents, shapes: Mapping[str, tuple[tuple[int, ...], int]], base: str) -> list[Note]:
    """Notes about the contents."""
    notes = []
    if base == EARLIER:
        notes.append(Note(f"it {EARLIER_IS_GONE}"))
    elif base != SD15:
        text = f"it was trained on {quote(base)}, not on Stable Diffusion 1.5: it does not work with another base"
        notes.append(Note(text))
    elif is_of_miniature(contents.metadata):
        notes.append(Note("it was trained on Scribble LoRA's miniature and does not work with another checkpoint"))
    channels = shapes["conv_in"][0][1] if base == SD15 and "conv_in" in shapes else 0
    if channels in SPECIAL_INPUTS:
        text = f"it changes a conv_in with {channels} channels: it is only for {SPECIAL_INPUTS[channels]}"
        notes.append(Note(text))
    if contents.skipped:
        shown = ", ".join(quote(key) for key in contents.skipped[:20])
        more = f" and {len(contents.skipped) - 20} more" if len(contents.skipped) > 20 else ""
        notes.append(Note(f"left out {counted(len(contents.skipped), 'unknown tensor')}: {shown}{more}"))
    return notes
