// The page's part of the nodes. Everything works without it: it never decides what is drawn.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const BYPASSED = 4; // LiteGraph's mode of a node that is left out

const SLIDER = { min: -2, max: 2 }; // a range that a drag can aim in
const TYPED = { min: -10, max: 10 }; // the range that the server takes

const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** Calls `then` after every call of `object[name]`, which may be missing. */
function after(object, name, then) {
  const before = object[name];
  object[name] = function (...args) {
    const result = before?.apply(this, args);
    then.apply(this, args);
    return result;
  };
}

/** The server's answer about the LoRAs of these names, {} if it has none. */
async function ask(what, ...names) {
  const query = names.map((name) => `name=${encodeURIComponent(name)}`).join("&");
  const response = await api.fetchApi(`/scribble_lora/${what}?${query}`);
  return response.ok ? await response.json() : {};
}

/** Ends a scale's slider at -2 and 2. A number beyond, typed or loaded, widens it instead of being cut. */
function endSlider(widget) {
  const original = widget.callback;
  const fit = (value) => Object.assign(widget.options, Math.abs(value) > SLIDER.max ? TYPED : SLIDER);
  widget.callback = function (value, ...rest) {
    fit(value);
    return original?.call(this, value, ...rest);
  };
  fit(widget.value);
  return fit;
}

/** Both for every scale of a node; and a person who moves a slider wants that number, not the recommended one. */
function endSliders(node) {
  const toggle = widgetOf(node, "use_recommended_scale");
  for (const widget of node.widgets ?? []) {
    if (!/^(clip_)?scale(_\d)?$/.test(widget.name)) continue;
    const fit = endSlider(widget);
    after(node, "onConfigure", () => fit(widget.value));
    after(widget, "callback", (value, canvas) => {
      if (toggle && canvas) toggle.value = false; // loading an API graph calls back without a canvas
    });
  }
}

/**
 * Calls `act` for a node that a person adds to the graph, and not for one that comes from a file, the clipboard or an
 * API graph: those are given their values before the current task ends.
 */
function whenAddedByHand(node, act) {
  let given = false;
  after(node, "onConfigure", () => (given = true));
  for (const widget of node.widgets ?? []) after(widget, "callback", () => (given = true));
  queueMicrotask(() => {
    const linked = node.inputs?.some((input) => input.widget && input.link != null);
    if (!given && !linked) act();
  });
}

/** Calls `show` with the name of the picked file: now, when another is picked, and when a workflow is loaded. */
function followFile(node, show) {
  const file = widgetOf(node, "lora_name");
  if (!file) return;
  const now = () => show(file.value, () => file.value);
  after(file, "callback", now);
  after(node, "onConfigure", now);
  now();
}

/** The toggle shows the number that it stands for. The server is the one that uses it. */
function showRecommendation(node) {
  const toggle = widgetOf(node, "use_recommended_scale");
  const plain = toggle.label ?? toggle.name;
  followFile(node, async (name, current) => {
    const { scale } = await ask("advice", name);
    if (name !== current()) return;
    toggle.label = typeof scale === "number" ? `${plain}: ${scale}` : plain;
    node.setDirtyCanvas?.(true, true);
  });
}

const linkOf = (graph, id) => graph?.links.get?.(id) ?? graph?.links[id];

/**
 * The node that feeds an input, and whether it is bypassed: through reroutes, into a subgraph, and out of the one that
 * `sent`, the node as it is queued, is in.
 */
function originOf(sent, node, name) {
  let graph = node.graph;
  let link = linkOf(graph, node.inputs?.find((slot) => slot.name === name)?.link);
  let bypassed = false;
  for (let hops = 0; link && hops < 100; hops++) {
    const origin = graph.getNodeById(link.origin_id);
    if (!origin && sent?.subgraphNode) {
      graph = sent.subgraphNode.graph;
      link = linkOf(graph, sent.subgraphNode.inputs[link.origin_slot]?.link);
      sent = null; // nothing is known of the subgraphs around it
      continue;
    }
    if (!origin) return {};
    bypassed ||= origin.mode === BYPASSED;
    if (origin.subgraph) {
      graph = origin.subgraph;
      link = linkOf(graph, graph.outputs[link.origin_slot]?.linkIds?.[0]);
    } else if (origin.type === "Reroute") {
      link = linkOf(graph, origin.inputs[0]?.link);
    } else {
      return { origin, bypassed };
    }
  }
  return {};
}

/** Prompt: a bypassed loader sends no trigger words, so the words of its file are sent for it. */
function keepWordsOfBypassedLoader(node) {
  const words = widgetOf(node, "trigger_words");
  if (!words) return;
  words.serializeValue = async (sent) => {
    const { origin, bypassed } = originOf(sent, node, "trigger_words");
    if (!bypassed) return words.value;
    const files = origin.widgets?.filter((widget) => /^lora_(name|\d)$/.test(widget.name) && widget.value !== "None") ?? [];
    if (!files.length) return words.value;
    return (await ask("advice", ...files.map((widget) => widget.value))).trigger_words ?? words.value;
  };
}

/** Info: the picture and the text of the picked file. Nothing of it is saved. */
function showInfo(node) {
  const frame = document.createElement("div"); // without a height of its own: the node decides, and the box scrolls
  const box = document.createElement("div");
  const picture = document.createElement("img");
  const text = document.createElement("pre");
  frame.style.cssText = "position: relative; height: 100%; min-height: 360px";
  box.style.cssText = "position: absolute; inset: 0; display: flex; flex-direction: column; gap: 8px; overflow: auto; "
    + "padding: 8px; background: var(--comfy-input-bg); color: var(--input-text); border-radius: 4px";
  picture.style.cssText = "display: none; max-width: 160px; max-height: 160px; align-self: flex-start; border-radius: 4px";
  text.style.cssText = "margin: 0; font: 11px/1.45 monospace; white-space: pre; user-select: text";
  box.append(picture, text);
  frame.append(box);
  for (const event of ["wheel", "pointerdown"]) box.addEventListener(event, (e) => e.stopPropagation()); // scroll, select
  const about = node.addDOMWidget("about", "scribble_lora_info", frame, {
    serialize: false, hideOnZoom: false, getMinHeight: () => 360, getValue: () => text.textContent, setValue: () => {},
  });
  about.serialize = false;
  followFile(node, async (name, current) => {
    const found = await ask("info", name);
    if (name !== current()) return;
    text.textContent = found.text ?? "";
    picture.style.display = found.picture ? "block" : "none";
    picture.src = found.picture ? api.apiURL(`/scribble_lora/picture?name=${encodeURIComponent(name)}`) : "";
  });
  after(node, "onExecuted", (message) => {
    if (message?.text) text.textContent = message.text.join(""); // a linked name is known only now
  });
  node.setSize?.([Math.max(node.size[0], 480), Math.max(node.size[1], 520)]);
}

app.registerExtension({
  name: "ScribbleLora",
  setup() {
    api.addEventListener("scribble_lora.notice", ({ detail }) =>
      app.extensionManager?.toast?.add({ severity: "warn", summary: "Scribble LoRA", detail: detail.text, life: 15000 }));
  },
  nodeCreated(node) {
    const kind = node.comfyClass ?? node.constructor?.comfyClass ?? "";
    if (!kind.startsWith("Scribble")) return;
    const name = node.inputs?.find((input) => input.name === "lora_name");
    if (name) name.type = "COMBO,STRING"; // a text link fits
    endSliders(node);
    const toggle = widgetOf(node, "use_recommended_scale");
    if (toggle) {
      node.setSize?.([Math.max(node.size[0], 400), node.size[1]]); // in Nodes 2.0 the slider would be a dot
      showRecommendation(node);
      whenAddedByHand(node, () => (toggle.value = true));
    }
    if (kind === "ScribblePrompt") keepWordsOfBypassedLoader(node);
    if (kind === "ScribbleLoraInfo") showInfo(node);
  },
});
