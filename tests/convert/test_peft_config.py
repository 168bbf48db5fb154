"""peft's configuration: settings that change the factors' meaning are refused; patterns are matched as peft does."""

import json

import pytest

import convert
from convert.peft_config import parse_config
from convert.sd15 import modules

TO_Q = modules()["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"]
FC1 = modules()["text_model.encoder.layers.0.mlp.fc1"]


def _config(tmp_path, **settings):
    return parse_config({"r": 4, "lora_alpha": 4, **settings}, tmp_path / "adapter_config.json")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("init_lora_weights", init) for init in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", 7, [])),
        ("bias", "all"), ("lora_bias", True), ("modules_to_save", ["conv_in"]), ("use_qalora", True),
        ("layer_replication", [[0, 4]]), ("trainable_token_indices", [1]), ("a_setting_of_tomorrow", {"x": 1}),
    ],
)  # fmt: skip
def test_settings_that_change_the_meaning_are_refused_by_name(setting, value, tmp_path):
    with pytest.raises(convert.FileError, match=setting) as caught:
        _config(tmp_path, **{setting: value})
    assert caught.value.advice


def test_what_peft_writes_by_default_is_neutral(tmp_path):
    from peft import LoraConfig

    for init in (True, False, "gaussian", "eva", "orthogonal"):
        settings = json.loads(json.dumps(LoraConfig(target_modules=["to_q"]).to_dict(), default=str))
        settings |= {"init_lora_weights": init, "bias": "none", "a_setting_of_tomorrow": None}
        assert parse_config(settings, tmp_path / "adapter_config.json").alpha == 8


@pytest.mark.parametrize(
    ("pattern", "module"),
    [
        ({"to_q": 2, TO_Q.name: 8}, TO_Q), ({TO_Q.name: 8, "to_q": 2}, TO_Q), ({"down_blocks.*": 2, "to_q": 8}, TO_Q),
        ({"q": 2, "attn1.to_.": 8}, TO_Q), ({"encoder.layers.0.mlp.fc1": 2, "fc1": 8}, FC1), ({"fc.": 2, "fc1": 8}, FC1),
    ],
)  # fmt: skip
def test_of_overlapping_patterns_the_one_that_peft_takes_counts(pattern, module, tmp_path):
    from peft.utils.other import get_pattern_key

    expected = pattern[get_pattern_key(pattern.keys(), module.name.removeprefix("text_model."))]
    assert _config(tmp_path, alpha_pattern=pattern).alpha_of(module, 4) == expected
