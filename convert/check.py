"""Audits a LoRA: its contents, unknown keys, NaN and infinite numbers, stored hashes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import dtypes, keys, names, write
from .container import open_container
from .errors import JobError, NotFinite, UnknownKeys, WrongHash, quote
from .lora import SD15, Lora, base_in_words
from .read import read
from .sd15 import TEXT_ENCODER, UNET, patchable
from .tensors import open_source
from .words import Note, aligned

HASH_KEYS = (keys.MODEL_HASH, keys.FILE_HASH)
"""Metadata keys for the sha256 of all bytes after the header."""


@dataclass
class Audit:
    """The result of `--check`; its JSON has the same fields."""

    file: str
    sound: bool = True
    problem: str | None = None
    """`str(error)`"""
    error: JobError | None = None
    """the error that makes it unsound; not in the JSON"""
    unknown_keys: list[str] = field(default_factory=list)
    form: str | None = None
    base: str | None = None
    modules: dict[str, list[int]] = field(default_factory=dict)
    """scope -> [modules patched, modules in total]"""
    rank: int | None = None
    ranks: list[int] = field(default_factory=list)
    alpha: float | None = None
    alpha_from: str | None = None
    scale: float | None = None
    """most common alpha / most common rank"""
    dora: bool = False
    dtypes: list[str] = field(default_factory=list)
    embeddings: list[str] = field(default_factory=list)
    """keys of bundled embeddings"""
    size: int | None = None
    """bytes"""
    hash: str | None = None
    """sha256 of all bytes after the header; for a folder with two adapters, of one of them"""
    hash_stored: str | None = None
    not_finite: list[str] = field(default_factory=list)
    """tensors with NaN or infinite numbers"""
    cannot_become: dict[str, str] = field(default_factory=dict)
    """form -> the reason"""
    notes: list[Note] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        plain = {key: value for key, value in vars(self).items() if key != "error"}
        return {**plain, "notes": [str(note) for note in self.notes]}


def check(path: Path | str, *, alpha: float | None = None, skip_unknown: bool = False, pickles: bool = False) -> Audit:
    """Audit a file or adapter folder. Never raises for a bad one: `sound` is then False, with `problem` and `error`."""
    audit = Audit(str(path))
    try:
        lora = read(path, alpha=alpha, skip_unknown=skip_unknown, pickles=pickles)
        _describe(audit, lora)
        _scan(audit, lora)
    except JobError as error:
        audit.sound, audit.problem, audit.error = False, str(error), error
        audit.unknown_keys = error.keys if isinstance(error, UnknownKeys) else []
    return audit


def _describe(audit: Audit, lora: Lora) -> None:
    audit.form, audit.base, audit.size = lora.form, lora.base, lora.size
    for scope in (UNET, TEXT_ENCODER):
        audit.modules[scope] = [lora.patched(scope), patchable(scope)]
    audit.rank, audit.alpha, audit.alpha_from = lora.rank, lora.alpha, lora.alpha_from
    audit.ranks = sorted({module.rank for module in lora.factors})
    audit.scale = lora.alpha / lora.rank if lora.rank else None
    audit.embeddings = list(lora.embeddings)
    audit.dora, audit.dtypes = lora.uses_dora, lora.dtypes
    audit.metadata, audit.notes = dict(lora.metadata), list(lora.notes)
    for form in names.FORMS:
        lacks = write.what_is_lacking(lora, form)
        if lacks is not None:
            audit.cannot_become[form] = lacks.reason


def _scan(audit: Audit, lora: Lora) -> None:
    """Read every byte once, for the hash and for NaN and infinities. Raises `NotFinite` or `WrongHash`."""
    names_of: dict[tuple[Path | None, int], str] = {
        (tensor.file, tensor.offset): f"{name} {part}"
        for name, module in lora.modules.items() for part, tensor in module.parts.items()
    }  # fmt: skip
    files = sorted({file for file, _ in names_of if file is not None})
    stored, wrong = None, None
    for file in files:
        container = open_container(file, pickles=True)
        digest = hashlib.sha256()
        tensors = sorted(container.tensors.items(), key=lambda item: item[1].offset)
        with open_source(file) as source:
            for key, tensor in tensors:
                finite = True
                for chunk in tensor.chunks(source):
                    digest.update(chunk)
                    finite = finite and dtypes.all_finite(chunk, tensor.dtype)
                if not finite:
                    audit.not_finite.append(names_of.get((file, tensor.offset), quote(key)))
        found = digest.hexdigest()
        for key, value in container.metadata.items():
            if key in HASH_KEYS and value.removeprefix("0x") != found:
                wrong = wrong or WrongHash(file, key)
        if file == files[0]:
            audit.hash, stored = found, container.metadata.get(keys.MODEL_HASH)
    audit.hash_stored = stored
    if audit.not_finite:
        raise NotFinite(lora.path, audit.not_finite)
    if wrong is not None:
        raise wrong


def table(audit: Audit, *, advice: bool = True) -> str:
    """The audit as aligned lines. `advice` is for a command line; a host leaves it out."""
    rows: list[tuple[str, str]] = [("file", audit.file)]
    if audit.form is not None:
        rows += [
            ("form", audit.form),
            ("base", base_in_words(audit.base or SD15)),
            *((scope.replace("_", " "), f"{hit} of {of} modules") for scope, (hit, of) in audit.modules.items()),
            ("rank", ", ".join(map(str, audit.ranks)) or "no factors"),
            (
                "alpha",
                f"{audit.alpha:g} from {audit.alpha_from}, a scale of {audit.scale:g}"
                if audit.scale is not None
                else "none",
            ),
            ("DoRA", "yes" if audit.dora else "no"),
            ("dtype", ", ".join(audit.dtypes)),
            ("size", f"{audit.size:,} bytes"),
            ("hash", f"{(audit.hash or '?')[:16]}… ({_stored(audit)})"),
            ("embeddings", ", ".join(quote(key) for key in audit.embeddings) or "none"),
            ("NaN or Inf", ", ".join(audit.not_finite) or "none"),
        ]
    rows += [("cannot become", f"{form}: {reason}") for form, reason in audit.cannot_become.items()]
    rows += [("note", str(note) if advice else note.text) for note in audit.notes]
    rows += [("unknown key", ascii(key)[1:-1]) for key in audit.unknown_keys]
    rows += [("metadata", f"{key} = {_short(value)}") for key, value in sorted(audit.metadata.items())]
    rows.append(("verdict", "sound" if audit.sound else audit.problem or ""))
    return aligned(rows)


def _stored(audit: Audit) -> str:
    if audit.hash_stored is None:
        return "none stored"
    return "as stored" if audit.hash_stored == audit.hash else "differs from the stored one"


def _short(value: str) -> str:
    line = json.dumps(value, ensure_ascii=False)[1:-1]
    return line if len(line) <= 80 else f"{line[:77]}…"
