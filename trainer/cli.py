"""The command line of `python -m trainer`, generated from the recipe's fields. Imports nothing heavy: --help is instant."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from convert import keys
from convert.errors import JobError, UsageError
from convert.files import json_file
from trainer.presets import DEMO, OWN_PICTURES, PAPER, PRESETS, preset_for, preset_line, settled
from trainer.recipe import Fields, Recipe, flag, home

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

EXAMPLES = """examples:
  python -m trainer --demo                                            the embedded miniature, minutes on a CPU
  python -m trainer --out scribble.safetensors                        the paper's recipe: SD1.5 and QuickDraw, on a GPU
  python -m trainer --out mystyle.safetensors --base v1-5-pruned-emaonly.safetensors --data my_pictures/
  accelerate launch --num_processes 2 -m trainer --out scribble.safetensors   two GPUs (torchrun for processes on CPUs)
"""

ATTENTION = ("auto", "flash", "cudnn", "efficient", "math")
"""The choices of trainer.kernels.attention_backend, without importing torch for --help."""

GROUPS = {
    "base": "data: the model and what it learns", "init": "LoRA: which layers learn, and its size",
    "epochs": "schedule: how long and how fast", "noise_schedule": "objective: how an error counts", "dtype": "output",
}
"""Headings of --help, by the recipe's first field under each."""
METAVARS: dict[type, str] = {int: "N", float: "X", str: "WORD"}
MAX_UPSCALE = 1.25
DEMO_OUT = Path("demo") / "scribble.safetensors"
CACHE = Path.home() / ".cache" / "scribble-lora"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of a run that do not change the result beyond rounding."""

    out: Path | None
    run: Path
    cache: Path
    device: str
    micro_batch: int
    gradient_checkpointing: str
    compile: str
    attention: str
    cuda_graphs: str
    checkpoint_every: int
    sample_every: int
    sample_prompts: Path | None
    save_every: int
    save_every_epochs: int
    save_to: Path | None
    track: str
    overwrite: bool
    dry_run: bool
    decode: bool
    max_upscale: float
    preview: bool
    contact_sheet: Path | None
    note: str
    """a line for the user about the recipe, or \"\""""


class Parser(argparse.ArgumentParser):
    """A parser that reports bad usage in one line, without the whole usage text."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help shows all)")


def parser() -> argparse.ArgumentParser:
    """All options with their defaults; the recipe's are generated from `Recipe`."""
    p = Parser(prog="python -m trainer", description="Teach Stable Diffusion 1.5 a style: train a LoRA and write it for "
               "AUTOMATIC1111's web UI and ComfyUI.", epilog=EXAMPLES, allow_abbrev=False,
               formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--out", type=Path, metavar="FILE", help="the LoRA to write, .safetensors; its card (.json) and "
                   "picture (.png) come beside it")
    p.add_argument("--preset", choices=tuple(PRESETS), metavar="NAME", help=f"a recipe, which other flags can change: "
                   f"{', '.join(PRESETS)} (default: style for own pictures, paper for drawings)")
    p.add_argument("--demo", action="store_true", help="--preset demo, the embedded default: a miniature Stable Diffusion and "
                   "doodles; no network, no GPU (default --out demo/scribble.safetensors, --run demo/run)")
    p.add_argument("--recipe", type=Path, metavar="FILE", help="repeat a run: a recipe.json or a LoRA made by this program; "
                   "other flags can change it")
    group: argparse._ActionsContainer = p
    for f in dataclasses.fields(Recipe):
        group = p.add_argument_group(GROUPS[f.name]) if f.name in GROUPS else group
        add_field(group, f)
    _job_options(p.add_argument_group("job (where and how)"))
    return p


def add_fields(group: argparse._ActionsContainer, settings: type[DataclassInstance]) -> None:
    """Add a flag for every field of a dataclass made with `recipe.option`; its value is None if it is not given."""
    for f in dataclasses.fields(settings):
        add_field(group, f)


def add_field(group: argparse._ActionsContainer, f: dataclasses.Field) -> None:
    """Add the flag of one field, unless it is hidden."""
    if f.metadata["hidden"]:
        return
    named: dict[object, str] = {"": "none", (): "none"}
    named |= {True: "yes", False: "no"} if isinstance(f.default, bool) else {}
    words = f.metadata["shown"] or named.get(f.default, "")
    default = f"(default: {words})" if words else f"(default {f.default!r})"
    kind, help = type(f.default), f"{f.metadata['help']} {default}"
    if kind is bool:
        group.add_argument(flag(f.name), action=argparse.BooleanOptionalAction, default=None, help=help)
    elif kind is tuple or f.metadata["rest"]:
        group.add_argument(flag(f.name), action="append", default=None, metavar=f.metadata["metavar"] or METAVARS[str],
                           help=help)
    else:
        choices = "{" + ",".join(f.metadata["choices"]) + "}" if f.metadata["choices"] else ""
        group.add_argument(flag(f.name), type=kind, default=None, help=help, metavar=choices or METAVARS[kind])


def place_options(group: argparse._ActionsContainer) -> None:
    """Add the options --device and --cache."""
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cuda, cuda:N, mps or cpu (default auto)")
    group.add_argument("--cache", type=Path, default=CACHE, metavar="DIR",
                       help="folder for downloads and encodings (default ~/.cache/scribble-lora)")


def _job_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--run", type=Path, metavar="DIR", help="folder for checkpoints, metrics and the diffusers file "
        "(default: runs/<stem of --out>)")
    place_options(group)
    add("--micro-batch", type=int, default=0, metavar="N", help="pictures computed at once; the result is the same up to "
        "rounding (default: as many as fit into memory, determined once per run)")
    add("--gradient-checkpointing", choices=("auto", "on", "off"), default="auto", help="recompute activations instead of "
        "storing them, for cards of 4 to 6 GB; the result is the same (default auto: if memory is too small for one picture)")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile: on a CUDA GPU, anywhere, nowhere "
        "(default auto)")
    add("--attention", choices=ATTENTION, default="auto", help="torch's attention kernel to try first (default auto: by the "
        "GPU; python -m trainer.benchmark compares them)")
    add("--cuda-graphs", choices=("off", "auto", "on"), default="off", help="run the UNet as CUDA graphs: never, if the "
        "host is the bottleneck, always; for small micro-batches (default off: not measured yet)")
    add("--checkpoint-every", type=int, default=500, metavar="N", help="optimizer steps between checkpoints and held-out "
        "losses (default 500)")
    add("--sample-every", type=int, default=0, metavar="N", help="optimizer steps between sample pictures (default 0: none)")
    add("--sample-prompts", type=Path, metavar="FILE", help="a file of prompts for them, one a line, with kohya's --n --w --h "
        "--d --s --l and --am (LoRA scale); a sheet in the run folder gets a row each time (default: the preview's prompt)")
    add("--save-every", type=int, default=0, metavar="N", help="optimizer steps between LoRA files for hosts, named after "
        "--out and the step (default 0: none)")
    add("--save-every-epochs", type=int, default=0, metavar="N", help="the same in passes over the pictures (default 0: none)")
    add("--save-to", type=Path, metavar="DIR", help="folder of those files (default: loras/ in the run folder)")
    add("--track", default="", metavar="NAME", help="also log to tensorboard or wandb (default: neither)")
    add("--contact-sheet", type=Path, metavar="PNG", help="write the data as figures 1 and 2 of the paper; without --out, "
        "only that")
    add("--preview", action=argparse.BooleanOptionalAction, default=True, help="draw the picture beside --out (default: yes)")
    add("--overwrite", action="store_true", help="replace an --out, card or picture that exists")
    add("--decode", action=argparse.BooleanOptionalAction, default=True, help="decode every picture before training, to "
        "find all damaged files at once (default: yes)")
    add("--max-upscale", type=float, default=MAX_UPSCALE, metavar="X", help=f"list pictures that are enlarged more than this "
        f"(default {MAX_UPSCALE})")
    add("--dry-run", action="store_true", help="print the data, recipe, steps, memory and time of the run, and stop")


def parse(argv: Sequence[str] | None) -> tuple[Recipe, Job]:
    """The recipe and the job in `argv`. Raises UsageError, with the flag, for invalid options."""
    options = vars(parser().parse_args(argv))
    given = given_fields(options)
    values, note = _values(options, given)
    for name, least in (("micro_batch", 0), ("checkpoint_every", 1), ("sample_every", 0), ("save_every", 0),
                        ("save_every_epochs", 0)):
        if options[name] < least:
            raise UsageError(f"{flag(name)} {options[name]}: expected {least} or more")
    if options["track"] not in ("", "tensorboard", "wandb"):
        raise UsageError(f"--track {options['track']}: expected tensorboard or wandb")
    if options["gradient_checkpointing"] == "on" and options["cuda_graphs"] != "off":
        raise UsageError("--gradient-checkpointing on and --cuda-graphs: a graph cannot record recomputed activations: "
                         "give only one of them")
    if options["sample_prompts"] and not options["sample_every"]:
        raise UsageError("--sample-prompts: give --sample-every too, the optimizer steps between pictures")
    if options["out"] is None and options["demo"] and not (options["dry_run"] or options["contact_sheet"]):
        options["out"] = DEMO_OUT  # not runs/scribble, which the next command may use
        options["run"] = options["run"] or DEMO_OUT.parent / "run"
    out = options["out"]
    if out is None and not (options["dry_run"] or options["contact_sheet"]):
        raise UsageError("--out is missing: name the LoRA to write, for example --out scribble.safetensors")
    job: Fields = {f.name: home(str(value)) if isinstance(value := options[f.name], Path) else value
                   for f in dataclasses.fields(Job) if f.name in options}
    out = job["out"]
    job |= {"run": job["run"] or Path("runs") / (out.stem if out else "scribble"), "note": note}
    return Recipe(**values), Job(**job)


def given_fields(options: Fields) -> Fields:
    """The recipe's fields that are given on the command line."""
    given = {f.name: options[f.name] for f in dataclasses.fields(Recipe) if options.get(f.name) is not None}
    if "base" in given:
        given["base"] = _bare(given["base"])
    if "data" in given:
        given["data"], *rest = map(_bare, given["data"])
        given["more_data"] = tuple(rest)
    return given


def _values(options: Fields, given: Fields) -> tuple[Fields, str]:
    """The recipe's fields, `given` over --recipe or a preset, and a line about the preset if it was chosen by default."""
    if options["demo"] and options["preset"] not in (None, DEMO):
        raise UsageError(f"--demo and --preset {options['preset']}: give one of them")
    if options["recipe"]:
        if options["preset"]:
            raise UsageError("--recipe and --preset: give one of them, and other flags that change it")
        return (dict(PRESETS[DEMO]) if options["demo"] else {}) | read_recipe(home(str(options["recipe"]))) | given, ""
    from trainer.base.facts import is_miniature  # here, so that --help does not import it

    named = DEMO if options["demo"] else options["preset"]
    preset = named or preset_for(given.get("data", "quickdraw"))
    miniature = preset in OWN_PICTURES and "base" in given and is_miniature(given["base"])
    values = settled(preset, given, miniature=miniature)
    if "init" in given:
        from trainer.lora.start import recipe_of

        values |= recipe_of(home(given["init"]), given)
    expected = preset == PAPER or (named and not miniature)
    return values, "" if expected else preset_line(preset, values, miniature=miniature)


def _bare(path: str) -> str:
    """A path without a trailing slash, such as shell completion adds; a root or drive keeps its slash."""
    bare = path.rstrip("/\\")
    return bare if bare and not bare.endswith(":") else path


def read_recipe(path: Path) -> Fields:
    """The recipe's fields from a run's recipe.json or a LoRA's metadata. JobError if there are none."""
    try:
        if path.suffix == ".safetensors":
            from convert import read

            stored = json_file.parse(read(path).metadata[keys.RECIPE])
        else:
            loaded = json_file.read_object(path)
            stored = loaded.get("recipe", loaded)
        if not isinstance(stored, dict):
            raise ValueError("no fields")
    except (OSError, ValueError, KeyError, JobError) as error:
        why = "it has no scribble_recipe" if isinstance(error, KeyError) else str(error).removeprefix(f"{path}: ")
        raise JobError(f"--recipe {path}: has no recipe ({why}): give the recipe.json of a run or a LoRA that this program "
                       "made") from error
    unknown = sorted(set(stored) - {f.name for f in dataclasses.fields(Recipe)})
    if unknown:
        raise JobError(f"--recipe {path}: unknown fields {', '.join(unknown)}: it was written by another version")
    for f in dataclasses.fields(Recipe):
        if isinstance(f.default, tuple) and isinstance(stored.get(f.name), list):
            stored[f.name] = tuple(stored[f.name])
            if not all(isinstance(word, str) for word in stored[f.name]):
                raise JobError(f"--recipe {path}: {f.name} has an entry that is not text")
        kinds = (int, float) if isinstance(f.default, float) else (type(f.default),)
        if f.name in stored and type(stored[f.name]) not in kinds:
            raise JobError(f"--recipe {path}: {f.name} is {stored[f.name]!r}: expected {type(f.default).__name__}")
    return stored


LARGEST_SCALE, MOST_SCALES = 2.0, 101


def parse_scales(text: str) -> list[float]:
    """`0:1:0.1` or `0,0.5,1` -> ascending scales, to four decimals. UsageError if it is neither, or too many."""
    try:
        if ":" in text:
            first, last, step = (float(word) for word in text.split(":"))
            if not 0 < step <= LARGEST_SCALE:
                raise ValueError(f"step {step:g}")
            count = int((last - first) / step + 1.01)
            if count > MOST_SCALES:
                raise UsageError(f"--scales {text}: expected at most {MOST_SCALES} scales")
            scales = [first + k * step for k in range(count)]
        else:
            scales = [float(word) for word in text.split(",")]
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--scales {text}: expected first:last:step, as 0:1:0.1, or scales with commas") from error
    scales = sorted({round(scale, 4) for scale in scales})
    if not scales or not all(0 <= scale <= LARGEST_SCALE for scale in scales):
        raise UsageError(f"--scales {text}: expected scales from 0 to {LARGEST_SCALE:g}")
    if len(scales) > MOST_SCALES:
        raise UsageError(f"--scales {text}: expected at most {MOST_SCALES} scales")
    return scales
