"""Metadata keys that several modules read or write. Kohya's begin with `ss_`, ModelSpec's with `modelspec.`."""

from __future__ import annotations

BASE = "ss_base_model_version"
OUTPUT_NAME = "ss_output_name"
NETWORK_MODULE, NETWORK_ARGS = "ss_network_module", "ss_network_args"
NETWORK_DIM, NETWORK_ALPHA = "ss_network_dim", "ss_network_alpha"
STEPS = "ss_steps"
MODEL_HASH, LEGACY_HASH, FILE_HASH = "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"
ARCHITECTURE = "modelspec.architecture"
TITLE = "modelspec.title"
RESOLUTION = "modelspec.resolution"
TRIGGER = "modelspec.trigger_phrase"
"""Trigger words, which a prompt begins with."""

# this project's own
RECIPE = "scribble_recipe"
"""JSON: the fields of the training's recipe."""
SCALE, SCALE_INTERVAL = "scribble_scale", "scribble_scale_interval"
"""The recommended scale, and as JSON the range of equally good scales."""
COMPUTED_FROM = "scribble_computed_from"
"""The files that a LoRA was computed from."""
