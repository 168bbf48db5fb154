"""A base's prediction type and its sources; a VAE in a file of its own; pipelines of other kinds, refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from safetensors.torch import load_file, save_file

from convert.errors import JobError, UsageError
from trainer.base.diffusers_folder import inspect
from trainer.base.prediction import of_file, with_flags
from trainer.base.sd15 import SCHEDULER_CONFIG, VAE_CONFIG
from trainer.base.vae_file import check_vae, load_vae
from trainer.recipe import Recipe
from trainer.training.noise_schedule import NoiseSchedule
from trainer.training.objective import choose_objective

V = {**SCHEDULER_CONFIG, "prediction_type": "v_prediction"}


def test_where_the_prediction_type_is_read_from(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    assert of_file(file, {}, SCHEDULER_CONFIG, False) == (SCHEDULER_CONFIG, "")
    assert of_file(file, {}, V, True) == (V, "its tensor v_pred")
    (tmp_path / "model.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert of_file(file, {}, SCHEDULER_CONFIG, False) == (V, "model.yaml")
    said = {"modelspec.prediction_type": "epsilon"}
    assert of_file(file, said, V, True) == (SCHEDULER_CONFIG, "its header's modelspec.prediction_type")


def test_flags_override_the_file_and_this_is_reported() -> None:
    assert with_flags(Recipe(), SCHEDULER_CONFIG, "", "x") == (SCHEDULER_CONFIG, "predicts noise")
    assert with_flags(Recipe(prediction="v"), SCHEDULER_CONFIG, "", "x") == (V, "predicts v (--prediction)")
    config, told = with_flags(Recipe(zero_snr=True), V, "model.yaml", "x")
    assert config["rescale_betas_zero_snr"] and told == "predicts v (model.yaml), zero terminal SNR"
    with pytest.raises(UsageError, match="flow-matching"):
        with_flags(Recipe(), {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "", "x")


def test_zero_snr_ends_in_noise_alone() -> None:
    schedule = NoiseSchedule.of(Recipe(zero_snr=True), DDPMScheduler.from_config(V), torch.device("cpu"))
    assert schedule.alphas_cumprod[-1] == 0 and schedule.alphas_cumprod[0] > 0.99
    choose_objective(Recipe(zero_snr=True), DDPMScheduler.from_config(V), torch.device("cpu"))
    with pytest.raises(JobError, match="--zero-snr"):
        choose_objective(Recipe(zero_snr=True), DDPMScheduler.from_config(SCHEDULER_CONFIG), torch.device("cpu"))


@pytest.mark.parametrize("name, kind", [
    ("StableDiffusionXLPipeline", "SDXL"), ("StableDiffusionInpaintPipeline", "an inpainting model"), ("FluxPipeline", "Flux"),
    ("StableDiffusion3Pipeline", "Stable Diffusion 3")])  # fmt: skip
def test_other_pipelines_are_named(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(UsageError, match=f"is {kind} "):
        inspect(tmp_path, half=False)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL.from_config(VAE_CONFIG | {"block_out_channels": [32, 32, 32, 64]})


def test_a_vae_in_either_naming(vae: AutoencoderKL, tmp_path: Path) -> None:
    from tests.trainer.test_base import vae_name

    vae.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def before_018(name: str) -> str:
        for now, then in old.items():
            name = name.replace(f"attentions.0.{now}.", f"attentions.0.{then}.")
        return name

    def ldm(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[..., None, None] if ".attentions." in name and tensor.ndim == 2 else tensor

    forms = {
        "diffusers": tensors, "old": {before_018(name): tensor for name, tensor in tensors.items()},
        "ldm": {vae_name(name): ldm(name, tensor) for name, tensor in tensors.items()},
        "checkpoint": {f"first_stage_model.{vae_name(name)}": ldm(name, tensor) for name, tensor in tensors.items()}}
    for name, form in forms.items():
        save_file(form, tmp_path / f"{name}.safetensors")
        loaded = load_vae(tmp_path / f"{name}.safetensors").state_dict()
        assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[key], tensors[key]) for key in tensors), name
    del forms["ldm"]["decoder.conv_in.bias"]
    save_file(forms["ldm"], tmp_path / "cut.safetensors")
    with pytest.raises(JobError, match="--vae .*cut.safetensors: lacks decoder.conv_in.bias"):
        load_vae(tmp_path / "cut.safetensors")


def test_other_files_are_refused_as_vae(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    save_file({"post_quant_conv.weight": torch.zeros(16, 16, 1, 1), "decoder.conv_in.weight": torch.zeros(1)},
              tmp_path / "flux.safetensors")
    for name, said in (("a.safetensors", "is not a VAE"), ("flux.safetensors", "has 16 latent channels"),
                       ("b.safetensors", "there is no such file")):
        with pytest.raises(UsageError, match=said):
            check_vae(tmp_path / name)
