"""The nodes' own decisions: which scale, which LoRAs, which words; and how a failure is reported."""

from __future__ import annotations

import json
import logging
import platform
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from convert.miniature import OUT_BIAS

MODULE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT_MODULE = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def lora(path, *, recommended=None, words="", value=1.0, text_encoder=False, metadata=None) -> None:
    """One module of rank 4 and alpha 4, whose change at scale 1 is 4 * value everywhere."""
    sides = {MODULE: 1280} | ({TEXT_MODULE: 768} if text_encoder else {})
    tensors = {}
    for name, side in sides.items():
        tensors |= {f"{name}.lora_down.weight": torch.full((4, side), value), f"{name}.lora_up.weight": torch.ones(side, 4)}
    stated = {"modelspec.trigger_phrase": words} | ({} if recommended is None else {"scribble_scale": str(recommended)})
    save_file(tensors, path, stated | (metadata or {}))


@pytest.fixture
def model(patcher):
    return patcher({"diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight": torch.zeros(1280, 1280)})


@pytest.fixture
def clip(patcher):
    return patcher({"clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(768, 768)})


def change(patched) -> float:
    """The change of the only weight, in units of a LoRA with scale 1 and value 1."""
    return round(float(patched.merged(next(iter(patched.model.weights))).mean()) / 4, 6)


@pytest.fixture
def load(pack):
    return pack.NODE_CLASS_MAPPINGS["ScribbleLoraLoader"]().apply


def test_the_recommended_scale_is_used_only_when_asked_for(load, host, model, clip) -> None:
    lora(host / "a.safetensors", recommended=0.45, text_encoder=True)
    patched, encoder, _, used = load(model=model, lora_name="a.safetensors", scale=0.8, clip_scale=0.3, clip=clip)
    assert (change(patched), change(encoder), used) == (0.8, 0.3, 0.8)
    patched, encoder, _, used = load(model=model, lora_name="a.safetensors", scale=0.8, clip_scale=0.3, clip=clip,
                                     use_recommended_scale=True)  # fmt: skip
    assert (change(patched), change(encoder), used) == (0.45, 0.45, 0.45)


def test_one_files_recommendation_never_reaches_another_file(load, host, model) -> None:
    lora(host / "a.safetensors", recommended=0.45)
    lora(host / "b.safetensors")
    for name, expected in (("a.safetensors", 0.45), ("b.safetensors", 0.8), ("a.safetensors", 0.45)):
        patched, *_, used = load(model=model, lora_name=name, scale=0.8, use_recommended_scale=True)
        assert (change(patched), used) == (expected, expected)


def test_a_card_beyond_the_slider_is_used_and_an_absurd_one_refused(load, host, model, part) -> None:
    lora(host / "a.safetensors")
    (host / "a.json").write_text(json.dumps({"preferred weight": 3.5}))
    patched, *_, used = load(model=model, lora_name="a.safetensors", scale=0.1, use_recommended_scale=True)
    assert (change(patched), used) == (3.5, 3.5)
    (host / "a.json").write_text(json.dumps({"preferred weight": 80}))
    with pytest.raises(part("errors").NodeError, match="recommended scale of this file: is 80"):
        load(model=model, lora_name="a.safetensors", scale=0.1, use_recommended_scale=True)


def test_an_old_api_graph_keeps_its_numbers_and_clip_scale_may_be_left_out(load, host, model, clip) -> None:
    lora(host / "a.safetensors", recommended=0.45, text_encoder=True)
    patched, encoder, _, used = load(model=model, lora_name="a.safetensors", scale=1.2, clip_scale=0.6, clip=clip)
    assert (change(patched), change(encoder), used) == (1.2, 0.6, 1.2)
    patched, encoder, *_ = load(model=model, lora_name="a.safetensors", scale=-3.0, clip=clip)
    assert (change(patched), change(encoder)) == (-3.0, -3.0)


@pytest.mark.parametrize("scale", [10.5, -11.0, float("nan"), float("inf")])
def test_a_linked_scale_that_the_host_does_not_check_is_checked(scale, load, host, model, part) -> None:
    lora(host / "a.safetensors")
    for given in ({"scale": scale}, {"scale": 1.0, "clip_scale": scale}):
        with pytest.raises(part("errors").NodeError, match="must be from -10 to 10"):
            load(model=model, lora_name="a.safetensors", **given)


@pytest.mark.parametrize("name", ["ScribbleLoraLoader", "ScribbleLoraHook", "ScribbleLoraStack"])
def test_new_widgets_come_after_the_old_ones_because_values_are_saved_by_position(name, pack, host) -> None:
    declared = pack.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
    widgets = [field for group in declared.values() for field, (kind, *_) in group.items()
               if isinstance(kind, list) or kind in ("FLOAT", "STRING", "BOOLEAN")]  # fmt: skip
    rows = [f"{what}_{row}" for row in (1, 2, 3, 4) for what in ("lora", "scale")]
    old = rows if name == "ScribbleLoraStack" else ["lora_name", "scale", "clip_scale"]
    assert widgets == [*old, "use_recommended_scale"]
    assert declared["optional"]["use_recommended_scale"][1]["default"] is False


def test_the_outputs_of_saved_links_keep_their_places(pack) -> None:
    assert pack.NODE_CLASS_MAPPINGS["ScribbleLoraLoader"].RETURN_NAMES[:3] == ("MODEL", "CLIP", "trigger_words")


@pytest.fixture
def page(monkeypatch) -> list[tuple[str, object, str]]:
    """The server's messages to the page: event, data, client."""
    sent: list[tuple[str, object, str]] = []
    instance = SimpleNamespace(client_id="browser", send_sync=lambda *message: sent.append(message))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance)))
    return sent


@pytest.mark.parametrize(("of_miniature", "bias", "said"), [
    (True, torch.zeros(4), "a.safetensors: was trained on Scribble LoRA's miniature, but another checkpoint is loaded"),
    (False, torch.tensor(OUT_BIAS).half(), "a.safetensors: was not trained on Scribble LoRA's miniature"),
    (True, torch.tensor(OUT_BIAS).bfloat16(), ""),
    (False, torch.zeros(4), ""),
    (True, torch.zeros(4, dtype=torch.uint8), ""),
])  # fmt: skip
def test_a_lora_on_the_other_checkpoint_is_applied_with_a_notice(
    of_miniature, bias, said, load, host, model, pack, part, page, caplog
) -> None:  # fmt: skip
    lora(host / "a.safetensors", metadata={"scribble_base": "miniature"} if of_miniature else {})
    model.model.weights["diffusion_model.out.2.bias"] = bias
    with caplog.at_level(logging.WARNING):
        loaded = load(model=model, lora_name="a.safetensors", scale=0.5)
        sweep = pack.NODE_CLASS_MAPPINGS["ScribbleLoraSweep"]()
        swept = sweep.sweep(model=model, lora_name="a.safetensors", scales="0, 0.5, 1")
        stacked = pack.NODE_CLASS_MAPPINGS["ScribbleLoraStack"]().stack(model=model, lora_1="a.safetensors", scale_1=0.5)
        load(model=model, lora_name="a.safetensors", scale=0.0)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(page) == (3 if said else 0), "the loader, the sweep and the stack, once each"
    if said:  # in the history, for API clients
        text = lines[0].removeprefix("Scribble LoRA: ")
        assert all(one["ui"] == {"text": [text]} for one in (loaded, swept, stacked))
        loaded, swept, stacked = loaded["result"], swept["result"], stacked["result"]
    assert (change(loaded[0]), [change(one) for one in swept[0]], change(stacked[0])) == (0.5, [0, 0.5, 1], 0.5)
    assert all(said in line for line in lines)
    assert all(message == (part("notices").EVENT, {"text": line.removeprefix("Scribble LoRA: ")}, "browser")
               for message, line in zip(page, lines))  # fmt: skip


@pytest.fixture
def stack(pack):
    return pack.NODE_CLASS_MAPPINGS["ScribbleLoraStack"]().stack


def test_a_stack_is_the_loaders_one_after_the_other(stack, load, host, model, clip) -> None:
    lora(host / "a.safetensors", text_encoder=True, words="in style a")
    lora(host / "b.safetensors", value=0.5, words="in style b")
    patched, encoder, stacked, words = stack(model=model, clip=clip, lora_1="a.safetensors", scale_1=0.5, lora_2="None",
                                             scale_2=0.9, lora_3="B", scale_3=1.0)  # fmt: skip
    chained = load(model=load(model=model, lora_name="a.safetensors", scale=0.5, clip_scale=0.0)[0],
                   lora_name="b.safetensors", scale=1.0)[0]  # fmt: skip
    assert change(patched) == change(chained) == 1.0 and change(encoder) == 0.5
    assert stacked == [("a.safetensors", 0.5, 0.5), ("b.safetensors", 1.0, 1.0)] and words == "in style a, in style b"
    assert not model.patches and not clip.patches


def test_a_stack_accepts_and_returns_the_common_list(stack, host, model) -> None:
    lora(host / "a.safetensors", recommended=0.25)
    other_pack = [("a", 1.0, 0.5)]
    nothing, no_clip, stacked, _ = stack(lora_stack=other_pack, lora_1="a.safetensors", scale_1=0.5)
    assert (nothing, no_clip) == (None, None) and stacked == [("a", 1.0, 0.5), ("a.safetensors", 0.5, 0.5)]
    assert other_pack == [("a", 1.0, 0.5)]  # not changed: the host keeps it for other nodes
    assert change(stack(model=model, lora_stack=stacked)[0]) == 1.5
    assert change(stack(model=model, lora_1="a.safetensors", scale_1=0.9, use_recommended_scale=True)[0]) == 0.25
    assert stack(model=model, lora_1="a.safetensors", scale_1=0.0)[::2] == (model, [])


def test_a_stack_names_the_row_that_is_wrong(stack, host, model, part, pack) -> None:
    lora(host / "a.safetensors")
    with pytest.raises(part("errors").NodeError, match="lora_2: 'b' is not in"):
        stack(model=model, lora_1="a.safetensors", lora_2="b")
    with pytest.raises(part("errors").NodeError, match="a.safetensors: scale: is 11"):
        stack(model=model, lora_stack=[("a.safetensors", 11.0, 1.0)])
    node = pack.NODE_CLASS_MAPPINGS["ScribbleLoraStack"]
    assert node.VALIDATE_INPUTS(lora_1="b") is True
    assert node.IS_CHANGED(lora_1="a.safetensors") != node.IS_CHANGED(lora_1="None")


def test_the_prompts_words_may_be_typed_linked_or_left_out(pack) -> None:
    fill = pack.NODE_CLASS_MAPPINGS["ScribblePrompt"]().fill
    assert fill(subject="apple", template="{trigger} {subject}") == ("a scribble of apple",)
    assert fill(subject="apple", template="{trigger} {subject}", trigger_words="") == ("apple",)
    assert fill(subject="apple", template="{subject}, {trigger}", trigger_words="in style x") == ("apple, in style x",)
    declared = pack.NODE_CLASS_MAPPINGS["ScribblePrompt"].INPUT_TYPES()
    assert "forceInput" not in declared["optional"]["trigger_words"][1]


def test_an_unforeseen_failure_leaves_one_panel_and_passes_on(pack, host, model, part, monkeypatch, caplog) -> None:
    lora(host / "a.safetensors")
    monkeypatch.setattr(part("host"), "with_unet", lambda *_: 1 / 0)
    with caplog.at_level(logging.ERROR), pytest.raises(ZeroDivisionError):
        pack.NODE_CLASS_MAPPINGS["ScribbleLoraLoader"]().apply(model=model, lora_name="a.safetensors", scale=0.5)
    (record,) = caplog.records
    for expected in ("ScribbleLoraLoader failed", "'a.safetensors'", "0.5", "<Patcher>", torch.__version__,
                     platform.python_version(), "ZeroDivisionError", "test_nodes.py", part("panel").VERSION):  # fmt: skip
        assert expected in record.getMessage()


@pytest.mark.parametrize("kind", ["NodeError", "InterruptProcessingException", "OutOfMemoryError"])
def test_an_expected_error_leaves_no_panel(kind, part, caplog) -> None:
    error = part("errors").NodeError if kind == "NodeError" else type(kind, (Exception,), {})

    def work(self: object) -> None:
        raise error("x")

    with caplog.at_level(logging.DEBUG), pytest.raises(error):
        part("errors").reported(work)(object())
    assert not caplog.records
