"""The narrow networks in one file: matrices as small whole numbers with a scale for each output row, the rest in float16.

    unet.<name>          int8, or float16 for norms, biases and small matrices; text_encoder.<name>, vae.<name> likewise
    <name>.scale         float32 (out,), beside each int8 matrix
    text_encoder.tokens  int32 (known,), the tokens with their own row
    text_encoder.rows    float16 (known + 1, 64), their rows, and the row of all other tokens

The shipped file is gzipped, which leaves five bits of each whole number of the UNet. Names are diffusers'; the text encoder's
are without `text_model.`. Unpacking is elementwise in float32, so the weights are the same on every machine. These quantised
weights are the base; the original ones do not ship.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convert.errors import JobError
from convert.files import write_bytes
from convert.stream import write_container
from trainer.miniature.narrow import narrow_text_encoder, narrow_unet, narrow_vae
from trainer.miniature.shipped import NETWORKS
from trainer.miniature.tokens import token_table
from trainer.miniature.whole import from_whole, output, to_whole

WHOLE = {"unet": (22, 4096), "text_encoder": (127, 4096), "vae": (127, 20_000)}
"""Part -> the largest whole number, and how many elements a matrix must have; smaller ones stay float16.

The UNet's 22 costs 0.95 % of the loss, but 127 would make the package and every clone a half larger. In the autoencoder errors
show as wrong colours: with these settings 1 of 1,000 values changes by more than 0.9 of 255.
"""

EMBEDDING = "embeddings.token_embedding.weight"
PARTS = ("unet", "text_encoder", "vae")


@dataclass(frozen=True, kw_only=True)
class Narrow:
    """The three networks' state dicts (float32, diffusers' names), and the words they can draw."""

    unet: Mapping[str, Tensor]
    text_encoder: Mapping[str, Tensor]
    vae: Mapping[str, Tensor]
    words: tuple[str, ...] = ()

    def models(self) -> dict[str, Any]:
        """`unet`, `text_encoder` and `vae` as modules, for diffusers' pipelines."""
        models: dict[str, Any] = {"unet": narrow_unet(), "text_encoder": narrow_text_encoder(), "vae": narrow_vae()}
        prefix = "text_model." if hasattr(models["text_encoder"], "text_model") else ""
        models["unet"].load_state_dict(dict(self.unet))
        models["vae"].load_state_dict(dict(self.vae))
        models["text_encoder"].load_state_dict({prefix + name: tensor for name, tensor in self.text_encoder.items()})
        return {name: model.eval() for name, model in models.items()}


def pack(networks: Mapping[str, Mapping[str, Tensor]], rows: Tensor, known: Sequence[int]) -> dict[str, Tensor]:
    """Pack state dicts, by part, into the file's tensors; `rows` replace the text encoder's token embedding."""
    packed: dict[str, Tensor] = {}
    for part, state in networks.items():
        largest, enough = WHOLE[part]
        for name, tensor in state.items():
            if tensor.ndim < 2 or tensor.numel() < enough:
                packed[f"{part}.{name}"] = tensor.detach().half()
            else:
                packed[f"{part}.{name}"], packed[f"{part}.{name}.scale"] = to_whole(tensor, largest)
    packed["text_encoder.rows"] = rows.detach().half()
    packed["text_encoder.tokens"] = torch.tensor(list(known), dtype=torch.int32)
    return packed


def unpack(packed: Mapping[str, Tensor], words: Sequence[str] = ()) -> Narrow:
    """The inverse of `pack`, in float32. Raises KeyError for a missing tensor."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for name, tensor in packed.items():
        part, _, inner = name.partition(".")
        if inner in ("rows", "tokens") or name.endswith(".scale"):
            continue
        whole = tensor.dtype == torch.int8
        parts[part][inner] = from_whole(tensor, packed[f"{name}.scale"]) if whole else tensor.float()
    rows, known = packed["text_encoder.rows"].float(), packed["text_encoder.tokens"].tolist()
    parts["text_encoder"][EMBEDDING] = token_table(rows, known)
    return Narrow(**parts, words=tuple(words))


def read_narrow(path: Path = NETWORKS) -> Narrow:
    """The networks in `path`, gzipped or not. JobError if there is no such file, or it has other contents."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        packed = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return unpack(packed, json.loads(header.get("__metadata__", {}).get("words", "[]")))
    except (OSError, EOFError, ValueError, zlib.error, SafetensorError, KeyError) as error:
        raise JobError(f"{path}: the miniature's networks cannot be read ({error})") from error


def write_narrow(path: Path, packed: Mapping[str, Tensor], words: Sequence[str], metadata: Mapping[str, str]) -> None:
    """Write packed tensors, with the words and `metadata` (licences) in the header; equal input gives equal files.

    A file whose name ends in .gz is gzipped.
    """
    buffer = io.BytesIO()
    outputs = [output(name, tensor) for name, tensor in packed.items()]
    write_container(buffer, outputs, {**metadata, "words": json.dumps(list(words))}, hashes={})
    data = buffer.getvalue()
    write_bytes(path, _gzipped(data) if path.suffix == ".gz" else data)


def _gzipped(data: bytes) -> bytes:
    """gzip without its search for repeats: weights have none, and what it takes for some makes the file 8 % larger."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31, 9, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(data) + packer.flush()
