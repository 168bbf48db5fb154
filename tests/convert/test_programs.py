"""Files as other programs write them: OneTrainer, SimpleTuner, diffusers' own conversion, inpainting models, free text."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert
from convert.sd15 import modules

TO_Q = modules()["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"]
Q_PROJ = modules()["text_model.encoder.layers.0.self_attn.q_proj"]
CONV_IN = modules()["conv_in"]
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"

SPELLED = {
    "OneTrainer, original": ("input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight", TO_Q, "down"),
    "OneTrainer, internal": ("lora_unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_up.weight", TO_Q, "up"),
    "OneTrainer, internal text encoder": ("lora_te.text_model.encoder.layers.0.self_attn.q_proj.alpha", Q_PROJ, "alpha"),
    "OneTrainer, unet. and LDM": ("unet.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_down.weight", TO_Q, "down"),
    "SimpleTuner": ("lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight", TO_Q, "down"),
    "SimpleTuner's text encoder": ("lycoris_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight", Q_PROJ, "up"),
    "ComfyUI's text encoder": ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.lora_up.weight",
                               Q_PROJ, "up"),
    "ComfyUI's, without levels": ("clip_l.encoder.layers.0.self_attn.q_proj.lora_up.weight", Q_PROJ, "up"),
    "diffusers' kohya DoRA": ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1.to_q.lora_magnitude_vector",
                              TO_Q, "magnitude"),
    "peft in memory": ("base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.my_style.weight",
                       TO_Q, "down"),
}  # fmt: skip


@pytest.mark.parametrize("program", SPELLED)
def test_names_as_programs_write_them(program):
    from convert import names

    key, module, part = SPELLED[program]
    found = names.parse(key)
    assert found is not None
    assert (found.module, found.part) == (module, part)


@pytest.mark.parametrize("prefix", ["unet.", "base_model.model."])
def test_diffusers_own_kohya_dora_is_read_as_what_it_is(prefix, tmp_path):
    from diffusers.utils import convert_state_dict_to_kohya

    own = {
        f"base_model.model.{TO_Q.name}.lora_A.weight": torch.randn(4, 320),
        f"base_model.model.{TO_Q.name}.lora_B.weight": torch.randn(320, 4),
        f"base_model.model.{TO_Q.name}.lora_magnitude_vector": torch.rand(320),
    }
    theirs = {key.replace("base_model.model.", prefix): tensor for key, tensor in own.items()}
    save_file(convert_state_dict_to_kohya(theirs), tmp_path / "in.safetensors")
    convert.convert_file(tmp_path / "in.safetensors", tmp_path / "out", to="peft")
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert written.keys() == own.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in own.items())


WORDS = ["stable-diffusion-v1-5", "SD 1.5 LCM", "runwayml/stable-diffusion-v1-5", "sd1.4", "DreamShaper 8", "my own mix"]


@pytest.mark.parametrize("word", WORDS)
def test_free_text_does_not_determine_the_base(word, maker, tmp_path):
    metadata = {"ss_base_model_version": word, "modelspec.architecture": "stable-diffusion-v1/lora"}
    source = maker.write(tmp_path / "in.safetensors", "kohya", maker.attention("unet")[:2], metadata=metadata)
    assert convert.read(source).base == "sd_v1"
    convert.convert_file(source, tmp_path / "out.safetensors")
    written = convert.read(tmp_path / "out.safetensors").metadata
    assert (written["ss_base_model_version"], written["modelspec.architecture"]) == ("sd_v1", "stable-diffusion-v1/lora")


@pytest.mark.parametrize("word", ["", *WORDS[:4]])
def test_metadata_naming_sd15_does_not_excuse_other_shapes(word, tmp_path):
    pair = {f"{KOHYA}.lora_down.weight": torch.zeros(4, 100), f"{KOHYA}.lora_up.weight": torch.zeros(100, 4)}
    save_file(pair, tmp_path / "in.safetensors", {"ss_base_model_version": word})
    with pytest.raises(convert.DoesNotFit):
        convert.read(tmp_path / "in.safetensors")


@pytest.mark.parametrize("word", ["like_sd_v1", "my own mix"])
def test_other_shapes_belong_to_the_base_in_the_metadata(word, tmp_path):
    pair = {f"{KOHYA}.lora_down.weight": torch.zeros(4, 100), f"{KOHYA}.lora_up.weight": torch.zeros(100, 4)}
    save_file(pair, tmp_path / "in.safetensors", {"ss_base_model_version": word})
    assert convert.read(tmp_path / "in.safetensors").base == word


def test_our_miniature_is_known_by_its_metadata_and_has_the_architecture_of_its_shapes(maker, tmp_path):
    word = {"ss_base_model_version": "scribble_miniature"}
    source = maker.write(tmp_path / "in.safetensors", "kohya", maker.attention("unet")[:2], metadata=word)
    convert.convert_file(source, tmp_path / "out.safetensors")
    written = convert.read(tmp_path / "out.safetensors")
    assert written.base == "scribble_miniature"
    assert written.metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"


def _with_embedding(maker, path):
    vectors = torch.randn(2, 768)
    tensors = {**maker.tensors("kohya", maker.attention("unet")[:2], alpha=4), "bundle_emb.<my tok>.clip_l": vectors}
    save_file(tensors, path)
    return tensors, vectors


def test_bundled_embeddings_are_carried_to_kohya_and_split_on_request(maker, tmp_path):
    tensors, vectors = _with_embedding(maker, tmp_path / "in.safetensors")
    report = convert.convert_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == tensors.keys()
    assert torch.equal(written["bundle_emb.<my tok>.clip_l"], vectors)
    assert any("embedding" in str(note) for note in report.notes)
    with pytest.raises(convert.FormLacks, match="--split-embeddings"):
        convert.convert_file(tmp_path / "in.safetensors", tmp_path / "p", to="peft")
    report = convert.convert_file(tmp_path / "in.safetensors", tmp_path / "p", to="peft", split_embeddings=True)
    assert report.embeddings == (tmp_path / "p.mytok.safetensors",)
    apart = load_file(report.embeddings[0])
    assert list(apart) == ["emb_params"]
    assert torch.equal(apart["emb_params"], vectors)
    with pytest.raises(convert.FileError, match="already exists"):
        convert.convert_file(tmp_path / "in.safetensors", tmp_path / "p.safetensors", split_embeddings=True)


def test_unknown_tensors_are_left_out_on_request_and_listed(maker, tmp_path):
    sound = maker.tensors("kohya", maker.attention("unet")[:2], alpha=4)
    save_file({**sound, "strange.key": torch.zeros(2)}, tmp_path / "in.safetensors")
    report = convert.convert_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", skip_unknown=True)
    assert ("left out 1 unknown tensor: strange.key", "") in report.notes
    assert load_file(tmp_path / "out.safetensors").keys() == sound.keys()
    save_file({**sound, "lora_te2_x.lora_up.weight": torch.zeros(2)}, tmp_path / "in.safetensors")
    with pytest.raises(convert.WrongBase):  # half of an SDXL file is no LoRA of SD1.5
        convert.read(tmp_path / "in.safetensors", skip_unknown=True)
    save_file({"strange.key": torch.zeros(2)}, tmp_path / "in.safetensors")
    with pytest.raises(convert.UnknownKeys):
        convert.read(tmp_path / "in.safetensors", skip_unknown=True)


@pytest.mark.parametrize(("channels", "model"), [(9, "inpainting"), (8, "InstructPix2Pix")])
def test_a_conv_in_with_more_channels_is_kept_with_a_note(channels, model, maker, tmp_path):
    tensors = maker.tensors("kohya", [CONV_IN], alpha=4, shapes={"conv_in": (320, channels, 3, 3)})
    save_file(tensors, tmp_path / "in.safetensors")
    report = convert.convert_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert any(model in str(note) for note in report.notes)
    written = convert.read(tmp_path / "out.safetensors")
    assert (written.base, written.modules["conv_in"].shape) == ("sd_v1", (320, channels, 3, 3))
    assert written.metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.complex64, torch.bool])
def test_factors_that_are_not_floating_point_numbers_are_refused(dtype, maker, tmp_path):
    tensors = maker.tensors("kohya", [TO_Q])
    tensors[f"{KOHYA}.lora_up.weight"] = torch.zeros(320, 4, dtype=dtype)
    save_file(tensors, tmp_path / "in.safetensors")
    with pytest.raises(convert.DoesNotFit, match="floating-point"):
        convert.read(tmp_path / "in.safetensors")
    assert not convert.check(tmp_path / "in.safetensors").sound


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("alpha", [1e-20, 0.1, 1e25])
def test_any_alpha_that_is_written_is_read_back(alpha, form, maker, tmp_path):
    source = maker.write(tmp_path / "in.safetensors", "diffusers", maker.attention("unet")[:2])
    convert.convert_file(source, tmp_path / "out", to=form, alpha=alpha)
    assert convert.read(tmp_path / "out").alpha == pytest.approx(alpha, rel=1e-7)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_nan_is_reported_by_conversion_and_by_check(value, dtype, maker, tmp_path):
    tensors = maker.tensors("kohya", maker.attention("unet")[:3], dtype=dtype)
    wide = tensors[f"{KOHYA}.lora_up.weight"].float()
    wide[-1, -1] = value
    tensors[f"{KOHYA}.lora_up.weight"] = wide.to(dtype)
    save_file(tensors, tmp_path / "in.safetensors")
    report = convert.convert_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert any("1 tensor has NaN" in note.text and "lora_up" in note.text for note in report.notes)
    error = convert.check(tmp_path / "out.safetensors").error
    assert isinstance(error, convert.NotFinite)
    assert error.tensors == [f"{TO_Q.name} up"]


def test_a_stored_hash_of_other_tensors_is_a_finding(maker, tmp_path):
    source = maker.write(tmp_path / "in.safetensors", "kohya", maker.attention("unet")[:2], alpha=4)
    convert.convert_file(source, tmp_path / "out.safetensors")
    assert convert.check(tmp_path / "out.safetensors").sound
    data = bytearray((tmp_path / "out.safetensors").read_bytes())
    data[-3] ^= 1
    (tmp_path / "out.safetensors").write_bytes(data)
    audit = convert.check(tmp_path / "out.safetensors")
    assert not audit.sound
    assert isinstance(audit.error, convert.WrongHash)
    convert.convert_file(tmp_path / "out.safetensors", tmp_path / "mended.safetensors")
    assert convert.check(tmp_path / "mended.safetensors").sound


KINDS = {
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora.up.weight":
        "motion LoRA",
    "unet:0:up": "cloneofsimo",
    "image_proj.proj.weight": "IP-Adapter",
    "ip_adapter.1.to_k_ip.weight": "IP-Adapter",
    "ip_adapter.0.to_q_lora.down.weight": "FaceID",
    "lora_controlnet": "ControlNet-LoRA",
    "control_model.input_blocks.0.0.weight": "ControlNet",
    "lllite_unet_input_blocks_1_1_to_q.down.0.weight": "ControlLLLite",
    "adapter.body.0.resnets.0.block1.weight": "T2I-Adapter",
    "body.0.in_conv.weight": "T2I-Adapter",
    "768.0.linear.0.weight": "hypernetwork",
    "conv_in.weight": "whole UNet, VAE or text encoder",
    "text_model.embeddings.token_embedding.weight": "whole UNet, VAE or text encoder",
    "lora_vae_decoder_conv_in.lora_up.weight": "LoRA of the VAE",
    "emb_params": "textual inversion",
    "clip_l": "textual inversion",
}  # fmt: skip


@pytest.mark.parametrize("key", KINDS)
def test_other_kinds_are_named_with_what_to_do(key, tmp_path):
    save_file({key: torch.zeros(4, 4)}, tmp_path / "in.safetensors")
    with pytest.raises(convert.NotALora, match=KINDS[key]) as caught:
        convert.read(tmp_path / "in.safetensors")
    assert caught.value.advice
