"""The sets of the UNet's layers that `--targets` names."""

from __future__ import annotations

_ATTENTION, _FEED_FORWARD = r".*\.attn[12]\.to_(q|k|v|out\.0)", r".*\.ff\.net\.(0\.proj|2)"
_TRANSFORMERS = rf"{_ATTENTION}|{_FEED_FORWARD}|.*\.proj_(in|out)"
_RESNETS = r".*\.(conv1|conv2|conv_shortcut|time_emb_proj)|.*\.(down|up)samplers\.0\.conv"
TARGETS: dict[str, str] = {
    "attention": _ATTENTION,
    "attention+ff": f"{_ATTENTION}|{_FEED_FORWARD}",
    "kohya": _TRANSFORMERS,
    "locon": f"{_TRANSFORMERS}|{_RESNETS}",
    "cross-attention": r".*\.attn2\.to_(q|k|v|out\.0)",
    "decoder-cross-attention": r"up_blocks\..*\.attn2\.to_(q|k|v|out\.0)",
}
"""By name: the regular expression that must match a module's full name."""
