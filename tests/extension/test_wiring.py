"""The extension wired into a stand-in of the web UI: its start, its page's handlers and its hooks."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from PIL import Image

from convert.miniature import OUT_BIAS


def script_of(webui) -> tuple[SimpleNamespace, object]:
    extension = webui.start()
    return extension, extension.Script()


def test_start_registers_one_script_and_four_callbacks_and_no_general_names(webui) -> None:
    path, before = list(sys.path), set(sys.modules)
    extension = webui.start()
    classes = [value for value in extension.names.values() if inspect.isclass(value)]
    assert [one.__name__ for one in classes if issubclass(one, webui.scripts.Script)] == ["ScribbleLora"]
    assert set(webui.callbacks) == {"before_ui", "ui_tabs", "infotext_pasted", "app_started"}
    new = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
    assert sys.path == path and new == {"scribble_lora"}
    assert max(webui.stack_depths) <= 8, "the web UI reads the source of the whole call stack at every callback"


def test_a_second_copy_stays_off(webui, capsys) -> None:
    webui.scripts.scripts_data.append(SimpleNamespace(basedir="/other", path="/other/scripts/scribble_lora.py"))
    assert webui.start().Script is None and not webui.callbacks
    said = capsys.readouterr().err
    assert "is a second copy and stays off; /other is on" in said and said.count("\n") == 1


def test_a_web_ui_that_lacks_a_name_gets_one_panel_and_one_line(webui, monkeypatch, capsys) -> None:
    monkeypatch.delattr(sys.modules["modules.ui_components"], "ToolButton")
    assert webui.start().Script is None and not webui.callbacks
    *frame, last = capsys.readouterr().err.splitlines()
    assert last.startswith("Scribble LoRA: is off: ImportError: cannot import name 'ToolButton'")
    assert {line[0] for line in frame} == {"+", "|"} and any("Traceback" in line for line in frame)


def test_a_reload_imports_the_package_again(webui) -> None:
    first = webui.start()
    assert webui.start().Script is not first.Script
    plot = SimpleNamespace(axis_options=[], AxisOption=lambda label, *a, **k: SimpleNamespace(label=label, **k))
    webui.scripts.scripts_data.append(SimpleNamespace(path="/x/xyz_grid.py", module=plot))
    webui.callbacks["before_ui"]()
    webui.callbacks["before_ui"]()
    assert [axis.label for axis in plot.axis_options] == ["Scribble LoRA scale", "Scribble LoRA adapter"]


def test_forge_keeps_no_path_to_us(webui, monkeypatch) -> None:
    """Forge leaves every extension's folder on sys.path, where ours would hide another's `trainer`."""
    root = str(webui.start().register.ROOT)
    monkeypatch.setattr(sys, "path", [root, "/other", f"{root}/", *sys.path])
    webui.callbacks["before_ui"]()
    assert root not in sys.path and f"{root}/" not in sys.path and sys.path[0] == "/other"


def test_the_axes_set_and_check_their_values(webui) -> None:
    plot = SimpleNamespace(axis_options=[])
    plot.AxisOption = lambda label, kind, apply, **k: SimpleNamespace(label=label, apply=apply, **k)
    webui.start().xyz.register([SimpleNamespace(path="/x/xyz_grid.py", module=plot)])
    scale, adapter = plot.axis_options
    p = webui.processing("cat")
    scale.apply(p, 0.5, [])
    adapter.apply(p, "scribble", [])
    assert (p.scribble_lora_scale, p.scribble_lora_adapter) == (0.5, "scribble")
    assert adapter.choices() == ["None", "broken", "scribble", "theirs"]
    scale.confirm(p, [0.0, 1.5])
    adapter.confirm(p, ["None", "scribble"])
    with pytest.raises(RuntimeError, match="from 0 to 1.5, not 9"):
        scale.confirm(p, [0.5, 9.0])
    with pytest.raises(RuntimeError, match="did you mean scribble"):
        adapter.confirm(p, ["scribbel"])


def test_the_page_reads_no_file_until_it_is_opened(webui, monkeypatch) -> None:
    extension, script = script_of(webui)
    with monkeypatch.context() as patch:
        for name in ("inspect", "stamp"):
            patch.setattr(extension.inspection, name, lambda path: pytest.fail(f"looked at {path} at start"))
        enabled, adapter, scale, trigger = script.ui(False)
    assert adapter.arguments[0] == ["None", "broken", "scribble", "theirs"]
    [(marked, options)] = webui.root.events["load"]
    assert options["outputs"] == [adapter]
    assert marked()["choices"] == ["None", "broken  ⚠ damaged", "scribble", "theirs  ⚠ convert first: diffusers"]


def test_controls_can_be_built_outside_a_page(webui, monkeypatch) -> None:
    """The web UI builds them a second time to read the defaults for its API."""
    monkeypatch.setattr(sys.modules["gradio.context"].Context, "root_block", None)
    assert len(script_of(webui)[1].ui(False)) == 4


def test_gradio_4_takes_an_entry_that_is_in_no_list(webui) -> None:
    assert not script_of(webui)[1].ui(False)[1].options["allow_custom_value"]
    webui.gradio.__version__ = "4.40.0"
    assert script_of(webui)[1].ui(False)[1].options["allow_custom_value"]


def test_without_the_lora_extension_the_page_still_opens(webui, monkeypatch, capsys) -> None:
    monkeypatch.delitem(sys.modules, "networks")
    _, script = script_of(webui)
    assert script.ui(False) == [] and "built-in Lora extension is off" in capsys.readouterr().err
    p = webui.processing("cat")
    script.process(p)
    assert p.main_prompt == "cat" and p.comments == []
    script.process(p, True, "scribble", 0.8, False)
    assert p.main_prompt == "cat" and len(p.comments) == 1 and "switch it on" in p.comments[0]
    assert "switch it on" in p.extra_generation_params["Scribble LoRA error"]
    monkeypatch.setitem(sys.modules, "modules.lora", SimpleNamespace())
    assert script.ui(False) == [] and "SD.Next is not supported: write <lora:name:scale>" in capsys.readouterr().err


def test_an_unexpected_error_is_one_line_and_one_panel(webui, monkeypatch, capsys) -> None:
    extension, script = script_of(webui)
    monkeypatch.setattr(extension.generation, "begin", lambda *a: (_ for _ in ()).throw(ValueError("two\nlines")))
    p = webui.generate(script, True, "scribble", 0.8, False)
    assert p.comments == ["Scribble LoRA: nothing was applied: ValueError: two lines"]
    assert p.extra_generation_params["Scribble LoRA error"] == "nothing was applied: ValueError: two lines"
    said = capsys.readouterr().err
    for part in ("Python ", "gradio        3.41.2", "(True, 'scribble', 0.8, False)", "Traceback", "test_wiring.py"):
        assert part in said, part
    frame = [line for line in said.splitlines() if line[:1] in "+|"]
    assert len(frame) > 8 and {len(line) for line in frame} == {120}


def test_wildcards_that_hold_the_adapters_tag_do_not_double_it(webui) -> None:
    """Another extension expands the prompts after our `process`; each picture of each batch has its own expansion."""
    _, script = script_of(webui)
    ways = iter(["<lora:scribble:0.3> red", "blue", "<lora:scribble:0.3> green", "<lora:other:1>"])
    p = webui.processing(*["cat __styles__"] * 4, batch_size=2)
    p.run(script, True, "scribble", 0.8, False, expand=lambda prompt: prompt.replace("__styles__", next(ways)), load=webui.load)
    assert p.all_prompts == [
        "cat  red <lora:scribble:0.8>", "cat blue <lora:scribble:0.8>", "cat  green <lora:scribble:0.8>",
        "cat <lora:other:1> <lora:scribble:0.8>",
    ]  # fmt: skip
    assert p.extra_generation_params == {"Scribble LoRA adapter": "scribble", "Scribble LoRA scale": "0.8"}
    assert any("different LoRA tags" in text for text in p.comments), "the web UI applies the first picture's tags to a batch"


def test_a_tag_that_is_added_later_is_reported(webui) -> None:
    _, script = script_of(webui)
    p = webui.generate(script, True, "scribble", 0.8, False, late=lambda prompt: f"{prompt} <lora:scribble:0.3>")
    assert "another extension added a second tag of scribble" in p.extra_generation_params["Scribble LoRA error"]
    assert "another extension" in p.comments[0]


def test_hires_prompts_are_rewritten_with_their_batch(webui) -> None:
    _, script = script_of(webui)
    p = webui.processing("cat", "dog", all_hr_prompts=["big cat <lora:scribble:1>", "big dog"])
    p.run(script, True, "scribble", 0.8, False, load=webui.load)
    assert p.all_hr_prompts == ["big cat <lora:scribble:0.8>", "big dog <lora:scribble:0.8>"]


def test_a_lora_that_the_web_ui_did_not_load_is_reported_everywhere(webui) -> None:
    _, script = script_of(webui)
    assert webui.generate(script, True, "scribble", 0.8, False).comments == []
    webui.networks.loaded_networks.clear()
    for stale in ([], [SimpleNamespace(name="scribble", mentioned_name="scribble", unet_multiplier=0.5)]):
        webui.networks.loaded_networks[:] = stale
        p = webui.processing("cat <lora:other:x>").run(script, True, "scribble", 0.8, False)
        for text in (p.comments[-1], p.extra_generation_params["Scribble LoRA error"]):
            assert "the web UI did not load scribble: <lora:other:x> has 'x' where a number is expected" in text
        assert "Scribble LoRA adapter" not in p.extra_generation_params


def test_another_extensions_tag_may_have_another_strength(webui) -> None:
    """A block weight extension multiplies the strength: only whether the file is loaded can be checked then."""
    _, script = script_of(webui)
    for name, told in (("scribble", False), ("other", True)):
        webui.networks.loaded_networks[:] = [SimpleNamespace(name=name, mentioned_name=name, unet_multiplier=0.1)]
        p = webui.processing("cat <lora:scribble:1:lbw=MIDD>").run(script, True, "scribble", 0.8, False)
        assert p.all_prompts == ["cat <lora:scribble:0.8:lbw=MIDD>"] and bool(p.comments) is told


def test_layers_that_did_not_fit_are_reported(webui) -> None:
    _, script = script_of(webui)
    webui.errors["scribble"] = 3
    p = webui.generate(script, True, "scribble", 0.8, False)
    assert "does not fit 3 layers" in p.extra_generation_params["Scribble LoRA error"]
    assert p.extra_generation_params["Scribble LoRA adapter"] == "scribble", "the other layers have it"


def test_an_unknown_tag_is_named_and_on_forge_it_is_an_error(webui, folder) -> None:
    _, script = script_of(webui)
    p = webui.generate(script, False, prompts=("cat <lora:scribbel:1>",))
    [said] = p.comments
    assert "<lora:scribbel:1>: 'scribbel' is not in the LoRA folder; did you mean scribble?" in said
    assert not p.extra_generation_params
    webui.networks.load_lora_for_models = print
    webui.model.current_lora_hash = "[]"
    p = webui.generate(script, True, "scribble", 0.8, False, prompts=("cat <lora:scribbel:1>",))
    error = p.extra_generation_params["Scribble LoRA error"]
    assert "did you mean scribble?" in error and "Forge applies none of this prompt's LoRAs" in error
    assert "Scribble LoRA adapter" not in p.extra_generation_params and p.comments == [f"Scribble LoRA: {error}"]


def test_loras_that_forge_did_not_apply_are_reported(webui, folder) -> None:
    _, script = script_of(webui)
    webui.networks.load_lora_for_models = print
    webui.model.current_lora_hash = str([[str(folder / "scribble.safetensors"), 0.8, 0.8, False]])
    assert webui.generate(script, True, "scribble", 0.8, False).comments == []
    assert "Forge did not load scribble" in webui.generate(script, True, "scribble", 0.5, False).comments[0]


def test_a_file_that_forge_renames_while_it_loads_is_reported(webui, folder) -> None:
    _, script = script_of(webui)
    webui.networks.load_lora_for_models = print
    webui.model.current_lora_hash = "[]"
    lora = folder / "scribble.safetensors"
    p = webui.processing("cat <lora:scribble:1>").run(
        script, False, load=lambda prompts: lora.rename(lora.with_name(f"{lora.name}.corrupted"))
    )
    assert "has renamed it scribble.safetensors.corrupted" in p.extra_generation_params["Scribble LoRA error"]


def test_a_tag_in_the_negative_prompt_is_reported(webui) -> None:
    _, script = script_of(webui)
    p = webui.processing("cat")
    p.all_negative_prompts = ["bad <lora:scribble:1>"]
    p.run(script, False, load=webui.load)
    assert p.comments == [
        "Scribble LoRA: <lora:scribble:1> in the negative prompt loads no LoRA: the web UI reads it as plain words there"
    ]


def test_each_web_ui_is_recognised_and_reads_its_own_forms(webui, monkeypatch) -> None:
    extension, script = script_of(webui)
    assert extension.host.web_ui() is extension.web_uis.WebUI.A1111
    webui.networks.load_lora_for_models = print
    assert extension.host.web_ui() is extension.web_uis.WebUI.FORGE
    p = webui.generate(script, False, prompts=("cat <lora:theirs:1>",))
    assert "which Forge does not read: convert it first" in p.comments[0]
    monkeypatch.setitem(sys.modules, "ldm_patched", SimpleNamespace())
    assert extension.host.web_ui() is extension.web_uis.WebUI.REFORGE


@pytest.mark.parametrize(("flag", "kind"), [("is_sdxl", "SDXL"), ("is_sd2", "SD2"), ("is_sd3", "SD3"), ("", "another kind")])
def test_the_loaded_model_decides(webui, flag, kind) -> None:
    webui.model.is_sd1 = False
    if flag:
        setattr(webui.model, flag, True)
    p = webui.generate(script_of(webui)[1], True, "scribble", 0.8, False)
    assert p.all_prompts == ["cat"] and kind in p.comments[0]


class Layers(SimpleNamespace):
    """A model whose output convolution has this bias, where each web UI keeps it."""

    def __init__(self, bias: torch.Tensor | None, web_ui: str) -> None:
        model = SimpleNamespace(diffusion_model=SimpleNamespace(out=[None, None, SimpleNamespace(bias=bias)]))
        inner = {"model": model} if web_ui == "A1111" else {"forge_objects": SimpleNamespace(unet=SimpleNamespace(model=model))}
        super().__init__(is_sd1=True, is_sdxl=False, **inner)


@pytest.mark.parametrize("web_ui", ["A1111", "Forge and reForge"])
def test_the_miniature_is_recognised_by_its_weights(webui, web_ui) -> None:
    extension, script = script_of(webui)
    data, ours = sys.modules["modules.sd_models"].model_data, torch.tensor(OUT_BIAS)
    data.sd_model = Layers(ours.bfloat16().requires_grad_(), web_ui)
    assert extension.host.model_kind() == "miniature"
    p = webui.generate(script, True, "scribble", 0.8, False)
    assert p.all_prompts == ["cat <lora:scribble:0.8>"] and "Scribble LoRA error" not in p.extra_generation_params
    assert len(p.comments) == 1 and "scribble: was not trained on Scribble LoRA's miniature" in p.comments[0]
    assert "was not trained on" in extension.accordion.show("scribble")[0]
    for other in (ours * 2, ours[:3], torch.empty(4, device="meta"), None):
        data.sd_model = Layers(other, web_ui)
        assert extension.host.model_kind() == "SD1"
    data.sd_model = Layers(ours, web_ui)
    data.sd_model.is_sd1 = False
    assert extension.host.model_kind() == "other"


def test_choosing_converting_and_reading_again(webui, folder) -> None:
    script = webui.start().accordion
    entry = "theirs  ⚠ convert first: diffusers"
    html, button = script.show(entry)
    assert "convert it first" in html and button == {"visible": True}
    assert script.show_whole(entry) == (html, button) and script.show_whole("None") == script.show("None")
    assert script.start_scale("scribble") == {"value": 0.7} and script.start_scale("None") == {}
    chosen, scale, html, button = script.convert_chosen(entry)
    assert chosen["value"] == "theirs.kohya" and "theirs.kohya" in chosen["choices"] and "ready" in html
    assert button == {"visible": False} and (folder / "theirs.kohya.safetensors").exists()
    *_, html, _ = script.convert_chosen(entry)
    assert "is already converted: theirs.kohya.safetensors is beside it" in html
    (folder / "scribble.safetensors").rename(folder / "renamed.safetensors")
    dropdown, html, _ = script.reload("scribble")
    assert dropdown["value"] == "scribble" and "renamed" in dropdown["choices"]
    assert "scribble is not in the LoRA folder" in html and "ready" not in html


def test_a_pasted_infotext_fills_the_controls(webui, capsys) -> None:
    _, script = script_of(webui)
    script.ui(False)
    fields = [field for _, field in script.infotext_fields]
    assert script.paste_field_names == fields
    params = {"Scribble LoRA adapter": "theirs", "Scribble LoRA scale": "0.4", "Prompt": "cat <lora:theirs:0.4>"}
    webui.callbacks["infotext_pasted"]("", params)
    assert params["Prompt"] == "cat"
    assert [field(params) for field in fields] == [True, "theirs  ⚠ convert first: diffusers", 0.4, False]
    foreign = {"Prompt": "cat <lora:scribble:1>"}
    webui.callbacks["infotext_pasted"]("", foreign)
    assert foreign == {"Prompt": "cat <lora:scribble:1>"} and [field(foreign) for field in fields] == [False, None, None, None]
    gone = {"Scribble LoRA adapter": "gone", "Prompt": "cat <lora:gone:1>"}
    webui.callbacks["infotext_pasted"]("", gone)
    assert gone == {"Prompt": "cat <lora:gone:1>"} and "used gone, which is not" in capsys.readouterr().err
    assert len(webui.toasts) == 1 and "used gone, which is not in the LoRA folder" in webui.toasts[0]


def test_the_import_tab_is_built_or_left_out(webui, monkeypatch, capsys) -> None:
    extension = webui.start()
    [(_, title, name)] = webui.callbacks["ui_tabs"]()
    assert (title, name) == ("Scribble LoRA", "scribble_lora")
    assert extension.import_tab.listed()["choices"] == ["broken.safetensors", "scribble.safetensors", "theirs.safetensors"]
    monkeypatch.setattr(extension.import_tab, "build", lambda: 1 / 0)
    assert webui.callbacks["ui_tabs"]() == [] and "Scribble LoRA: no Import tab: ZeroDivisionError" in capsys.readouterr().err


def test_the_import_tab_looks_and_converts(webui, folder) -> None:
    tab = webui.start().import_tab
    table, trigger, scale, description, picture, replace, *messages = tab.look("scribble.safetensors")
    assert "sound" in table and "kohya" in table and (trigger, scale, description) == ("a scribble of", 0.7, "")
    assert (picture, replace) == (None, False), "another file's picture and tick would be written to this one"
    assert "not sound" in tab.look("broken.safetensors")[0] and str(folder) not in tab.look("broken.safetensors")[0]
    assert "is already in the web UI" in tab.convert_file("scribble.safetensors")[-2]
    assert "web page" in tab.convert_file("broken.safetensors")[-2]
    for other in (None, "", "../conftest.py", str(folder / "scribble.safetensors")):
        assert "choose a file first" in tab.convert_file(other)[-2]
        assert "choose a file first" in tab.write_card(other, "", 0, "", None, False)


def test_after_a_conversion_the_card_is_that_of_the_file_that_is_used(webui, folder) -> None:
    tab = webui.start().import_tab
    (folder / "theirs.json").write_text('{"activation text": "in mystyle"}')
    for verb in ("written", "already converted"):
        dropdown, table, trigger, *_, note, _ = tab.convert_file("theirs.safetensors")
        assert dropdown["value"] == "theirs.kohya.safetensors" and dropdown["value"] in dropdown["choices"]
        assert "theirs.kohya.safetensors" in table and trigger == "in mystyle"
        assert verb in note and "&lt;lora:theirs.kohya:0.8&gt;" in note
    assert "written: theirs.kohya.json" in tab.write_card(dropdown["value"], "new words", 0.5, "", None, False)


def test_the_import_tab_reports_what_it_wrote_and_what_not(webui, folder) -> None:
    tab, image = webui.start().import_tab, Image.new("RGB", (8, 8))
    (folder / "scribble.png").write_bytes(b"mine")
    said = tab.write_card("scribble.safetensors", "words", 0.5, "", image, False)
    assert "written: scribble.json" in said and "scribble.png already exists" in said
    assert (folder / "scribble.png").read_bytes() == b"mine"
    said = tab.write_card("scribble.safetensors", "words", 0.5, "", image, True)
    assert "written: scribble.json, scribble.png" in said and Image.open(folder / "scribble.png").size == (8, 8)
    assert tab.look("scribble.safetensors")[1:3] == ("words", 0.5)


def test_the_apis_schema_has_the_arguments_of_the_page(webui) -> None:
    extension, routes = webui.start(), {}
    webui.callbacks["app_started"](None, SimpleNamespace(add_api_route=lambda path, call, **more: routes.update({path: call})))
    properties = routes["/scribble-lora/arguments"]()["properties"]
    assert list(properties) == ["enabled", "adapter", "scale", "use_trigger_words"]
    assert len(extension.Script().ui(False)) == len(properties) and all(one["description"] for one in properties.values())


def test_a_call_by_name_is_a_call_by_position(webui) -> None:
    _, script = script_of(webui)
    by_name = webui.generate(script, {"enabled": True, "adapter": "scribble.safetensors"}, "None", 0.8, False)
    assert by_name.all_prompts == ["cat <lora:scribble:0.7>"], "the scale is the file's own: the page's is not the caller's"
    p = webui.generate(script, {"enabled": True, "adaptor": "scribble"}, "None", 0.8, False)
    assert p.all_prompts == ["cat"]
    assert p.extra_generation_params["Scribble LoRA error"] == "'adaptor' is not an argument; did you mean adapter?"


def test_an_alias_of_two_files_cannot_be_used(webui) -> None:
    """The web UI forbids it, in lower case, and then accepts only the files' own names."""
    extension, script = script_of(webui)
    webui.networks.available_network_aliases["Shared"] = SimpleNamespace(name="theirs")
    assert extension.host.files().resolve("Shared") == "theirs"
    webui.networks.forbidden_network_aliases["shared"] = 1
    assert extension.host.files().resolve("Shared") is None
    assert "'Shared' is not in the LoRA folder" in webui.generate(script, False, prompts=("cat <lora:Shared:1>",)).comments[0]


def test_the_url_of_a_picture_is_quoted(webui, folder) -> None:
    extension, odd = webui.start(), folder / "50% off & #1 ü.safetensors"
    odd.with_suffix(".png").write_bytes(b"")
    query = parse_qs(urlsplit(extension.host.picture_url(odd)).query)
    assert query["filename"] == [odd.with_suffix(".png").as_posix()] and float(query["mtime"][0]) > 0
    assert extension.host.picture_url(folder / "scribble.safetensors") == ""


def test_a_generation_of_many_batches_reports_a_thing_once(webui, capsys) -> None:
    _, script = script_of(webui)
    p = webui.generate(script, False, prompts=("cat <lora:gone:1>",) * 3)
    assert len(p.comments) == 1 and capsys.readouterr().err.count("gone:1>") == 1


def test_a_file_that_appears_during_a_run_is_found(webui, folder) -> None:
    extension, script = script_of(webui)
    (folder / "new.safetensors").write_bytes((folder / "scribble.safetensors").read_bytes())
    assert extension.host.files().name_of("new") is None
    assert webui.generate(script, True, "new", 1, False).all_prompts == ["cat <lora:new:1>"]
