"""`python -m convert.bake LORA --into CHECKPOINT --scale 0.8 --out OUT`: merge a LoRA, or another network, into a checkpoint.

W' = W + scale · (alpha / rank) · B A (paper, section 4.1), computed in float32, one layer at a time; every other tensor is
copied byte for byte. `--into` is a whole checkpoint with LDM names, a diffusers folder, or the file of one network in it.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .api import refuse_target
from .commands import ADAPTER, CHECKPOINT, Parser, guarded, path_of, print_report
from .errors import DoesNotFit, FileError, UsageError
from .files import atomic_folder, atomic_path
from .matrix.arrays import WEIGHTS, decode, encode, without_overflow_warnings
from .matrix.change import changed_weight
from .matrix.checkpoint import Checkpoint, network_files, open_checkpoint
from .matrix.network import Network, NetworkModule, read_network
from .sd15 import TEXT_ENCODER, UNET, patchable
from .stream import CHECKPOINT_HASHES, Output, write_container
from .tensors import Container
from .words import Note, counted

EXAMPLES = """examples:
  python -m convert.bake lora.safetensors --into model.safetensors --scale 0.8 --out merged.safetensors
  python -m convert.bake lora.safetensors --into diffusers_folder --out merged_folder
"""

HEAVY = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx")
"""Endings of weight files. In a folder, copies of a merged network in other formats would still have the old weights."""

Patches = dict[str, Callable[[bytes], bytes]]
"""Tensor name -> a function from its old bytes to its new ones."""


@dataclass(frozen=True)
class BakeReport:
    """The result of a merge."""

    source: Path
    into: Path
    target: Path
    scale: float
    unet: int
    """modules of the UNet that were merged"""
    text_encoder: int
    tensors: int
    """tensors of the checkpoint, patched or copied"""
    size: int
    """bytes of weights written"""
    notes: tuple[Note, ...] = ()
    left_out: tuple[str, ...] = ()
    """files of a folder that were not copied, because they contain the old weights in another format"""

    def rows(self) -> list[tuple[str, str]]:
        """Rows for a table, with the labels of `check.table`."""
        counts = {UNET: self.unet, TEXT_ENCODER: self.text_encoder}
        return [
            ("file", str(self.target)),
            ("source", f"{self.source} at scale {self.scale:g}"),
            ("checkpoint", f"{self.into}, {counted(self.tensors, 'tensor')}"),
            *((scope.replace("_", " "), f"{count} of {patchable(scope)} modules") for scope, count in counts.items()),
            ("size", f"{self.size:,} bytes"),
            *(("note", str(note)) for note in self.notes),
            *(("note", f"{name} was not copied: it contains the old weights in another format") for name in self.left_out),
        ]

    def to_json(self) -> dict[str, object]:
        """Plain data for `json.dumps`."""
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self).items()}
        return {**plain, "notes": [str(note) for note in self.notes], "left_out": list(self.left_out)}


def bake(
    lora: Path | str, into: Path | str, target: Path | str, *, scale: float = 1.0, alpha: float | None = None,
    only: str | None = None, overwrite: bool = False,
) -> BakeReport:  # fmt: skip
    """Write the checkpoint `into` with the network `lora` merged at `scale` (0 is the base, 1 the full LoRA) to `target`.

    For a DoRA, `scale` interpolates linearly between the base's weight and the full DoRA's. Each weight keeps its dtype.

    Args:
        into: a file, or a diffusers folder; `target` is then the same.
        only: "unet" or "text_encoder": leave out the LoRA's part for the other.

    Raises:
        JobError: the checkpoint lacks a module that the LoRA patches, or a file cannot be read or written.
        UsageError: an argument is invalid.
    """
    lora, into, target = Path(lora), Path(into), Path(target)
    if not math.isfinite(scale):
        raise UsageError(f"--scale {scale}: must be a number")
    network = read_network(lora, alpha=alpha)
    chosen = {name: module for name, module in network.modules.items() if only in (None, module.module.scope)}
    if not chosen:
        raise FileError(lora, f"has no part for the {only}")
    if into.is_dir():
        return _bake_folder(network, chosen, into, target, scale)
    for source in (lora, into):
        refuse_target(source, target, overwrite)
    checkpoint = open_checkpoint(into)
    patches = _patches(chosen, checkpoint, scale)
    size = _write(checkpoint.containers[0], patches[0], target, _origin(into, scale, lora))
    return BakeReport(lora, into, target, scale, *_counts(chosen), len(checkpoint.containers[0].tensors), size, network.notes)


def _bake_folder(network: Network, chosen: Mapping[str, NetworkModule], into: Path, target: Path, scale: float) -> BakeReport:
    if target.exists():
        raise FileError(target, "already exists", "a folder is never replaced: name another output")
    checkpoint = open_checkpoint(into)
    patches = _patches(chosen, checkpoint, scale)
    written = {container.path: index for index, container in enumerate(checkpoint.containers)}
    networks = [into, *(into / scope for scope in (UNET, TEXT_ENCODER) if network_files(into)[scope] is not None)]
    size, left_out = 0, []
    with atomic_folder(target) as folder:
        for file in sorted(path for path in into.rglob("*") if path.is_file()):
            place = folder / file.relative_to(into)
            place.parent.mkdir(parents=True, exist_ok=True)
            if file in written:
                index = written[file]
                size += _write(checkpoint.containers[index], patches[index], place, _origin(into, scale, network.path))
            elif file.suffix in HEAVY and file.parent in networks:
                left_out.append(file.relative_to(into).as_posix())
            else:
                with atomic_path(place) as temporary:
                    shutil.copyfile(file, temporary)
    tensors = sum(len(container.tensors) for container in checkpoint.containers)
    return BakeReport(network.path, into, target, scale, *_counts(chosen), tensors, size, network.notes, tuple(left_out))


def _counts(chosen: Mapping[str, NetworkModule]) -> tuple[int, int]:
    """The number of modules of the UNet and of the text encoder, without norms."""
    scopes = [module.module.scope for module in chosen.values() if not module.module.is_norm]
    return scopes.count(UNET), scopes.count(TEXT_ENCODER)


def _origin(into: Path, scale: float, lora: Path) -> str:
    return f"{into.name} + {scale:g} * {lora.name}"


def _write(container: Container, patches: Patches, target: Path, origin: str) -> int:
    outputs = [
        Output(name, tensor, tensor.shape, tensor.dtype, compute=patches.get(name))
        for name, tensor in container.tensors.items()
    ]
    metadata = {key: value for key, value in container.metadata.items() if key not in CHECKPOINT_HASHES}
    metadata["modelspec.merged_from"] = origin
    with atomic_path(target) as temporary, open(temporary, "wb") as file:
        write_container(file, outputs, metadata, hashes=CHECKPOINT_HASHES)
    return target.stat().st_size


def _patches(chosen: Mapping[str, NetworkModule], checkpoint: Checkpoint, scale: float) -> list[Patches]:
    """The patches of each of the checkpoint's files."""
    missing = [name for name in chosen if checkpoint.tensor(name) is None]
    if missing:
        problem = f"lacks {len(missing)} of the {len(chosen)} modules that the LoRA patches: {missing[0]}"
        advice = "give a checkpoint of Stable Diffusion 1.5 that has them, or --only unet or text_encoder"
        raise DoesNotFit(checkpoint.path, missing[0], problem, advice)
    patches: list[Patches] = [{} for _ in checkpoint.containers]
    for name, module in chosen.items():
        index, stem = checkpoint.places[name]
        if not module.parts.keys() <= {"diff_b", "b_norm"}:
            patches[index][f"{stem}.weight"] = _patch(checkpoint, module, "weight", scale)
        if module.parts.keys() & {"diff_b", "b_norm"}:
            patches[index][f"{stem}.bias"] = _patch(checkpoint, module, "bias", scale)
    return patches


def _patch(checkpoint: Checkpoint, module: NetworkModule, part: str, scale: float) -> Callable[[bytes], bytes]:
    name, tensor = module.module.name, checkpoint.tensor(module.module.name, part)
    if tensor is None:
        raise DoesNotFit(checkpoint.path, name, f"has no {part} of {name}, which the LoRA changes")
    shape = module.shape if part == "weight" else module.shape[:1]
    if [n for n in tensor.shape if n != 1] != [n for n in shape if n != 1]:  # a 1x1 convolution may be stored as a linear layer
        problem = f"its {part} of {name} has shape {list(tensor.shape)}, but the LoRA patches {list(shape)}"
        raise DoesNotFit(checkpoint.path, name, problem)
    if tensor.dtype not in WEIGHTS:
        problem = f"its {part} of {name} is {tensor.dtype}; a LoRA can only be merged into F32, F16 or BF16"
        raise DoesNotFit(checkpoint.path, name, problem)

    @without_overflow_warnings
    def compute(data: bytes) -> bytes:
        weight = decode(data, tensor.dtype, shape)
        if part == "weight":
            weight = changed_weight(weight, module, scale)
        else:
            for difference in {"diff_b", "b_norm"} & module.arrays.keys():
                weight = weight + scale * module.arrays[difference]
        return encode(weight, tensor.dtype, f"{checkpoint.path}: {name} merged at --scale {scale:g}")

    return compute


def parser() -> Parser:
    """The options of `python -m convert.bake`."""
    p = Parser("python -m convert.bake", "Merge a LoRA, or another network, into a checkpoint.", EXAMPLES)
    p.add_argument("lora", type=path_of, metavar="LORA", help=f"{ADAPTER}, of any network")
    into = f"the checkpoint to merge into: {CHECKPOINT}"
    p.add_argument("--into", type=path_of, required=True, metavar="CHECKPOINT", help=into)
    p.add_argument("--out", type=path_of, required=True, metavar="OUT", help="what to write; for a folder a folder")
    p.add_argument("--scale", type=float, default=1.0, help="0 is the base, 1 (default) the full LoRA")
    p.add_only()
    p.add_alpha()
    p.add_overwrite()
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 a job failed, 2 bad usage."""

    def run() -> int:
        options = parser().parse_args(argv)
        report = bake(
            options.lora, options.into, options.out, scale=options.scale, alpha=options.alpha, only=options.only,
            overwrite=options.overwrite,
        )  # fmt: skip
        print_report(report, as_json=options.json)
        return 0

    return guarded("convert.bake", run)


if __name__ == "__main__":
    sys.exit(main())
