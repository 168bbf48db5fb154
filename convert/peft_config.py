"""peft's configuration of a LoRA, from `adapter_config.json` or a header: the scale of each module.

The effective scale of a module is alpha / rank (LoRA, arXiv 2106.09685, section 4.1), or alpha / sqrt(rank) with rslora
(arXiv 2312.03732). This module always returns an alpha for which the scale is alpha / rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeGuard

from .errors import FileError, quote
from .files.json_file import parse, read_object
from .sd15 import Module, modules

METADATA_KEY = "lora_adapter_metadata"
"""Metadata key in which diffusers >= 0.34 stores the peft configuration: JSON, each key prefixed by the scope."""

MOST_PATTERNS, MOST_WILDCARDS = 2000, 64
"""More than there are modules."""

SAVE_AS_PLAIN = "save it again with peft: save_pretrained(path, path_initial_model_for_weight_conversion=…) writes a plain LoRA"

NEUTRAL_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that do not change the base's weights, so that base + LoRA is the trained model."""

FREE = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora",
    "use_rslora", "velora_config",
})  # fmt: skip
"""Settings that are read here, or that do not affect a trained LoRA."""

ADVICE = {
    "init_lora_weights": SAVE_AS_PLAIN,
    "bias": "train with bias='none'; existing biases can only be merged with peft",
    "lora_bias": "merge it with peft: model.merge_and_unload()",
    "modules_to_save": "merge it with peft: model.merge_and_unload()",
}
"""Settings that change the meaning of the factors -> the remedy in peft."""


@dataclass(frozen=True)
class Patterns:
    """peft's `rank_pattern` or `alpha_pattern`: a number for each module name or regular expression; the first match wins."""

    plain: Mapping[str, tuple[int, float]]
    """full name or its last dotted parts -> index in the mapping, number"""
    compiled: tuple[tuple[int, re.Pattern[str], float], ...]

    def look_up(self, name: str) -> float | None:
        """The number of the first entry that matches the full name or its last dotted parts, as in peft."""
        found = [self.plain[tail] for tail in _tails(name) if tail in self.plain]
        if self.compiled:
            found += [(place, number) for place, pattern, number in self.compiled if pattern.match(name)]
        return min(found)[1] if found else None


@dataclass(frozen=True)
class Config:
    """The part of a peft `LoraConfig` that determines the scale."""

    path: Path
    """for messages"""
    origin: str
    """for reports: `adapter_config.json` or `lora_adapter_metadata`"""
    rank: int | None
    alpha: float
    rank_pattern: Patterns
    alpha_pattern: Patterns
    rslora: bool

    def alpha_of(self, module: Module, rank: int) -> float:
        """The alpha for which alpha / rank equals peft's scale."""
        stated = self.rank_pattern.look_up(module.name)
        stated = self.rank if stated is None else stated
        if stated is not None and stated != rank:
            problem = f"its configuration gives {module.name} rank {stated:g}, but its factors have rank {rank}"
            raise FileError(self.path, problem, "the file and its configuration are from different trainings")
        alpha = self.alpha_pattern.look_up(module.name)
        alpha = self.alpha if alpha is None else alpha
        return alpha * math.sqrt(rank) if self.rslora else alpha


def read_config(path: Path) -> Config:
    """Read `adapter_config.json`. Raises `FileError`."""
    try:
        return parse_config(read_object(path), path)
    except FileNotFoundError:
        raise FileError(path, "no such file") from None


def configs_of_metadata(metadata: Mapping[str, str], path: Path) -> dict[str, Config]:
    """The configurations that diffusers wrote into a header, by scope; "" is the scope of an unprefixed one."""
    if METADATA_KEY not in metadata:
        return {}
    try:
        flat = parse(metadata[METADATA_KEY])
    except ValueError as error:
        raise FileError(path, f"its {METADATA_KEY} is not valid JSON: {quote(str(error))}") from error
    if not isinstance(flat, dict):
        raise FileError(path, f"its {METADATA_KEY} is not a JSON object")
    scopes: dict[str, dict[str, object]] = {}
    for key, value in flat.items():
        scope, dot, name = key.partition(".")
        scopes.setdefault(scope if dot else "", {})[name if dot else key] = value
    return {scope: parse_config(config, path, METADATA_KEY) for scope, config in scopes.items()}


def parse_config(config: Mapping[str, object], path: Path, origin: str = "adapter_config.json") -> Config:
    """Check a `LoraConfig` from a file. Raises `FileError` for a setting that is invalid or changes the factors' meaning."""
    prefix = "" if origin == path.name else f"{origin}: "

    def wrong(problem: str, advice: str = "") -> FileError:
        return FileError(path, prefix + problem, advice)

    kind = config.get("peft_type") or "LORA"
    if kind != "LORA":
        raise wrong(f"peft_type is {quote(str(kind))}; only LORA can be converted")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if rank is not None and not (_is_number(rank) and rank >= 1 and rank == int(rank)):
        raise wrong("r must be a whole number from 1")
    if not _is_number(alpha):
        raise wrong("lora_alpha must be a number")
    if config.get("fan_in_fan_out"):
        raise wrong("fan_in_fan_out transposes the weights, which no layer of Stable Diffusion needs")
    for name, value in config.items():
        if _changes_the_meaning(name, value):
            shown = quote(repr(value))
            advice = ADVICE.get(name, "if it does not affect the factors, remove it from the configuration")
            raise wrong(f"{quote(name)} is {shown}, so the factors alone are not the trained change", advice)
    patterns = {}
    for name in ("rank_pattern", "alpha_pattern"):
        try:
            patterns[name] = _patterns(config.get(name))
        except ValueError as error:
            raise wrong(f"{name} {error}") from error
    return Config(
        path, origin, None if rank is None else int(rank), float(alpha), **patterns, rslora=config.get("use_rslora") is True
    )


def _changes_the_meaning(name: str, value: object) -> bool:
    if name == "init_lora_weights":
        return not (isinstance(value, (bool, str)) or value is None) or value not in NEUTRAL_INITS
    return name not in FREE and bool(value) and (name, value) != ("bias", "none")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _patterns(value: object) -> Patterns:
    """Raises ValueError with the problem, worded to follow the setting's name."""
    value = {} if value is None else value
    if not isinstance(value, dict) or len(value) > MOST_PATTERNS or not all(map(_is_number, value.values())):
        raise ValueError(f"must map at most {MOST_PATTERNS} module names to numbers")
    plain: dict[str, tuple[int, float]] = {}
    compiled = []
    for place, (name, number) in enumerate(value.items()):
        if name in _all_tails():
            plain[name] = place, number
        elif _is_tame(name):
            compiled.append((place, re.compile(rf"(.*\.)?({name})$"), number))
        else:
            raise ValueError(f"contains {quote(name)}, which is not a simple regular expression: name the modules instead")
    if sum(_repetitions(pattern.pattern) - 2 for _, pattern, _ in compiled) > MOST_WILDCARDS:
        raise ValueError("is too complex as a whole: name the modules instead")
    return Patterns(plain, tuple(compiled))


def _tails(name: str) -> list[str]:
    """`a.b.c` -> `a.b.c`, `b.c`, `c`."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


@cache
def _all_tails() -> frozenset[str]:
    return frozenset(tail for name in modules() for tail in _tails(name))


def _repetitions(pattern: str) -> int:
    return len(re.findall(r"[*+{?]", pattern))


def _is_tame(pattern: str) -> bool:
    """Whether a regular expression compiles and is fast: no repeated group, at most two repetitions."""
    if len(pattern) > 500 or re.search(r"\)[*+{?]", pattern) or _repetitions(pattern) > 2:
        return False
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError):
        return False
    return True
