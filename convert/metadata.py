"""The header's metadata: keys that are kept, completed, or always recomputed.

Keys and their meaning: kohya's sd-scripts (`ss_…`, strings, some of them JSON) and Stability's ModelSpec 1.0.1
(`modelspec.…`). Forge recognises a file as Stable Diffusion 1 only by the exact `modelspec.architecture`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from . import keys
from .errors import UsageError, quote
from .lora import Lora
from .peft_config import METADATA_KEY
from .stream import HASHES

ARCHITECTURE = "stable-diffusion-v1/lora"

JSON_KEYS = (
    "ss_bucket_info", "ss_datasets", "ss_dataset_dirs", keys.NETWORK_ARGS, "ss_reg_dataset_dirs", "ss_tag_frequency",
)  # fmt: skip
"""Values that kohya's tools and the web UI decode as JSON."""


def merged(own: Mapping[str, str], given: Mapping[str, object]) -> dict[str, str]:
    """`own` updated with `given`. None removes a key; numbers and booleans become strings, mappings and lists JSON.

    Raises `UsageError` if a key is not a string, or if a value that readers decode as JSON is not JSON.
    """
    result = dict(own)
    for key, value in given.items():
        if not isinstance(key, str) or not key:
            raise UsageError(f"metadata key {key!r}: must be text")
        if value is None:
            result.pop(key, None)
            continue
        result[key] = _text(key, value)
        if key in JSON_KEYS:
            try:
                json.loads(result[key])
            except ValueError as error:
                raise UsageError(f"metadata {key}: must be JSON: {error}") from error
    return result


def _text(key: str, value: object) -> str:
    if isinstance(value, str):
        text = value
    elif isinstance(value, (bool, int, float)):
        text = str(value)
    elif isinstance(value, (Mapping, list, tuple)):
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    else:
        raise UsageError(f"metadata {quote(key)}: must be text, a number, or a mapping or list of them")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"metadata {quote(key)}: has characters that UTF-8 cannot encode") from error
    return text


def says_sd15(word: str) -> bool:
    """Whether a value of `keys.BASE` is a name of Stable Diffusion 1, or empty."""
    plain = "".join(letter for letter in word.lower().rpartition("/")[2] if letter.isalnum())
    return plain in ("", "none") or re.match(r"(sd|stablediffusion)v?1([^0-9]|[0-5]|$)", plain) is not None


def complete(lora: Lora, name: str, form: str) -> dict[str, str]:
    """The metadata to write: the file's own, completed, and with the values computed from its tensors.

    Args:
        name: the title for a file without one, usually the target's name.
        form: one of `names.FORMS`. Does not add diffusers' alpha metadata (see `write`).
    """
    kept = {key: value for key, value in lora.metadata.items() if key not in HASHES and key != METADATA_KEY}
    title = kept.get(keys.OUTPUT_NAME, name)
    computed = {
        keys.BASE: lora.base,
        "ss_v2": "False",
        "modelspec.sai_model_spec": "1.0.1",
        keys.ARCHITECTURE: ARCHITECTURE if lora.fits_sd15 else f"{lora.base.replace('_', '-')}/lora",
    }
    if lora.rank:
        computed[keys.NETWORK_DIM], computed[keys.NETWORK_ALPHA] = str(lora.rank), _number(lora.alpha)
    if form != "kohya":
        computed["format"] = "pt"  # transformers refuses a file without it
    defaults = {
        keys.OUTPUT_NAME: title,
        keys.NETWORK_MODULE: "networks.lora",
        keys.NETWORK_ARGS: "{}",
        "modelspec.implementation": "diffusers",
        keys.TITLE: title,
        keys.RESOLUTION: "512x512",
    }
    trigger = kept.get(keys.TRIGGER)
    if trigger:
        defaults["modelspec.usage_hint"] = f"Begin the prompt with: {trigger}"
    return {**defaults, **kept, **computed}


def _number(value: float) -> str:
    """`4` for 4.0, otherwise every digit."""
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)
