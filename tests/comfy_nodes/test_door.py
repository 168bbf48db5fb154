"""The pack's entry module: names, inputs, help, examples, the registry's entry; and that it imports nothing heavy."""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from PIL import Image

ROOT = Path(__file__).parents[2]
IDS = ["ScribbleLoraLoader", "ScribblePrompt", "ScribbleLoraSweep", "ScribbleGrid", "ScribbleLoraInfo", "ScribbleLoraHook",
       "ScribbleLoraStack"]  # fmt: skip
"""Saved in users' workflows: changing one breaks them."""

OF_HOST = {
    "CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage", "KSampler", "VAEDecode", "SaveImage", "PreviewImage",
    "Note", "MarkdownNote",
}  # fmt: skip
"""Nodes that every ComfyUI has and the examples may use."""


SOCKETS = ("MODEL", "CLIP", "IMAGE", "HOOKS", "LORA_STACK")
"""Types without a widget."""


def inputs_of(node) -> dict:
    declared = node.INPUT_TYPES()
    return {**declared["required"], **declared.get("optional", {})}


def test_the_node_ids_never_change(pack) -> None:
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
            typed = [kind for kind, how in own.values() if kind not in SOCKETS and "forceInput" not in how]
            assert len(node.get("widgets_values", [])) == len(typed)
            assert [entry["name"] for entry in node["outputs"]] == list(pack.NODE_CLASS_MAPPINGS[node["type"]].RETURN_NAMES)


LEAST = {
    "CheckpointLoaderSimple": (98, 102), "CLIPTextEncode": (80, 120), "EmptyLatentImage": (106, 118), "KSampler": (262, 262),
    "VAEDecode": (46, 54), "SaveImage": (58, 70), "Note": (60, 82), "ScribbleLoraLoader": (190, 240),
    "ScribblePrompt": (106, 166), "ScribbleLoraSweep": (142, 182), "ScribbleGrid": (78, 114), "ScribbleLoraInfo": (520, 520),
}  # fmt: skip
"""Lowest height under the title in the page's two renderers, the canvas and Nodes 2.0, measured in frontend 1.49."""

TITLE, FREE = 30, 40
"""Pixels: the height of a node's title, and the space between two nodes."""


@pytest.mark.parametrize("renderer", [0, 1], ids=["canvas", "nodes-2.0"])
@pytest.mark.parametrize("path", sorted((ROOT / "example_workflows").glob("*.json")), ids=lambda path: path.stem)
def test_the_nodes_of_an_example_do_not_overlap(path, renderer) -> None:
    boxes = {}
    for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes[node["id"], node["type"]] = (x, y - TITLE, x + width, y + max(height, LEAST[node["type"]][renderer]))
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        apart = max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3])
        assert apart >= FREE, (one, other)


def test_there_are_three_examples() -> None:
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


def test_the_entry_module_imports_nothing_else() -> None:
    command = [sys.executable, "-c", IMPORT, ROOT / "__init__.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    ours, others = done.stdout.splitlines()
    modules = ["comfy_nodes", "errors", "host", "lora_files", "nodes", "notices", "routes", "scales", "template", "types"]
    nodes = ["grid", "hook", "info", "inputs", "loader", "prompt", "stack", "sweep"]
    assert ast.literal_eval(ours) == sorted(modules + nodes)  # not `convert` either: it is imported with the first file
    top = {name.split(".")[0] for name in ast.literal_eval(others)}
    assert top <= sys.stdlib_module_names  # no torch, no numpy, no generic name of ours


def test_the_entry_module_alone_is_harmless() -> None:
    done = subprocess.run([sys.executable, ROOT / "__init__.py"], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def archive() -> list[str]:
    """The files that the Comfy Registry would publish: the repository's, without those in .comfyignore."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    ignored = [line for line in (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert all(line.startswith("/") for line in ignored)  # "docs/" would leave the help pages out too
    return [file for file in listed.stdout.splitlines() if not f"/{file}".startswith(tuple(ignored))]


def test_the_registrys_archive_has_the_pack_and_nothing_else(archive) -> None:
    assert {file.split("/")[0] for file in archive} <= {
        "__init__.py", "comfy_nodes", "convert", "example_workflows", "pyproject.toml", "requirements.txt", "README.md",
        "LICENSE",
    }  # fmt: skip
    needed = {"comfy_nodes/web/docs/ScribbleGrid.md", "example_workflows/1 Load a LoRA of any form.jpg", "convert/read.py"}
    assert needed <= set(archive)


def test_what_runs_in_comfyui_has_no_network_no_subprocess_and_no_eval(archive) -> None:
    calls = r"^\s*(import|from) (subprocess|socket|urllib|requests|pickle|ctypes)|\bos\.system|\b(eval|exec|__import__)\("
    found = [file for file in archive if file.endswith(".py") and re.search(calls, (ROOT / file).read_text("utf-8"), re.M)]
    assert not found


def test_the_registrys_entry_is_complete_but_for_one_address() -> None:
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    comfy, urls = entry["tool"]["comfy"], entry["project"]["urls"]
    addresses = [*urls.values(), comfy["Icon"]]
    assert {"Repository", "Documentation", "Bug Tracker"} <= urls.keys()
    assert len({url.split("/scribble-lora")[0] for url in addresses}) == 1  # one place to replace when an address is known
    for url in (comfy["Icon"], urls["Documentation"]):
        assert (ROOT / url.partition("/main/")[2]).is_file()
    classifiers = entry["project"]["classifiers"]
    assert "Operating System :: OS Independent" in classifiers and any("Environment :: GPU" in name for name in classifiers)


def test_nothing_is_published_before_the_address_is_known() -> None:
    placeholder = "ADDRESS" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    workflow = (ROOT / ".github/workflows/publish.yml").read_text(encoding="utf-8")
    automatic = re.search(r"^  push:", workflow, re.M) is not None
    assert not (placeholder and automatic), "publish.yml would publish an entry without an address"


def test_an_installer_of_nodes_finds_nothing_to_install(archive) -> None:
    """Without a requirements.txt, `comfy node install --fast-deps` takes the trainer's dependencies from pyproject.toml."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert "requirements.txt" in archive and all(line.startswith("#") for line in lines)


def test_the_report_of_a_failure_names_this_version(part) -> None:
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert entry["project"]["version"] == part("panel").VERSION
