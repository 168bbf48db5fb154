"""A base's prediction type: from a flag, the file's header, a .yaml beside it, a config or a known tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from convert.errors import UsageError
from trainer.base.models import Config
from trainer.recipe import Recipe

PREDICTIONS = {"v": "v_prediction", "v_prediction": "v_prediction", "v-prediction": "v_prediction", "vpred": "v_prediction",
               "eps": "epsilon", "epsilon": "epsilon"}  # fmt: skip
"""Common names of prediction types -> diffusers' name."""
_PARAMETERIZATION = re.compile(r"^\s*parameterization\s*:\s*[\"']?(\w+)", re.MULTILINE)
LONGEST_YAML = 2**20
WORDS = {"epsilon": "noise", "v_prediction": "v"}


def of_file(path: Path, metadata: Mapping[str, str], config: Config, marked: bool) -> tuple[Config, str]:
    """The scheduler's config for a single file, and the source of its prediction type.

    marked: the file has the tensor with which fine-tunes mark v-prediction; `config` already takes it into account.
    """
    said = PREDICTIONS.get(metadata.get("modelspec.prediction_type", "").lower())
    if said:
        return {**config, "prediction_type": said}, "its header's modelspec.prediction_type"
    yaml = path.with_suffix(".yaml")
    if yaml.is_file() and yaml.stat().st_size <= LONGEST_YAML:
        found = _PARAMETERIZATION.search(yaml.read_text(encoding="utf-8", errors="replace"))
        if found and found[1].lower() in PREDICTIONS:
            return {**config, "prediction_type": PREDICTIONS[found[1].lower()]}, yaml.name
    return dict(config), "its tensor v_pred" if marked else ""


def with_flags(recipe: Recipe, config: Config, origin: str, name: str) -> tuple[Config, str]:
    """The scheduler's config with the recipe's flags applied, and a description for the user.

    Raises:
        UsageError: it is a flow-matching scheduler.
    """
    if "FlowMatch" in str(config.get("_class_name", "")) or config.get("prediction_type") == "flow_prediction":
        raise UsageError(f"--base {name}: is a flow-matching model ({config.get('_class_name', '')}); "
                         "expected Stable Diffusion 1.5")
    settled = dict(config)
    if recipe.prediction != "base":
        settled["prediction_type"], origin = PREDICTIONS[recipe.prediction], "--prediction"
    if recipe.zero_snr:
        settled["rescale_betas_zero_snr"] = True
    predicts = settled.get("prediction_type", "epsilon")
    told = f"predicts {WORDS.get(predicts, predicts)}" + (f" ({origin})" if origin else "")
    return settled, told + (", zero terminal SNR" if settled.get("rescale_betas_zero_snr") else "")
