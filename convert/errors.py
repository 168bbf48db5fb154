"""Errors with fields. A command line prints `str(error)`, one line; a host builds its own message from the fields."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .words import counted


class JobError(Exception):
    """A valid request failed: a broken file, a full disk, a module that does not fit.

    The message is one line with the file, the problem and the remedy.
    """

    exit_code = 1


class UsageError(Exception):
    """The request is invalid: an unknown flag value, two flags that exclude each other.

    The message is one line with the flag or argument and the allowed values.
    """

    exit_code = 2


class FileError(JobError):
    """A file or folder cannot be used. `str()` is `<path>: <problem>; <advice>`."""

    def __init__(self, path: Path | str, problem: str, advice: str = ""):
        """
        Args:
            path: the file or folder.
            problem: worded to follow the file's name: "is cut off: …".
            advice: the remedy at a command line; "" if only another file would help.
        """
        self.path = Path(path)
        self.problem = problem
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" + (f"; {self.advice}" if self.advice else "")


class NotSafetensors(FileError):
    """It is not a safetensors file: a pickle, a web page, a Git LFS pointer, an empty file, something else."""

    def __init__(self, path: Path | str, problem: str, advice: str = "", is_pickle: bool = False):
        super().__init__(path, problem, advice)
        self.is_pickle = is_pickle
        """a PyTorch file (.bin, .pt, .ckpt)"""


class Damaged(FileError):
    """A file that is cut off, is inconsistent, or changed while being read."""


class WrongBase(FileError):
    """A LoRA of another model than Stable Diffusion 1.5."""

    def __init__(self, path: Path | str, base: str, problem: str):
        super().__init__(path, problem, "only Stable Diffusion 1.5 can be converted")
        self.base = base
        """"SDXL", "SD2", "SD3", "Flux or another transformer", …: worded to follow "a LoRA of" """


class NotALora(FileError):
    """A recognised file that is not a LoRA, LoCon or DoRA: a LoHa, an embedding, a checkpoint, …"""

    def __init__(self, path: Path | str, kind: str, advice: str, hosts_read: bool = False, comfyui_reads: bool = False):
        super().__init__(path, f"is {kind}", advice)
        self.kind = kind
        """with its article: "a LoHa (LyCORIS)" """
        self.hosts_read = hosts_read
        """whether the web UI loads this kind directly from its LoRA folder"""
        self.comfyui_reads = comfyui_reads
        """whether ComfyUI does"""


class UnknownKeys(FileError):
    """Some tensor names are unknown."""

    def __init__(self, path: Path | str, keys: Sequence[str], *, others: bool = False):
        """`others`: whether the file also has known names."""
        self.keys = list(keys)
        """all of them, unescaped: `quote` them before showing them"""
        shown = ", ".join(quote(key) for key in self.keys[:5])
        more = f" and {len(self.keys) - 5} more" if len(self.keys) > 5 else ""
        advice = ["--check lists them"] * bool(more) + ["--skip-unknown leaves them out"] * others
        are = f"{counted(len(self.keys), 'tensor')} {'is' if len(self.keys) == 1 else 'are'}"
        super().__init__(path, f"{are} not part of a LoRA of Stable Diffusion 1.5: {shown}{more}", ", ".join(advice))


class DoesNotFit(FileError):
    """The tensors of a module do not fit together, or do not have the shape of Stable Diffusion 1.5's layer."""

    def __init__(self, path: Path | str, module: str, problem: str, advice: str = ""):
        super().__init__(path, problem, advice)
        self.module = module
        """the first such module, by its diffusers name"""


class FormLacks(FileError):
    """The requested form cannot represent something in the file."""

    def __init__(self, path: Path | str, form: str, part: str, modules: Sequence[str], reason: str, advice: str = ""):
        super().__init__(path, f"cannot be written as {form}: {reason}", advice)
        self.form = form
        self.part = part
        """its name in `convert.names`: "mid", "diff", "magnitude", …"""
        self.modules = list(modules)
        """the modules that have such a part, by their diffusers names"""
        self.reason = reason
        """the problem without "cannot be written as <form>: " """


class NotFinite(FileError):
    """Tensors contain NaN or infinite numbers."""

    def __init__(self, path: Path | str, tensors: Sequence[str]):
        self.tensors = list(tensors)
        """each as "<module> <part>" """
        have = f"{counted(len(self.tensors), 'tensor')} {'has' if len(self.tensors) == 1 else 'have'}"
        super().__init__(path, f"{have} NaN or infinite numbers: {self.tensors[0]}", "take another checkpoint of its training")


class WrongHash(FileError):
    """The stored hash does not match the tensors: damaged, or changed by a program that did not update the hash."""

    def __init__(self, path: Path | str, key: str):
        super().__init__(
            path, f"its {key} does not match its tensors: it was damaged, or changed by a program that did not update the hash",
            "if you trust it, convert it: that recomputes the hash",
        )  # fmt: skip
        self.key = key
        """the metadata key"""


class BadCard(FileError):
    """A card beside a LoRA that cannot be read. It contains the user's text, so it is renamed and never overwritten."""


def quote(name: str) -> str:
    """A name from a file, safe for one line of a terminal: control characters escaped, overlong names cut."""
    shown = ascii(name[:200])[1:-1] if not name.isprintable() else name
    return shown if len(shown) <= 100 else f"{shown[:97]}..."


def printable(text: str) -> str:
    """`text` on one line of a terminal, with control characters (from file names) escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def escape_what_a_console_lacks() -> None:
    """Make a console with cp1252 or ASCII show `\\u65e5` for a character it lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def exit_status(name: str, run: Callable[[], int], *, stopped: str = "stopped") -> int:
    """Call `run` and return its exit status. Expected errors, OSError and Ctrl-C become one line on stderr and a status."""
    escape_what_a_console_lacks()
    try:
        return run()
    except (JobError, UsageError) as error:
        print(f"{name}: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{name}: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return JobError.exit_code
    except KeyboardInterrupt:
        print(f"{name}: {stopped}", file=sys.stderr)
        return 130
