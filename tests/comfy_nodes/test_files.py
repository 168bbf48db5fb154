"""The names of LoRA files, the facts about a file, and the routes that the page requests."""

from __future__ import annotations

import asyncio
import json
import operator
import re
import sys
import types

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

WITH_FILE = ["ScribbleLoraLoader", "ScribbleLoraSweep", "ScribbleLoraInfo", "ScribbleLoraHook"]


def empty_lora(path, metadata=None) -> None:
    path.parent.mkdir(exist_ok=True)
    save_file({"a": torch.zeros(1)}, path, metadata)


@pytest.mark.parametrize("name", WITH_FILE)
def test_a_missing_file_is_refused_when_queued_with_names_that_are_close(name, pack, host) -> None:
    node = pack.NODE_CLASS_MAPPINGS[name]
    assert "there are no LoRA files yet" in node.VALIDATE_INPUTS(lora_name="x")
    for file in ("scribble.safetensors", "sub/anime.safetensors"):
        empty_lora(host / file)
    assert node.VALIDATE_INPUTS(lora_name="scribble.safetensors") is True
    assert node.VALIDATE_INPUTS() is True  # a link: known only later
    assert "did you mean 'scribble.safetensors'" in node.VALIDATE_INPUTS(lora_name="scribbel.safetensors")
    assert "'sub/anime.safetensors'" in node.VALIDATE_INPUTS(lora_name="anime.safetensors")
    for outside in ("/etc/passwd", "../loras/scribble.safetensors", "zzz", ["x"], 3):
        assert "models/loras" in node.VALIDATE_INPUTS(lora_name=outside)


@pytest.mark.parametrize("name", ["sub\\anime.safetensors", "SUB/Anime.safetensors", "sub/anime", "Sub\\ANIME.SAFETENSORS"])
def test_a_name_that_matches_exactly_one_file_is_accepted(name, pack, host, part) -> None:
    empty_lora(host / "sub/anime.safetensors")
    assert part("lora_files").full_name(name) == "sub/anime.safetensors"
    assert pack.NODE_CLASS_MAPPINGS["ScribbleLoraLoader"].VALIDATE_INPUTS(lora_name=name) is True
    assert part("lora_files").path_of(name) == host / "sub/anime.safetensors"


def test_a_name_that_matches_two_files_is_refused(host, part) -> None:
    for file in ("Anime.safetensors", "anime.safetensors"):
        empty_lora(host / file)
    assert part("lora_files").full_name("anime.safetensors") == "anime.safetensors"
    with pytest.raises(part("errors").NodeError, match="'Anime.safetensors' or 'anime.safetensors'"):
        part("lora_files").full_name("ANIME")


def test_pickles_are_not_listed_and_a_named_one_is_sent_to_the_hosts_own_node(pack, host, part) -> None:
    torch.save({"a": torch.zeros(1)}, host / "old.pt")
    empty_lora(host / "new.safetensors")
    for node in (pack.NODE_CLASS_MAPPINGS[name] for name in WITH_FILE):
        assert node.INPUT_TYPES()["required"]["lora_name"][0] == ["new.safetensors"]
        assert "never opened here" in node.VALIDATE_INPUTS("old.pt") and "Load LoRA" in node.VALIDATE_INPUTS("old.pt")
    assert "did you mean" in part("nodes.inputs").LoraFileInput.VALIDATE_INPUTS("new.pt")


def test_a_combo_of_names_accepts_a_text_link(pack, host) -> None:
    empty_lora(host / "x.safetensors")
    names = pack.NODE_CLASS_MAPPINGS["ScribbleLoraLoader"].INPUT_TYPES()["required"]["lora_name"][0]
    differs = operator.ne  # ComfyUI checks whether the type of a link differs from the type of an input
    assert not differs("STRING", names) and differs("MODEL", names)
    assert differs(names, ["y"]) and not differs(names, ["x.safetensors"])
    assert json.dumps(names) == '["x.safetensors"]' and isinstance(names, list)


@pytest.mark.parametrize("name", WITH_FILE)
def test_is_changed_never_raises(name, pack, host) -> None:
    node = pack.NODE_CLASS_MAPPINGS[name]
    empty_lora(host / "x.safetensors")
    values = ("x.safetensors", "missing", "../x.safetensors", None, 3, ["a"], "\0")
    answers = [node.IS_CHANGED(lora_name=value) for value in values]
    assert all(isinstance(answer, str) for answer in answers) and answers[0] != answers[1]


def test_nothing_outside_the_list_is_opened(pack, host, part) -> None:
    empty_lora(host.parent / "secret.safetensors")
    empty_lora(host / "x.safetensors")
    for name in ("../secret.safetensors", str(host.parent / "secret.safetensors")):
        for call in (part("lora_files").load, part("lora_files").advice, part("lora_files").picture_of):
            with pytest.raises(part("errors").NodeError, match="is not in ComfyUI's models/loras"):
                call(name)


def test_info_begins_with_how_to_use_the_file(pack, host) -> None:
    module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{module}.lora_down.weight": torch.ones(4, 1280), f"{module}.lora_up.weight": torch.ones(1280, 4)},
              host / "my.lora.safetensors", {"modelspec.trigger_phrase": "a scribble of", "scribble_scale": "0.7"})  # fmt: skip
    answer = pack.NODE_CLASS_MAPPINGS["ScribbleLoraInfo"]().describe("my.lora.safetensors")
    text, tag, digest, words = answer["result"]
    assert answer["ui"]["text"] == [text] and (tag, words) == ("<lora:my.lora:0.7>", "a scribble of")
    assert [line.split()[0] for line in text.splitlines()[:2]] == ["scale", "trigger"]
    assert re.fullmatch("[0-9a-f]{12}", digest) and digest in text and str(host) not in text
    for expected in ("kohya", "1 of ", "rank", "sound", "0.7 recommended", "a scribble of"):
        assert expected in text
    (host / "my.lora.json").write_text(json.dumps({"preferred weight": 0.4}))  # the text follows the card
    assert "0.4 recommended" in pack.NODE_CLASS_MAPPINGS["ScribbleLoraInfo"]().describe("my.lora")["result"][0]


@pytest.fixture
def ask(host, part, monkeypatch):
    """`ask("advice?name=x")` is the status and the answer of our route in a running aiohttp server."""
    web = pytest.importorskip("aiohttp.web", reason="ComfyUI has aiohttp; here it is not installed")
    from aiohttp.test_utils import TestClient, TestServer

    routes = web.RouteTableDef()
    server = types.ModuleType("server")
    server.PromptServer = types.SimpleNamespace(instance=types.SimpleNamespace(routes=routes))  # type: ignore[attr-defined]
    assert part("routes").register() is False
    monkeypatch.setitem(sys.modules, "server", server)
    assert part("routes").register() is True
    assert part("routes").register() is False  # a second copy of the pack, which must not stop the host

    async def get(path):
        app = web.Application()
        app.add_routes(routes)
        async with TestClient(TestServer(app)) as client:
            answer = await client.get("/scribble_lora/" + path)
            return answer.status, await (answer.json() if answer.content_type == "application/json" else answer.read())

    return lambda path: asyncio.run(get(path))


def test_the_routes_answer_for_the_list_only(ask, host) -> None:
    empty_lora(host / "x.safetensors", {"scribble_scale": "0.7", "modelspec.trigger_phrase": "in style x"})
    empty_lora(host / "y.safetensors", {"modelspec.trigger_phrase": "in style y"})
    empty_lora(host.parent / "secret.safetensors", {"scribble_scale": "0.1"})
    assert ask("advice?name=x.safetensors") == (200, {"scale": 0.7, "trigger_words": "in style x"})
    both = ask("advice?name=x.safetensors&name=y.safetensors&name=x.safetensors")[1]
    assert both["trigger_words"] == "in style x, in style y"
    status, info = ask("info?name=x.safetensors")
    assert status == 200 and info["picture"] is False and "0.7 recommended" in info["text"]
    for name in ("../secret.safetensors", "missing", ""):
        for route in ("advice", "info", "picture"):
            status, body = ask(f"{route}?name={name}")
            assert status == 404 and body.keys() == {"error"}
    assert ask("advice")[0] == ask("info")[0] == ask("picture")[0] == 404


def test_the_picture_beside_a_lora_is_served_and_no_other_file(ask, host) -> None:
    empty_lora(host / "my.style.safetensors")
    Image.new("RGB", (3, 2), "red").save(host / "my.style.png")
    Image.new("RGB", (5, 2), "blue").save(host / "my.style.preview.png")  # goes before the plain one
    assert ask("info?name=my.style.safetensors")[1]["picture"] is True
    assert ask("picture?name=my.style.safetensors") == (200, (host / "my.style.preview.png").read_bytes())
    (host / "my.style.preview.png").unlink()
    assert ask("picture?name=my.style")[1] == (host / "my.style.png").read_bytes()
    (host / "my.style.png").unlink()
    assert ask("picture?name=my.style.safetensors")[0] == 404
