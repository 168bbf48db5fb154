// The browser side of the nodes. It only adds convenience: the results are the same without it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const BYPASSED = 4; // LiteGraph's mode of a bypassed node

const SLIDER = { min: -2, max: 2 }; // fine enough for dragging
const TYPED = { min: -10, max: 10 }; // the range that the server accepts

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

/** The server's reply for the LoRAs with these names, {} after an error. */
async function ask(what, ...names) {
  const query = names.map((name) => `name=${encodeURIComponent(name)}`).join("&");
  const response = await api.fetchApi(`/scribble_lora/${what}?${query}`);
  return response.ok ? await response.json() : {};
}

/** Limits a scale's slider to -2 … 2. A typed or loaded number beyond widens the range instead of being clamped. */
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

/** `endSlider` for every scale of a node. Moving a slider also switches the recommended scale off. */
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
 * Calls `act` for a node that a person adds to the graph, but not for one from a file, the clipboard or an API graph:
 * those receive their values before the current task ends.
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

/** Calls `show` with the name of the picked file: now, whenever it changes, and when a workflow is loaded. */
function followFile(node, show) {
  const file = widgetOf(node, "lora_name");
  if (!file) return;
  const now = () => show(file.value, () => file.value);
  after(file, "callback", now);
  after(node, "onConfigure", now);
  now();
}

/** Shows the recommended scale in the toggle's label. The server reads the number itself. */
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
 * The node that feeds an input, and whether it is bypassed. Follows reroutes, goes into subgraphs, and out of the subgraph
 * around `sent`, the node being queued.
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

/** Prompt: a bypassed loader sends no trigger words, so this sends those of its file. */
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

/** Info: shows the picture and the description of the picked file. Neither is saved in the workflow. */
function showInfo(node) {
  const frame = document.createElement("div"); // no height of its own: the node sets it, and the box scrolls
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
    if (name) name.type = "COMBO,STRING"; // also accepts a text link
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
