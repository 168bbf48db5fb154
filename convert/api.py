"""The public functions: convert a file, convert to bytes, rewrite metadata. Nothing here prints."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from . import dtypes, names, write
from .container import open_container
from .contents import ADAPTER_CONFIG, ADAPTER_WEIGHTS, demand_exists
from .errors import FileError, UsageError, quote
from .files import atomic_path, write_json
from .keys import MODEL_HASH
from .lora import Lora, base_in_words
from .metadata import merged
from .read import read
from .sd15 import TEXT_ENCODER, UNET, patchable
from .stream import HASHES, Output, Written, write_container
from .words import Note, counted


@dataclass(frozen=True)
class Report:
    """The result of a conversion."""

    source: Path
    target: Path
    form: str
    """the form of the source, in words"""
    to: str
    base: str
    unet: int
    """modules of the UNet, without norms"""
    text_encoder: int
    rank: int
    alpha: float
    """the most common alpha, as written"""
    alpha_from: str
    size: int
    """bytes written"""
    model_hash: str
    """`sshs_model_hash`; for a peft folder with two adapters, the UNet's"""
    notes: tuple[Note, ...]
    embeddings: tuple[Path, ...] = ()
    """files written beside it, one for each bundled embedding"""
    computed_from: str = ""
    """for a computed file, the files that it is the sum, difference or best approximation of"""

    def describe(self) -> str:
        """One line about the conversion, and one for each note."""
        counts = ((self.unet, "UNet"), (self.text_encoder, "text encoder"))
        scopes = " and ".join(counted(count, f"{name} module") for count, name in counts if count)
        done = (
            f"{self.source} -> {self.target}: {self.form} -> {self.to}, {scopes}, "
            f"rank {self.rank}, alpha {self.alpha:g} (from {self.alpha_from}), {self.size:,} bytes"
        )
        embeddings = [f"  embedding: {path}" for path in self.embeddings]
        return "\n".join([done, *embeddings, *(f"  note: {note}" for note in self.notes)])

    def rows(self) -> list[tuple[str, str]]:
        """Rows for a table, with the labels of `check.table`."""
        counts = {UNET: self.unet, TEXT_ENCODER: self.text_encoder}
        return [
            ("file", str(self.target)),
            ("source", self.computed_from or str(self.source)),
            ("form", f"{self.form} -> {self.to}"),
            ("base", base_in_words(self.base)),
            *((scope.replace("_", " "), f"{count} of {patchable(scope)} modules") for scope, count in counts.items()),
            ("size", f"{self.size:,} bytes"),
            ("hash", f"{self.model_hash[:16]}…"),
            *(("embedding", str(path)) for path in self.embeddings),
            *(("note", str(note)) for note in self.notes),
        ]

    def to_json(self) -> dict[str, object]:
        """Plain data for `json.dumps`."""
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self).items()}
        return {**plain, "notes": [str(note) for note in self.notes], "embeddings": [str(path) for path in self.embeddings]}


def convert_file(
    source: Path | str,
    target: Path | str,
    *,
    to: str = "kohya",
    alpha: float | None = None,
    dtype: str | None = None,
    fold_alpha: bool = False,
    metadata: Mapping[str, object] | None = None,
    overwrite: bool = False,
    skip_unknown: bool = False,
    split_embeddings: bool = False,
    pickles: bool = False,
) -> Report:
    """Read a LoRA of any form and write it in another. Tensor bytes are streamed, never loaded as a whole.

    Args:
        source: a .safetensors file or a peft adapter folder.
        target: a file; for "peft" a folder, which then holds an adapter, or one in `unet/` and one in `text_encoder/`.
        to: "kohya" (for the web UI and ComfyUI), "diffusers" or "peft".
        alpha: for files without alpha; None takes each module's rank.
        dtype: "fp32", "fp16" or "bf16" to cast the factors; None copies them byte for byte.
        fold_alpha: multiply the scale into the factors and write alpha = rank.
        metadata: merged over the file's; None removes a key. Hashes, rank and alpha are always recomputed.
        overwrite: replace a target that exists.
        skip_unknown: leave out tensors with unknown names; the notes list them.
        split_embeddings: write embeddings that OneTrainer bundled as files of their own, `<target>.<token>.safetensors`.
        pickles: also read PyTorch's .bin, .pt and .ckpt, without running anything in them.

    Raises:
        JobError: the source cannot be read or represented in the form, or the target cannot be written.
        UsageError: an argument is invalid.
    """
    source, target = Path(source), Path(target)
    stored = check_arguments(to, dtype)
    check_target(source, target, to, overwrite)
    lora = read(source, alpha=alpha, metadata=metadata, skip_unknown=skip_unknown, pickles=pickles)
    embeddings = {}
    if split_embeddings:
        embeddings, lora = write.embedding_files(lora, target), replace(lora, embeddings={})
        for path in embeddings:
            refuse_target(source, path, overwrite)
    report = write_lora(lora, target, to=to, dtype=dtype, fold_alpha=fold_alpha)
    for path, output in embeddings.items():
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            write_container(file, [output], {}, hashes={})
    cast = [Note(f"cast from {', '.join(lora.dtypes)} to {stored}")] if stored and lora.dtypes != [stored] else []
    return replace(report, notes=(*report.notes, *cast), embeddings=tuple(embeddings))


def write_lora(lora: Lora, target: Path, *, to: str, dtype: str | None = None, fold_alpha: bool = False) -> Report:
    """Write a `Lora` to `target` in one of the forms, overwriting it. Arguments and errors as for `convert_file`."""
    stored = check_arguments(to, dtype)
    outputs = write.outputs(lora, to, dtype=stored, fold=fold_alpha)
    notes = write.notes(lora, to, fold=fold_alpha)
    if to == "kohya" and target.suffix.lower() != ".safetensors":
        notes.append(Note("hosts list only files whose name ends in .safetensors"))
    final = write.folded(lora) if fold_alpha else lora
    if to == "peft":
        size, written = _write_folder(final, outputs, target)
    else:
        size, written = _write_file(final, outputs, target, to)
    counts = [lora.patched(scope) for scope in (UNET, TEXT_ENCODER)]
    return Report(
        lora.path, target, lora.form, to, lora.base, counts[0], counts[1], final.rank, final.alpha, lora.alpha_from,
        size, written[0].metadata[MODEL_HASH], (*notes, *(note for one in written for note in one.notes())),
    )  # fmt: skip


def convert_bytes(
    source: Path | str,
    *,
    to: str = "kohya",
    alpha: float | None = None,
    dtype: str | None = None,
    metadata: Mapping[str, object] | None = None,
) -> bytes:
    """The file that `convert_file` would write, as bytes, for a host that loads a LoRA without a temporary file.

    Raises `JobError` and `UsageError` as `convert_file` does. "peft" is not possible, because it is a folder.
    """
    stored = check_arguments(to, dtype)
    if to == "peft":
        raise UsageError("to='peft': is a folder, not bytes; allowed: kohya, diffusers")
    lora = read(source, alpha=alpha, metadata=metadata)
    buffer = io.BytesIO()
    write_container(buffer, write.outputs(lora, to, dtype=stored), write.metadata(lora, Path(source).stem, to))
    return buffer.getvalue()


def set_metadata(path: Path | str, mapping: Mapping[str, object]) -> dict[str, str]:
    """Merge `mapping` into the metadata of any .safetensors file, in place and atomically; None removes a key.

    The tensor bytes do not change; the hashes are recomputed. Returns the metadata as written.
    Raises `JobError` if the file is damaged or cannot be replaced, `UsageError` if `mapping` cannot be stored in a header.
    """
    path = Path(path)
    container = open_container(path)
    outputs = [Output(name, tensor, tensor.shape, tensor.dtype) for name, tensor in container.tensors.items()]
    wanted = {key: value for key, value in merged(container.metadata, mapping).items() if key not in HASHES}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        return write_container(file, outputs, wanted).metadata


def check_arguments(to: str, dtype: str | None) -> str | None:
    """The safetensors name of `dtype`. Raises `UsageError` for a form or dtype that cannot be written."""
    if to not in names.FORMS:
        raise UsageError(f"--to {to}: allowed are {', '.join(names.FORMS)}")
    if dtype is not None and dtype not in dtypes.CASTS:
        raise UsageError(f"--dtype {dtype}: allowed are {', '.join(dtypes.CASTS)}")
    return dtypes.CASTS[dtype] if dtype else None


def check_target(source: Path, target: Path, to: str, overwrite: bool) -> None:
    """Raise if there is no `source`, or if writing `target` would change it, or an existing file without `overwrite`."""
    demand_exists(source)  # first: with the two swapped, advice to overwrite the input would be dangerous
    if to != "peft":
        refuse_target(source, target, overwrite)
        return
    if target.suffix == ".safetensors":
        raise UsageError(f"{target}: a peft adapter is a folder; name one without .safetensors")
    if os.path.isfile(target):
        raise FileError(target, "is a file, and a peft adapter is a folder", "name another output")
    for folder in (target, target / UNET, target / TEXT_ENCODER):
        weights, config = folder / ADAPTER_WEIGHTS, folder / ADAPTER_CONFIG
        if _same(source, folder) or _same(source, weights):
            raise UsageError(f"{target}: contains the input itself; name another output")
        if (os.path.exists(weights) or os.path.exists(config)) and not overwrite:
            raise FileError(folder, "already contains an adapter", "name another output or give --overwrite")


def refuse_target(source: Path, target: Path, overwrite: bool) -> None:
    """Raise if writing the file `target` would change `source`, a folder, or an existing file without `overwrite`."""
    if _same(source, target):
        raise UsageError(f"{target}: is the input itself; name another output")
    parts = (file for folder in (source, source / UNET, source / TEXT_ENCODER) for file in folder.glob("*"))
    if source.is_dir() and any(_same(file, target) for file in parts):
        raise UsageError(f"{target}: is part of the input; name another output")
    if os.path.isdir(target):
        raise FileError(target, "is a folder", "name a file in it")
    if os.path.exists(target) and not overwrite:
        raise FileError(target, "already exists", "name another output or give --overwrite")


def _same(one: Path, other: Path) -> bool:
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def _write_file(lora: Lora, outputs: list[Output], target: Path, form: str) -> tuple[int, list[Written]]:
    with atomic_path(target) as temporary, open(temporary, "wb") as file:
        written = write_container(file, outputs, write.metadata(lora, target.stem, form))
    return target.stat().st_size, [written]


def _write_folder(lora: Lora, outputs: list[Output], target: Path) -> tuple[int, list[Written]]:
    """One adapter in `target`; if both networks are patched, one in a subfolder for each."""
    scopes = [scope for scope in (UNET, TEXT_ENCODER) if lora.in_scope(scope)]
    folders = {scope: target if len(scopes) == 1 else target / scope for scope in scopes}
    made = _make_folders([target, *folders.values()])
    size, written = 0, []
    try:
        with ExitStack() as stack:  # every file is complete before the first is renamed into place
            for scope, folder in folders.items():
                keys = {names.module_name("peft", module.module) for module in lora.in_scope(scope)}
                mine = [output for output in outputs if output.name.rpartition(".lora_")[0] in keys]
                weights = stack.enter_context(atomic_path(folder / ADAPTER_WEIGHTS))
                config = stack.enter_context(atomic_path(folder / ADAPTER_CONFIG))
                with open(weights, "wb") as file:
                    written.append(write_container(file, mine, write.metadata(lora, target.name, "peft")))
                write_json(config, {"base_model_name_or_path": None, **write.peft_config(lora.in_scope(scope))})
                size += weights.stat().st_size + config.stat().st_size
    except BaseException:
        for folder in reversed(made):
            folder.rmdir()
        raise
    return size, written


def _make_folders(folders: list[Path]) -> list[Path]:
    made = []
    try:
        for folder in dict.fromkeys(folders):
            if not os.path.isdir(folder):
                folder.mkdir()
                made.append(folder)
    except (OSError, ValueError) as error:
        raise FileError(quote(str(folder)), f"cannot be created: {getattr(error, 'strerror', error)}") from error
    return made
