"""Names what is not ours: networks other than LoRA, bases other than Stable Diffusion 1.5, and what is no adapter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_KEYS = (
    (r"\.hada_", "a LoHa (LyCORIS)"),
    (r"\.lokr_", "a LoKr (LyCORIS)"),
    (r"\.oft_|\.boft_|oft_blocks|oft_diag", "an OFT network"),
    (r"\.on_input$", "an IA3 network"),
    (r"\.(a1|a2|b1|b2|bm)\.weight$", "a GLoRA network"),
    (r"\bemb_params$|string_to_param", "a textual inversion embedding"),
    (r"lora_te3_|text_encoder_3|joint_blocks|joint_transformer|lora_transformer_|\bx_embedder", "a LoRA of SD3"),
    (r"double_blocks|single_blocks|single_transformer_blocks|^transformer\.", "a LoRA of Flux or another transformer"),
    (r"lora_te2_|text_encoder_2|label_emb|add_embedding|conditioner\.", "a LoRA of SDXL"),
    (r"(input_blocks|down_blocks|attentions)\S*transformer_blocks[._]([1-9]|0\d)", "a LoRA of SDXL"),
    (r"text_model[._]encoder[._]layers[._](1[2-9]|[2-9]\d)\b|layers_(1[2-9]|2\d)_", "a LoRA of SD2"),
    (r"lora_unet_blocks_|diffusion_model\.blocks\.|diffusion_model\.layers\.", "a LoRA of another transformer"),
    (r"^model\.diffusion_model\.[\w.]+\.(weight|bias)$|^first_stage_model\.", "a whole checkpoint, not a LoRA"),
    (r"^control_model\.|lora_controlnet", "a ControlNet"),
)

_BASES = (
    (r"^sdxl|stable-diffusion-xl", "SDXL"),
    (r"^sd_v2|stable-diffusion-v2", "SD2"),
    (r"^sd3|stable-diffusion-3", "SD3"),
    (r"^flux", "Flux"),
    (r"^(wan|hunyuan|lumina|chroma|qwen|auraflow|pixart|ltx|cosmos|anima|z-image|hidream)", "another architecture"),
)

CONTEXT_WIDTHS = {1024: "SD2", 2048: "SDXL"}
"""Width of the prompt embedding -> the base that has it."""


def kind_of_keys(keys: Iterable[str]) -> str | None:
    """What a file with these tensor names is, if it is a known thing that this program does not convert."""
    names = [key[:1000] for key in keys]  # an absurdly long name costs no time
    return next((what for pattern, what in _KEYS if any(re.search(pattern, name) for name in names)), None)


def base_of_metadata(metadata: Mapping[str, str]) -> str | None:
    """The base that the metadata claims, if it is a known one other than Stable Diffusion 1."""
    if metadata.get("ss_v2") == "True":
        return "SD2"
    for claim in (metadata.get("ss_base_model_version", ""), metadata.get("modelspec.architecture", "")):
        for pattern, base in _BASES:
            if re.search(pattern, claim[:100].lower()):
                return base
    return None
