"""`convert`'s errors in a node's words: for a person with a graph in front of them and no command line."""

from __future__ import annotations

from ..convert import (
    Damaged,
    FileError,
    FormLacks,
    JobError,
    NotALora,
    NotFinite,
    NotSafetensors,
    UnknownKeys,
    WrongBase,
)
from ..convert.errors import quote

ANOTHER = "download or copy this file again, or pick another"


def problem_and_advice(error: FileError) -> tuple[str, str]:
    """The problem, worded to follow the file's name, and the remedy in ComfyUI."""
    match error:
        case NotSafetensors(is_pickle=True):
            return (f"{error.problem}, which is never opened here, because it can run programs",
                    "look for the .safetensors version of it")  # fmt: skip
        case NotSafetensors() | Damaged():
            return error.problem, ANOTHER
        case WrongBase():
            return (error.problem, "this node applies LoRAs of Stable Diffusion 1.5: pick one, or use ComfyUI's own Load LoRA "
                                   "with a checkpoint of that base")  # fmt: skip
        case NotALora(comfyui_reads=True):
            return error.problem, "use ComfyUI's own Load LoRA, which reads it"
        case UnknownKeys():
            return (f"has {len(error.keys)} tensors that do not belong to a LoRA of Stable Diffusion 1.5, the first is "
                    f"{quote(error.keys[0])}", "Scribble LoRA Info lists all of them; pick another file")  # fmt: skip
        case FormLacks():
            return f"cannot be applied in ComfyUI: {error.reason}", error.advice or ANOTHER
        case NotFinite():
            return (f"has NaN or infinite values in {len(error.tensors)} tensors, so every picture would be black; the first "
                    f"is {error.tensors[0]}", "take another checkpoint of its training, or download it again")  # fmt: skip
        case _:
            return error.problem, error.advice or ANOTHER


def sentence(error: JobError, name: str) -> str:
    """One line for the error dialog, which begins with `name`, the file's name in models/loras."""
    if not isinstance(error, FileError):
        return f"{name}: {error}"
    problem, advice = problem_and_advice(error)
    beside = "" if error.path.name == name.replace("\\", "/").rpartition("/")[2] else f"{error.path.name}: "
    return f"{name}: {beside}{problem}; {advice}"
