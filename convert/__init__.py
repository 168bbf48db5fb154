"""Reads every form of a Stable Diffusion 1.5 LoRA, writes every form of it. Standard library only.

Conversion:
    `convert_file(source, target, to="kohya")` converts; `convert_bytes(source)` gives the same file in memory;
    `read(source)` gives a `Lora` (form, base, modules, rank, alpha, metadata); `check(source)` audits and never raises
    for a bad file; `set_metadata(path, mapping)` rewrites a header in place;
    `what_is_lacking(lora, form)` is None if `lora` can be written in that form, else the `FormLacks` that writing raises.

    What a user should know of a file is a `Note` of `text` and `advice`, in `Lora.notes`, `Report.notes` and the audit's;
    `str(note)` is one line for a command line, and a host shows `text`.

Errors (`convert.errors`): everything raised is a `JobError` or a `UsageError`; `str(error)` is one line for a command
line. Those about a file are `FileError`s with `path`, `problem` (to be read after the file's name) and `advice` (for a
command line; a host puts its own in its place). By what a host decides:
    `NotSafetensors.is_pickle`                 not a safetensors file at all
    `Damaged`                                  cut off, or contradicts itself
    `WrongBase.base`                           a LoRA of "SDXL", "SD2", …
    `NotALora.kind, .hosts_read, .comfyui_reads` "a LoHa (LyCORIS)", …; the web UI and ComfyUI load it themselves
    `UnknownKeys.keys`                         names that mean nothing here
    `DoesNotFit.module`                        tensors that do not fit together or the layer
    `FormLacks.form, .part, .modules, .reason` the wanted form has no place for it
    `NotFinite.tensors`                        NaN or infinite numbers
    `WrongHash.key`                            sound but for a stored hash; the hosts load it
    `BadCard`                                  a card that cannot be read
`check(source).error` is such an error, or None.

Cards (`convert.files.card`), `<name>.json` beside a LoRA: `read_card(lora)` gives the fields, {} without a card, with or
without a byte order mark, and raises `BadCard`; `write_card(lora, fields, defaults=…)` merges, never over a card that it
cannot read; `set_aside(lora)` renames such a card and returns the new name; `advice(fields, metadata)` is the scale and
the trigger words to start with.

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
