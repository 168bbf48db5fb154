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


MOST_PATTERNS, MOST_WILDCARDS = 2000, 64
"""More than modules that there are, and more than anyone writes by hand."""


@dataclass(frozen=True)
class Patterns:
    """peft's `rank_pattern` or `alpha_pattern`: a number for each module name or regular expression."""

    exact: Mapping[str, float]
    compiled: tuple[tuple[re.Pattern[str], float], ...]

    def look_up(self, name: str) -> float | None:
        """The first that fits the whole name or its last dotted parts, as peft looks them up."""
        for shown in (name, name.removeprefix("text_model.")):
            if shown in self.exact:
                return self.exact[shown]
        return next((value for pattern, value in self.compiled if pattern.match(name)), None)


@dataclass(frozen=True)
class Config:
    """The part of a peft `LoraConfig` that decides scale, as read from JSON."""

    where: str
    """for messages: the file, and the key of its metadata"""
    origin: str
    """for reports: `adapter_config.json` or `lora_adapter_metadata`"""
    rank: int | None
    alpha: float
    rank_pattern: Patterns
    alpha_pattern: Patterns
    rslora: bool

    def alpha_of(self, module: Module, rank: int) -> float:
        """The alpha for which alpha / rank is the scale that peft would use."""
        stated = self.rank_pattern.look_up(module.name)
        stated = self.rank if stated is None else stated
        if stated is not None and stated != rank:
            raise JobError(f"{self.where}: says rank {stated:g} for {module.name}, whose factors have rank {rank}")
        alpha = self.alpha_pattern.look_up(module.name)
        alpha = self.alpha if alpha is None else alpha
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


def _pattern(value: Any, where: str) -> Patterns:
    value = {} if value is None else value
    if not isinstance(value, dict) or len(value) > MOST_PATTERNS or not all(map(_is_number, value.values())):
        raise JobError(f"{where} must map at most {MOST_PATTERNS} module names to numbers")
    tangled = next((name for name in value if not _is_tame(name)), None)
    if tangled is not None or sum(map(_repetitions, value)) > MOST_WILDCARDS:
        shown = quote(tangled or "the whole of it")
        raise JobError(f"{where}: {shown} is too tangled a regular expression; name the modules instead")
    return Patterns(value, tuple((re.compile(rf"(.*\.)?({name})$"), number) for name, number in value.items()))


def _repetitions(pattern: str) -> int:
    return len(re.findall(r"[*+{?]", pattern))


def _is_tame(pattern: str) -> bool:
    """A regular expression that compiles and cannot run away: no repetition of a group, two repetitions at most."""
    if len(pattern) > 500 or re.search(r"\)[*+{?]", pattern) or _repetitions(pattern) > 2:
        return False
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError):
        return False
    return True
