"""Other networks and other bases are recognised by content, named and refused."""

import pytest
import torch
from safetensors.torch import save_file

import convert
from convert.sd15 import modules

TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TO_K2 = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"

FOREIGN = {
    f"{TO_Q}.hada_w1_a": "LoHa",
    f"{TO_Q}.lokr_w1": "LoKr",
    f"{TO_Q}.oft_blocks": "OFT",
    f"{TO_Q}.a1.weight": "GLoRA",
    "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": "SDXL",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight": "SDXL",
    "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_k.lora_down.weight": "SDXL",
    "unet.down_blocks.2.attentions.0.transformer_blocks.9.attn1.to_k.lora.down.weight": "SDXL",
    "lora_te_text_model_encoder_layers_22_mlp_fc1.lora_down.weight": "SD2",
    "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": "Flux",
    "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": "Flux",
    "lora_unet_joint_blocks_0_x_block_attn_proj.lora_down.weight": "SD3",
    "model.diffusion_model.input_blocks.1.1.proj_in.weight": "checkpoint",
    "emb_params": "textual inversion",
}


@pytest.mark.parametrize("key", FOREIGN)
def test_foreign_networks_are_recognised_by_their_keys(key, maker, tmp_path):
    sound = maker.tensors("kohya", maker.attention("unet")[:2])
    save_file({**sound, key: torch.zeros(4, 4)}, tmp_path / "in.safetensors")
    with pytest.raises(convert.JobError, match=f"is a.* {FOREIGN[key]}|is an.* {FOREIGN[key]}|is a.*{FOREIGN[key]}"):
        convert.read(tmp_path / "in.safetensors")


@pytest.mark.parametrize(("width", "base"), [(1024, "SD2"), (2048, "SDXL")])
def test_foreign_bases_are_recognised_by_the_width_of_the_prompt_embedding(width, base, maker, tmp_path):
    down, up = torch.zeros(4, width), torch.zeros(320, 4)
    save_file({f"{TO_K2}.lora_down.weight": down, f"{TO_K2}.lora_up.weight": up}, tmp_path / "in.safetensors")
    with pytest.raises(convert.JobError, match=f"LoRA of {base};"):
        convert.read(tmp_path / "in.safetensors")


@pytest.mark.parametrize(
    ("metadata", "base"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"ss_base_model_version": "sd_v2_v"}, "SD2"),
        ({"ss_v2": "True"}, "SD2"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "Flux"),
        ({"modelspec.architecture": "stable-diffusion-3-medium/lora"}, "SD3"),
    ],
)
def test_foreign_bases_are_recognised_by_metadata_if_the_shapes_are_equal(metadata, base, maker, tmp_path):
    source = maker.write(tmp_path / "in.safetensors", "kohya", maker.attention("unet")[:2], metadata=metadata)
    with pytest.raises(convert.JobError, match=f"the base {base};"):
        convert.read(source)


@pytest.mark.parametrize("value", ["sd_v1", "sd_1.5", "SD 1.5", "sd15", "None", "sd_v1_v"])
def test_every_name_of_stable_diffusion_1(value, maker, tmp_path):
    source = maker.write(
        tmp_path / "in.safetensors", "kohya", maker.attention("unet")[:2], metadata={"ss_base_model_version": value}
    )
    assert convert.read(source).base == "sd_v1"


def test_unknown_keys_are_all_listed(maker, tmp_path):
    from convert.check import check, table

    strange = {f"lora_unet_strange_{n}.lora_down.weight": torch.zeros(1) for n in range(9)}
    save_file({**maker.tensors("kohya", maker.attention("unet")[:2]), **strange}, tmp_path / "in.safetensors")
    with pytest.raises(convert.JobError, match="9 tensors are not part .* and 4 more"):
        convert.read(tmp_path / "in.safetensors")
    audit = check(tmp_path / "in.safetensors")
    assert sorted(audit.unknown_keys) == sorted(strange)
    assert all(key in table(audit) for key in strange)


def test_one_module_under_two_names_is_refused(maker, tmp_path):
    layer = [modules()["text_model.encoder.layers.0.mlp.fc1"]]
    twice = {**maker.tensors("kohya", layer), **maker.tensors("kohya te1", layer)}
    save_file(twice, tmp_path / "in.safetensors")
    with pytest.raises(convert.JobError, match="second name for a tensor"):
        convert.read(tmp_path / "in.safetensors")


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(convert.JobError, match="no such file"):
        convert.read(tmp_path / "none.safetensors")
    with pytest.raises(convert.JobError, match="adapter_config.json"):
        convert.read(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 1}')
    with pytest.raises(convert.JobError, match=r"adapter_model.safetensors"):
        convert.read(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"PK\x03\x04" + bytes(99))
    with pytest.raises(convert.JobError, match="python -m convert"):
        convert.read(tmp_path)


def test_a_folder_with_one_file_is_that_file(maker, tmp_path):
    source = maker.write(tmp_path / "pytorch_lora_weights.safetensors", "diffusers", maker.attention("unet")[:2])
    assert convert.read(tmp_path).modules == convert.read(source).modules
    maker.write(tmp_path / "another.safetensors", "diffusers", maker.attention("unet")[:2])
    with pytest.raises(convert.JobError, match="2 .safetensors files"):
        convert.read(tmp_path)
