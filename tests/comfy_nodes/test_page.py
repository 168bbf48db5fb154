"""The page's script, run by node with a small stand-in for ComfyUI's page: its changes to a node, and when."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "comfy_nodes/web/scribble_lora.js"

PAGE = """
import { app } from "./scripts/app.js";
import { api, asked } from "./scripts/api.js";
import "./extensions/scribble-lora/scribble_lora.js";

const widget = (name, value, options = {}) => ({ name, value, options });
const kinds = {
  ScribbleLoraLoader: () => [widget("lora_name", "a.safetensors"), widget("scale", 0.8, { min: -10, max: 10 }),
                             widget("clip_scale", 0.8, { min: -10, max: 10 }),
                             widget("use_recommended_scale", false)],
  ScribblePrompt: () => [widget("subject", "apple"), widget("template", "{trigger} {subject}"),
                         widget("trigger_words", "typed")],
};
function create(kind, graph) {
  const widgets = kinds[kind]();
  for (const one of widgets) one.callback = () => {};
  const inputs = widgets.map(({ name }) => ({ name, widget: { name }, link: null, type: "X" }));
  const node = { comfyClass: kind, widgets, inputs, mode: 0, graph };
  app.extension.nodeCreated(node);
  return node;
}
const of = (node, name) => node.widgets.find((one) => one.name === name);
const settle = () => new Promise((resolve) => setTimeout(resolve, 10));
const canvas = {};
"""

APP = "export const app = { registerExtension(extension) { this.extension = extension } };"
API = """export const asked = [];
export const api = { apiURL: (path) => path, async fetchApi(path) {
  asked.push(path);
  const scale = path.includes("a.safetensors") ? 0.45 : null;
  return { ok: true, json: async () => ({ scale, trigger_words: path.includes("a.safetensors") ? "in style a" : "" }) };
} };"""


@pytest.fixture
def page(tmp_path):
    """`page("code")` runs code in the stand-in and returns the value that it logs with `console.log(JSON.stringify(…))`."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    files = {"scripts/app.js": APP, "scripts/api.js": API, "extensions/scribble-lora/scribble_lora.js": SCRIPT.read_text()}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def run(code: str):
        (tmp_path / "page.js").write_text(PAGE + code)
        done = subprocess.run([node, "page.js"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_the_toggle_is_on_only_for_a_node_that_a_person_adds(page) -> None:
    by_hand, from_file, from_api, linked = page("""
      const byHand = create("ScribbleLoraLoader");
      const fromFile = create("ScribbleLoraLoader"); fromFile.onConfigure({ widgets_values: ["a.safetensors", 0.8, 0.8] });
      const fromApi = create("ScribbleLoraLoader"); of(fromApi, "scale").callback(0.8);
      const linked = create("ScribbleLoraLoader"); linked.inputs[1].link = 7;
      await settle();
      const nodes = [byHand, fromFile, fromApi, linked];
      console.log(JSON.stringify(nodes.map((node) => of(node, "use_recommended_scale").value)))""")
    assert (by_hand, from_file, from_api, linked) == (True, False, False, False)


def test_a_notice_of_the_server_is_shown(page) -> None:
    shown, old_page = page("""
      const shown = [], heard = {};
      api.addEventListener = (name, then) => (heard[name] = then);
      app.extension.setup();
      heard["scribble_lora.notice"]({ detail: { text: "an older page has no such message" } });
      const older = shown.length;
      app.extensionManager = { toast: { add: (message) => shown.push(message) } };
      heard["scribble_lora.notice"]({ detail: { text: "a.safetensors: was trained elsewhere" } });
      console.log(JSON.stringify([shown, older]))""")
    assert old_page == 0 and len(shown) == 1
    assert (shown[0]["severity"], shown[0]["detail"]) == ("warn", "a.safetensors: was trained elsewhere")


def test_the_numbers_of_the_sliders_are_never_changed(page) -> None:
    numbers, label, another = page("""
      const node = create("ScribbleLoraLoader"); await settle();
      const label = of(node, "use_recommended_scale").label;
      of(node, "lora_name").value = "b.safetensors"; of(node, "lora_name").callback("b.safetensors", canvas); await settle();
      console.log(JSON.stringify([[of(node, "scale").value, of(node, "clip_scale").value], label,
                                  of(node, "use_recommended_scale").label]))""")
    assert numbers == [0.8, 0.8] and label == "use_recommended_scale: 0.45" and another == "use_recommended_scale"


def test_moving_a_slider_switches_the_toggle_off(page) -> None:
    assert page("""
      const node = create("ScribbleLoraLoader"); await settle();
      of(node, "scale").callback(0.5, canvas, node);
      console.log(JSON.stringify(of(node, "use_recommended_scale").value))""") is False


def test_a_number_beyond_the_slider_widens_it_and_is_not_clipped(page) -> None:
    fresh, loaded, typed, back = page("""
      const node = create("ScribbleLoraLoader"), scale = of(node, "scale");
      const ends = () => [scale.options.min, scale.options.max];
      const result = [ends()];
      scale.value = 3.5; node.onConfigure({}); result.push(ends());
      scale.callback(-4, canvas); result.push(ends());
      scale.callback(1, canvas); result.push(ends());
      console.log(JSON.stringify(result))""")
    assert (fresh, loaded, typed, back) == ([-2, 2], [-10, 10], [-10, 10], [-2, 2])


def test_the_prompt_of_a_bypassed_loader_has_the_words_of_its_file(page) -> None:
    unlinked, active, bypassed, silent = page("""
      const graph = { links: new Map([[1, { origin_id: 5 }], [2, { origin_id: 6 }]]), getNodeById: (id) => nodes[id] };
      const loader = create("ScribbleLoraLoader", graph);
      const nodes = { 5: { type: "Reroute", inputs: [{ link: 2 }], graph }, 6: loader };
      const node = create("ScribblePrompt", graph), send = () => of(node, "trigger_words").serializeValue();
      const result = [await send()];
      node.inputs[2].link = 1; result.push(await send());
      loader.mode = 4; result.push(await send());
      of(loader, "lora_name").value = "b.safetensors"; result.push(await send());
      console.log(JSON.stringify(result))""")
    assert (unlinked, active, bypassed, silent) == ("typed", "typed", "in style a", "")


def test_the_words_are_found_into_and_out_of_subgraphs(page) -> None:
    inside, outside = page("""
      const inner = { links: new Map([[8, { origin_id: 6, origin_slot: 2 }]]), outputs: [{ linkIds: [] }, { linkIds: [8] }] };
      const loader = create("ScribbleLoraLoader", inner); inner.getNodeById = (id) => ({ 6: loader })[id];
      const sub = { mode: 4, subgraph: inner, inputs: [] };
      const outer = { links: new Map([[1, { origin_id: 5, origin_slot: 1 }]]) };
      outer.getNodeById = (id) => ({ 5: sub, 9: sender })[id];
      const node = create("ScribblePrompt", outer), sender = create("ScribbleLoraLoader", outer);
      node.inputs[2].link = 1;
      const result = [await of(node, "trigger_words").serializeValue(node)];

      const box = { links: new Map([[3, { origin_id: -10, origin_slot: 0 }]]), getNodeById: () => null };
      const within = create("ScribblePrompt", box); within.inputs[2].link = 3; sender.mode = 4;
      outer.links.set(2, { origin_id: 9, origin_slot: 2 });
      const instance = { graph: outer, inputs: [{ link: 2 }] };
      result.push(await of(within, "trigger_words").serializeValue({ subgraphNode: instance }));
      console.log(JSON.stringify(result))""")
    assert (inside, outside) == ("in style a", "in style a")


def test_a_text_link_fits_the_file(page) -> None:
    types = page("""console.log(JSON.stringify(create("ScribbleLoraLoader").inputs.map((input) => input.type)))""")
    assert types[0] == "COMBO,STRING" and types[1:] == ["X"] * 3
