// The page's part of the nodes. Everything works without it: it only fills in what a person would type, and shows text.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** What a file recommends, or {} where the server knows of nothing. */
async function advice(name) {
  const response = await api.fetchApi(`/scribble_lora/advice?name=${encodeURIComponent(name)}`);
  return response.ok ? await response.json() : {};
}

/** Sets a slider as a person's drag would, within its ends. */
function slide(node, widget, value) {
  const { min = -Infinity, max = Infinity } = widget.options ?? {};
  widget.value = Math.min(max, Math.max(min, value));
  widget.callback?.(widget.value, app.canvas, node);
  node.setDirtyCanvas?.(true, true);
}

/** Loader: picking another file sets the scale to what that file recommends. Loading a workflow changes nothing. */
function followFile(node) {
  const file = widgetOf(node, "lora_name");
  if (!file) return;
  let known = file.value;
  const configured = node.onConfigure;
  node.onConfigure = function (...args) {
    const result = configured?.apply(this, args);
    known = file.value; // the page puts a workflow's values in without asking the callback
    return result;
  };
  const picked = file.callback;
  file.callback = function (value, ...rest) {
    const result = picked?.call(this, value, ...rest);
    const another = value !== known;
    known = value;
    if (another && !app.configuringGraph) recommend(node, file, value);
    return result;
  };
}

async function recommend(node, file, name) {
  const { scale } = await advice(name);
  if (typeof scale !== "number" || file.value !== name) return; // none stated, or another was picked meanwhile
  for (const widget of [widgetOf(node, "scale"), widgetOf(node, "clip_scale")]) {
    if (widget) slide(node, widget, scale);
  }
}

/** Info: a box in the node that shows the text. It is no input, so it is saved nowhere. */
async function showText(node) {
  const { ComfyWidgets } = await import("../../scripts/widgets.js");
  const { widget } = ComfyWidgets.STRING(node, "about", ["STRING", { multiline: true }], app);
  const box = widget.element ?? widget.inputEl;
  if (box) {
    box.readOnly = true;
    box.style.fontFamily = "monospace";
    box.style.whiteSpace = "pre";
  }
  widget.serialize = false;
  widget.options = { ...widget.options, serialize: false };
  const executed = node.onExecuted;
  node.onExecuted = function (message, ...rest) {
    executed?.call(this, message, ...rest);
    if (message?.text) widget.value = message.text.join("");
  };
  node.setSize?.([Math.max(node.size[0], 460), Math.max(node.size[1], 420)]);
}

app.registerExtension({
  name: "ScribbleLora",
  nodeCreated(node) {
    const kind = node.comfyClass ?? node.constructor?.comfyClass;
    if (kind === "ScribbleLoraLoader") followFile(node);
    if (kind === "ScribbleLoraInfo") showText(node);
  },
});
