"""Reads every form of a Stable Diffusion 1.5 LoRA, writes every form of it. Standard library only.

Conversion:
    `convert_file(source, target, to="kohya")` converts; `convert_bytes(source)` gives the same file in memory;
    `read(source)` gives a `Lora` (form, base, modules, rank, alpha, metadata); `check(source)` audits and never raises
    for a bad file; `set_metadata(path, mapping)` rewrites a header in place;
    `what_is_lacking(lora, form)` is None if `lora` can be written in that form, else the `FormLacks` that writing raises.

    Notices to the user are `Note`s with `text` and `advice`, in `Lora.notes`, `Report.notes` and `Audit.notes`;
    `str(note)` is one line for a command line; a host shows only `text`.

Errors (`convert.errors`): everything raised is a `JobError` or a `UsageError`; `str(error)` is one line for a command
line. Those about a file are `FileError`s with `path`, `problem` (worded to follow the file's name) and `advice` (for a
command line; a host replaces it with its own). Types and fields that a host can decide by:
    `NotSafetensors.is_pickle`                 not a safetensors file at all
    `Damaged`                                  cut off, or contradicts itself
    `WrongBase.base`                           a LoRA of "SDXL", "SD2", …
    `NotALora.kind, .hosts_read, .comfyui_reads` "a LoHa (LyCORIS)", …; the web UI and ComfyUI load it themselves
    `UnknownKeys.keys`                         unknown tensor names
    `DoesNotFit.module`                        tensors that do not fit together or the layer
    `FormLacks.form, .part, .modules, .reason` the requested form cannot represent it
    `NotFinite.tensors`                        NaN or infinite numbers
    `WrongHash.key`                            sound except for a stored hash; the hosts load it
    `BadCard`                                  a card that cannot be read
`check(source).error` is such an error, or None.

Cards (`convert.files.card`), `<name>.json` beside a LoRA: `read_card(lora)` gives the fields, {} without a card, with or
without a byte order mark, and raises `BadCard`; `write_card(lora, fields, defaults=…)` merges, but never replaces a card
that it cannot read; `set_aside(lora)` renames such a card and returns the new name; `advice(fields, metadata)` gives the
recommended scale and the trigger words.

Files (`convert.files`): `atomic_path`, `write_bytes`, `write_text`, `write_json`; `convert.files.json_file.read_object`
reads untrusted JSON.
"""

from .api import Report, convert_bytes, convert_file, set_metadata
from .check import check
from .errors import (
    BadCard,
    Damaged,
    DoesNotFit,
    FileError,
    FormLacks,
    JobError,
    NotALora,
    NotFinite,
    NotSafetensors,
    UnknownKeys,
    UsageError,
    WrongBase,
    WrongHash,
)
from .lora import Lora, LoraModule
from .read import read
from .words import Note
from .write import what_is_lacking

__all__ = [
    "BadCard", "Damaged", "DoesNotFit", "FileError", "FormLacks", "JobError", "Lora", "LoraModule", "NotALora",
    "NotFinite", "NotSafetensors", "Note", "Report", "UnknownKeys", "UsageError", "WrongBase", "WrongHash", "check",
    "convert_bytes", "convert_file", "read", "set_metadata", "what_is_lacking",
]  # fmt: skip
