"""What ComfyUI finds at the door: names, inputs, help, languages, examples; and that the door costs nothing."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
IDS = ["ScribbleLoraLoader", "ScribblePrompt", "ScribbleLoraSweep", "ScribbleGrid", "ScribbleLoraInfo"]
"""They stand in people's saved workflows: changing one breaks those."""

WITH_FILE = ["ScribbleLoraLoader", "ScribbleLoraSweep", "ScribbleLoraInfo"]

OF_HOST = {
    "CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage", "KSampler", "VAEDecode", "SaveImage", "PreviewImage",
    "Note", "MarkdownNote",
}  # fmt: skip
"""Nodes of every ComfyUI that the examples may use."""


def inputs_of(node) -> dict:
    declared = node.INPUT_TYPES()
    return {**declared["required"], **declared.get("optional", {})}


def test_the_ids_are_the_ids(pack) -> None:
    assert list(pack.NODE_CLASS_MAPPINGS) == IDS == list(pack.NODE_DISPLAY_NAME_MAPPINGS)
    assert (ROOT / pack.WEB_DIRECTORY / "scribble_lora.js").is_file()


@pytest.mark.parametrize("name", IDS)
def test_a_node_is_declared_whole(name, pack, host) -> None:
    node = pack.NODE_CLASS_MAPPINGS[name]
    assert node.CATEGORY == "Scribble LoRA" and node.DESCRIPTION and node.SEARCH_ALIASES
    assert callable(getattr(node(), node.FUNCTION))
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    for field, spec in inputs_of(node).items():
        assert spec[1]["tooltip"].endswith("."), field


@pytest.mark.parametrize("name", IDS)
def test_every_node_has_a_help_page_that_names_all_of_it(name, pack, host) -> None:
    folder = ROOT / pack.WEB_DIRECTORY / "docs"
    text = (folder / f"{name}.md").read_text(encoding="utf-8")
    node = pack.NODE_CLASS_MAPPINGS[name]
    missing = [field for field in (*inputs_of(node), *node.RETURN_NAMES) if f"`{field}`" not in text]
    assert not missing
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert pictures
    for picture in pictures:
        assert Image.open(folder / picture).width > 100


@pytest.mark.parametrize("language", sorted(path.name for path in (ROOT / "locales").glob("*")) or ["none"])
def test_a_language_names_every_node_and_nothing_else(language, pack, host) -> None:
    names = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert list(names) == IDS
    for name, texts in names.items():
        node = pack.NODE_CLASS_MAPPINGS[name]
        assert texts["display_name"] and texts["description"]
        assert texts["inputs"].keys() == inputs_of(node).keys()
        assert texts["outputs"].keys() == set(map(str, range(len(node.RETURN_NAMES))))
        entries = [*texts["inputs"].values(), *texts["outputs"].values()]
        written = [texts["display_name"], texts["description"], *(text for entry in entries for text in entry.values())]
        assert all(written) and all("name" in entry for entry in entries)
        assert not any(set(text) & set("{}@|") for text in written)  # the page's translator has uses of its own for them


@pytest.mark.parametrize("path", sorted((ROOT / "example_workflows").glob("*.json")), ids=lambda path: path.stem)
def test_an_example_fits_the_nodes_it_uses(path, pack, host) -> None:
    graph = json.loads(path.read_text(encoding="utf-8"))
    picture = Image.open(path.with_suffix(".jpg"))
    assert picture.format == "JPEG" and picture.width >= 300
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert {node["type"] for node in nodes.values()} <= OF_HOST | set(IDS) and any(n["type"] in IDS for n in nodes.values())
    for number, source, slot, target, place, kind in graph["links"]:
        given, taken = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert number in given["links"] and taken["link"] == number and given["type"] == taken["type"] == kind
    for node in nodes.values():
        if node["type"] in IDS:
            own = inputs_of(pack.NODE_CLASS_MAPPINGS[node["type"]])
            assert {entry["name"] for entry in node["inputs"]} <= own.keys()
            typed = [kind for kind, how in own.values() if kind not in ("MODEL", "CLIP", "IMAGE") and "forceInput" not in how]
            assert len(node.get("widgets_values", [])) == len(typed)
            assert [entry["name"] for entry in node["outputs"]] == list(pack.NODE_CLASS_MAPPINGS[node["type"]].RETURN_NAMES)


def test_there_are_the_three_examples() -> None:
    assert len(list((ROOT / "example_workflows").glob("*.json"))) == 3


IMPORT = """
import importlib.util, sys
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("/x/custom_nodes/a-b", sys.argv[1])
module = importlib.util.module_from_spec(spec); sys.modules[spec.name] = module
spec.loader.exec_module(module)
ours = [name for name in sys.modules if name.startswith("/x/custom_nodes/a-b.")]
print(sorted(name.rpartition(".")[2] for name in ours), sorted(set(sys.modules) - before - set(ours) - {spec.name}), sep="\\n")
"""


def test_the_door_imports_nothing_but_itself() -> None:
    command = [sys.executable, "-c", IMPORT, ROOT / "__init__.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    ours, others = done.stdout.splitlines()
    assert ours == str(sorted(["comfy_nodes", "companions", "errors", "host", "loaders", "prompt", "routes", "scales"]))
    top = {name.split(".")[0] for name in eval(others)}
    assert top <= sys.stdlib_module_names  # no torch, no numpy, no generic name of ours


def test_the_door_alone_is_harmless() -> None:
    done = subprocess.run([sys.executable, ROOT / "__init__.py"], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", WITH_FILE)
def test_a_missing_file_is_refused_when_queued_with_names_that_are_close(name, pack, host) -> None:
    node = pack.NODE_CLASS_MAPPINGS[name]
    assert "there are no LoRA files yet" in node.VALIDATE_INPUTS(lora_name="x")
    (host / "sub").mkdir()
    for file in ("scribble.safetensors", "sub/anime.safetensors"):
        save_file({"a": torch.zeros(1)}, host / file)
    assert node.VALIDATE_INPUTS(lora_name="scribble.safetensors") is True
    assert node.VALIDATE_INPUTS() is True  # a link: known only later
    assert "did you mean 'scribble.safetensors'" in node.VALIDATE_INPUTS(lora_name="scribbel.safetensors")
    assert "'sub/anime.safetensors'" in node.VALIDATE_INPUTS(lora_name="anime.safetensors")
    assert "'sub/anime.safetensors'" in node.VALIDATE_INPUTS(lora_name="sub\\anime.safetensors")
    for outside in ("/etc/passwd", "../loras/scribble.safetensors", "zzz", ["x"], 3):
        assert "models/loras" in node.VALIDATE_INPUTS(lora_name=outside)


@pytest.mark.parametrize("name", WITH_FILE)
def test_is_changed_never_raises(name, pack, host) -> None:
    node = pack.NODE_CLASS_MAPPINGS[name]
    save_file({"a": torch.zeros(1)}, host / "x.safetensors")
    values = ("x.safetensors", "missing", "../x.safetensors", None, 3, ["a"], "\0")
    answers = [node.IS_CHANGED(lora_name=value) for value in values]
    assert all(isinstance(answer, str) for answer in answers) and answers[0] != answers[1]


def test_nothing_outside_the_list_is_opened(pack, host, part) -> None:
    save_file({"a": torch.zeros(1)}, host.parent / "secret.safetensors")
    save_file({"a": torch.zeros(1)}, host / "x.safetensors")
    for name in ("../secret.safetensors", str(host.parent / "secret.safetensors")):
        for call in (part("host").load, part("host").advice):
            with pytest.raises(part("errors").NodeError, match="is not in ComfyUI's models/loras"):
                call(name)


def test_info_tells_what_a_file_is_and_how_to_use_it(pack, host) -> None:
    module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{module}.lora_down.weight": torch.ones(4, 1280), f"{module}.lora_up.weight": torch.ones(1280, 4)},
              host / "my.lora.safetensors", {"modelspec.trigger_phrase": "a scribble of", "scribble_scale": "0.7"})  # fmt: skip
    answer = pack.NODE_CLASS_MAPPINGS["ScribbleLoraInfo"]().describe("my.lora.safetensors")
    text, tag, digest, words = answer["result"]
    assert answer["ui"]["text"] == [text] and (tag, words) == ("<lora:my.lora:0.7>", "a scribble of")
    assert re.fullmatch("[0-9a-f]{12}", digest) and digest in text and str(host) not in text
    for expected in ("kohya", "1 of ", "rank", "sound", "0.7 recommended", "a scribble of"):
        assert expected in text


def test_the_route_answers_for_the_list_only(pack, host, part, monkeypatch) -> None:
    web = pytest.importorskip("aiohttp.web", reason="ComfyUI has aiohttp; here it is not installed")
    save_file({"a": torch.zeros(1)}, host / "x.safetensors", {"scribble_scale": "0.7"})
    save_file({"a": torch.zeros(1)}, host.parent / "secret.safetensors", {"scribble_scale": "0.1"})
    routes = web.RouteTableDef()
    server = types.ModuleType("server")
    server.PromptServer = types.SimpleNamespace(instance=types.SimpleNamespace(routes=routes))  # type: ignore[attr-defined]
    assert part("routes").register() is False
    monkeypatch.setitem(sys.modules, "server", server)
    assert part("routes").register() is True
    assert part("routes").register() is False  # a second copy of the pack, which must not stop the host
    web.Application().add_routes(routes)
    assert [route.path for route in routes] == ["/scribble_lora/advice"]

    def ask(name):
        request = types.SimpleNamespace(query={"name": name})
        answer = asyncio.run(routes[0].handler(request))
        return answer.status, json.loads(answer.text)

    assert ask("x.safetensors") == (200, {"scale": 0.7, "trigger_words": ""})
    for name in ("../secret.safetensors", "missing", ""):
        status, body = ask(name)
        assert status == 404 and "scale" not in body


@pytest.fixture(scope="module")
def archive() -> list[str]:
    """The files that the Comfy Registry would hand out: the repository's, less those of .comfyignore."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    ignored = [line for line in (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert all(line.startswith("/") for line in ignored)  # "docs/" would leave the help pages out too
    return [file for file in listed.stdout.splitlines() if not f"/{file}".startswith(tuple(ignored))]


def test_the_registrys_archive_has_the_pack_and_nothing_else(archive) -> None:
    assert {file.split("/")[0] for file in archive} <= {
        "__init__.py", "comfy_nodes", "convert", "example_workflows", "locales", "pyproject.toml", "README.md", "LICENSE",
    }  # fmt: skip
    assert {"comfy_nodes/web/docs/ScribbleGrid.md", "example_workflows/1_load_a_lora.jpg", "convert/read.py"} <= set(archive)


def test_what_runs_in_comfyui_has_no_network_no_subprocess_and_no_eval(archive) -> None:
    calls = r"^\s*(import|from) (subprocess|socket|urllib|requests|pickle|ctypes)|\bos\.system|\b(eval|exec|__import__)\("
    found = [file for file in archive if file.endswith(".py") and re.search(calls, (ROOT / file).read_text("utf-8"), re.M)]
    assert not found
