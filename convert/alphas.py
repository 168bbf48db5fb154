"""How strong each module is: alpha, from wherever its form keeps it.

The effective scale of a module is alpha / rank (LoRA, arXiv 2106.09685, section 4.1), or alpha / sqrt(rank) with rslora
(arXiv 2312.03732). One convention is kept here: an alpha for which the scale is alpha / rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .container import quote
from .errors import JobError
from .sd15 import Module

METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers >= 0.34 keeps the peft configuration: JSON, each key prefixed by the scope."""


@dataclass(frozen=True)
class Config:
    """The part of a peft `LoraConfig` that decides scale, as read from JSON."""

    where: str
    """for messages: the file, and the key of its metadata"""
    origin: str
    """for reports: `adapter_config.json` or `lora_adapter_metadata`"""
    rank: int | None
    alpha: float
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    rslora: bool

    def alpha_of(self, module: Module, rank: int) -> float:
        """The alpha for which alpha / rank is the scale that peft would use."""
        stated = _lookup(self.rank_pattern, module.name, self.rank)
        if stated is not None and stated != rank:
            raise JobError(f"{self.where}: says rank {stated:g} for {module.name}, whose factors have rank {rank}")
        alpha = _lookup(self.alpha_pattern, module.name, self.alpha)
        assert alpha is not None
        return alpha * math.sqrt(rank) if self.rslora else alpha


def parse_config(config: Any, where: str, origin: str = "adapter_config.json") -> Config:
    """Check a `LoraConfig` that came from a file."""
    if not isinstance(config, dict):
        raise JobError(f"{where}: is no JSON object")
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise JobError(f"{where}: peft_type is {quote(str(kind))}; only LORA can be converted")
    rank = config.get("r")
    if rank is not None and (not _is_number(rank) or rank < 1 or rank != int(rank)):
        raise JobError(f"{where}: r must be a whole number from 1")
    alpha: Any = config.get("lora_alpha")
    if not _is_number(alpha):
        raise JobError(f"{where}: lora_alpha must be a number")
    if config.get("fan_in_fan_out"):
        raise JobError(f"{where}: fan_in_fan_out swaps the factors, and no layer of Stable Diffusion needs it")
    patterns = [_pattern(config.get(key), f"{where}: {key}") for key in ("rank_pattern", "alpha_pattern")]
    return Config(where, origin, rank, float(alpha), patterns[0], patterns[1], config.get("use_rslora") is True)


def configs_of_metadata(metadata: Mapping[str, str], where: str) -> dict[str, Config]:
    """The configurations that diffusers wrote into a header, by scope; "" is the scope of an unprefixed one."""
    if METADATA_KEY not in metadata:
        return {}
    where = f"{where}: {METADATA_KEY}"
    flat = load_json(metadata[METADATA_KEY], where)
    if not isinstance(flat, dict):
        raise JobError(f"{where}: is no JSON object")
    scopes: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        scope, dot, name = key.partition(".")
        scopes.setdefault(scope if dot else "", {})[name if dot else key] = value
    return {scope: parse_config(config, where, METADATA_KEY) for scope, config in scopes.items()}


def load_json(text: str, where: str) -> Any:
    """Parse JSON from a file nobody vouches for."""
    try:
        return json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise JobError(f"{where}: is not valid JSON: {quote(str(error))}") from error


def _integer(digits: str) -> int:
    if len(digits) > 19:
        raise ValueError("an absurdly large number")
    return int(digits)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _pattern(value: Any, where: str) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(_is_number(number) for number in value.values()):
        raise JobError(f"{where} must map module names to numbers")
    for name in value:
        if not _is_tame(name):
            raise JobError(f"{where}: {quote(name)} is too tangled a regular expression; name the modules instead")
    return value


def _is_tame(pattern: str) -> bool:
    """A regular expression that compiles and cannot run away: no repetition of a group, few repetitions at all."""
    if len(pattern) > 500 or re.search(r"\)[*+{?]", pattern) or len(re.findall(r"[*+{]", pattern)) > 4:
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _lookup(patterns: Mapping[str, float], name: str, default: float | None) -> float | None:
    """The first pattern that fits, as peft looks them up: the whole name or its last dotted parts."""
    for shown in (name, name.removeprefix("text_model.")):
        if shown in patterns:
            return patterns[shown]
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default
