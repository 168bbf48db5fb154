"""The extension wired into a stand-in of the web UI: its start, its page's handlers and its hooks."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace

import pytest
from PIL import Image


def script_of(webui) -> tuple[SimpleNamespace, object]:
    extension = webui.start()
    return extension, extension.Script()


def test_start_registers_one_script_and_three_callbacks_and_nothing_general(webui) -> None:
    path, before = list(sys.path), set(sys.modules)
    extension = webui.start()
    classes = [value for value in extension.names.values() if inspect.isclass(value)]
    assert [one.__name__ for one in classes if issubclass(one, webui.scripts.Script)] == ["ScribbleLora"]
    assert set(webui.callbacks) == {"before_ui", "ui_tabs", "infotext_pasted"}
    assert sys.path == path and {name.split(".")[0] for name in set(sys.modules) - before} == {"scribble_lora"}
    assert max(webui.stack_depths) <= 8, "the web UI reads the source of the whole call stack at every callback"


def test_a_second_copy_stays_off(webui, capsys) -> None:
    webui.scripts.scripts_data.append(SimpleNamespace(basedir="/other", path="/other/scripts/scribble_lora.py"))
    assert webui.start().Script is None and not webui.callbacks
    said = capsys.readouterr().err
    assert "is a second copy and stays off; /other is on" in said and said.count("\n") == 1


def test_a_reload_takes_the_package_anew(webui) -> None:
    first = webui.start()
    assert webui.start().Script is not first.Script
    plot = SimpleNamespace(axis_options=[], AxisOption=lambda label, *a, **k: SimpleNamespace(label=label, **k))
    webui.scripts.scripts_data.append(SimpleNamespace(path="/x/xyz_grid.py", module=plot))
    webui.callbacks["before_ui"]()
    webui.callbacks["before_ui"]()
    assert [axis.label for axis in plot.axis_options] == ["Scribble LoRA scale", "Scribble LoRA adapter"]


def test_forge_keeps_no_path_to_us(webui, monkeypatch) -> None:
    """Forge leaves every extension's folder on sys.path, where ours would hide another's `trainer`."""
    root = str(webui.start().door.ROOT)
    monkeypatch.setattr(sys, "path", [root, "/other", f"{root}/", *sys.path])
    webui.callbacks["before_ui"]()
    assert root not in sys.path and f"{root}/" not in sys.path and sys.path[0] == "/other"


def test_the_axes_set_and_check_their_values(webui) -> None:
    plot = SimpleNamespace(axis_options=[])
    plot.AxisOption = lambda label, kind, apply, **k: SimpleNamespace(label=label, apply=apply, **k)
    webui.start().axes.register([SimpleNamespace(path="/x/xyz_grid.py", module=plot)])
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


def test_the_page_looks_into_no_file_until_it_is_opened(webui, monkeypatch) -> None:
    extension, script = script_of(webui)
    with monkeypatch.context() as patch:
        for name in ("examine", "stamp"):
            patch.setattr(extension.adapters, name, lambda path: pytest.fail(f"looked at {path} at start"))
        enabled, adapter, scale, trigger = script.ui(False)
    assert adapter.arguments[0] == ["None", "broken", "scribble", "theirs"]
    [(marked, options)] = webui.root.events["load"]
    assert options["outputs"] == [adapter]
    assert marked()["choices"] == ["None", "broken  ⚠ damaged", "scribble", "theirs  ⚠ convert first: diffusers"]


def test_controls_built_outside_of_a_page_are_controls_too(webui, monkeypatch) -> None:
    """The web UI builds them once more to ask for the defaults of its API."""
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


def test_a_hook_that_fails_says_one_line(webui, monkeypatch, capsys) -> None:
    extension, script = script_of(webui)
    monkeypatch.setattr(extension.applying, "process", lambda *a: (_ for _ in ()).throw(ValueError("two\nlines")))
    p = webui.processing("cat")
    script.process(p, True, "scribble", 0.8, False)
    assert p.comments == ["Scribble LoRA: nothing was applied: ValueError: two lines"]
    assert capsys.readouterr().err == f"{p.comments[0]}\n"


def test_what_the_web_ui_did_not_load_is_told(webui) -> None:
    _, script = script_of(webui)
    p = webui.processing("cat")
    script.process(p, True, "scribble", 0.8, False)
    assert p.main_prompt == "cat <lora:scribble:0.8>"
    script.process_batch(p)
    assert "did not load scribble" in p.comments[0]
    webui.networks.loaded_networks.append(SimpleNamespace(name="scribble"))
    p.comments.clear()
    script.process_batch(p)
    assert p.comments == []


def test_a_tag_that_forge_may_read_is_not_called_without_effect(webui) -> None:
    _, script = script_of(webui)
    for many_forms, told in ((False, 1), (True, 0)):
        if many_forms:
            webui.networks.load_lora_for_models = print
        p = webui.processing("cat <lora:theirs:1>")
        webui.networks.available_network_aliases["theirs"] = SimpleNamespace(name="theirs")
        script.process(p, False)
        assert len(p.comments) == told


@pytest.mark.parametrize(("flag", "kind"), [("is_sdxl", "SDXL"), ("is_sd2", "SD2"), ("is_sd3", "SD3"), ("", "another kind")])
def test_the_loaded_model_decides(webui, flag, kind) -> None:
    webui.model.is_sd1 = False
    if flag:
        setattr(webui.model, flag, True)
    p = webui.processing("cat")
    script_of(webui)[1].process(p, True, "scribble", 0.8, False)
    assert p.main_prompt == "cat" and kind in p.comments[0]


def test_choosing_converting_and_reading_again(webui, folder) -> None:
    script = webui.start().script
    entry = "theirs  ⚠ convert first: diffusers"
    html, button = script.show(entry)
    assert "convert it first" in html and button == {"visible": True}
    assert script.show_whole(entry) == (html, button) and script.show_whole("None") == script.show("None")
    assert script.start_scale("scribble") == {"value": 0.7} and script.start_scale("None") == {}
    chosen, scale, html, button = script.convert_chosen(entry)
    assert chosen["value"] == "theirs.kohya" and "theirs.kohya" in chosen["choices"] and "ready" in html
    assert button == {"visible": False} and (folder / "theirs.kohya.safetensors").exists()
    *_, html, _ = script.convert_chosen(entry)
    assert "exists already" in html
    (folder / "scribble.safetensors").rename(folder / "renamed.safetensors")
    dropdown, html, _ = script.reload("scribble")
    assert dropdown["value"] == "None" and "renamed" in dropdown["choices"] and "ready" not in html


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


def test_the_import_tab_is_built_or_left_out(webui, monkeypatch, capsys) -> None:
    extension = webui.start()
    [(_, title, name)] = webui.callbacks["ui_tabs"]()
    assert (title, name) == ("Scribble LoRA", "scribble_lora")
    assert extension.tab.listed()["choices"] == ["broken.safetensors", "scribble.safetensors", "theirs.safetensors"]
    monkeypatch.setattr(extension.tab, "build", lambda: 1 / 0)
    assert webui.callbacks["ui_tabs"]() == [] and "no Import tab: ZeroDivisionError" in capsys.readouterr().err


def test_the_import_tab_looks_and_converts(webui, folder) -> None:
    tab = webui.start().tab
    table, trigger, scale, description, picture, replace, *messages = tab.look("scribble.safetensors")
    assert "sound" in table and "kohya" in table and (trigger, scale, description) == ("a scribble of", 0.7, "")
    assert (picture, replace) == (None, False), "another file's picture and tick would be written to this one"
    assert "not sound" in tab.look("broken.safetensors")[0] and str(folder) not in tab.look("broken.safetensors")[0]
    assert "nothing to do" in tab.convert_file("scribble.safetensors")[1]
    choices, said = tab.convert_file("theirs.safetensors")
    assert "theirs.kohya.safetensors" in choices["choices"] and "&lt;lora:theirs.kohya:0.8&gt;" in said
    assert "exists already" in tab.convert_file("theirs.safetensors")[1]
    assert "web page" in tab.convert_file("broken.safetensors")[1]
    for other in (None, "", "../conftest.py", str(folder / "scribble.safetensors")):
        assert "choose a file first" in tab.convert_file(other)[1] and "choose" in tab.write_card(other, "", 0, "", None, False)


def test_the_import_tab_says_what_it_wrote_and_what_not(webui, folder) -> None:
    tab, image = webui.start().tab, Image.new("RGB", (8, 8))
    (folder / "scribble.png").write_bytes(b"mine")
    said = tab.write_card("scribble.safetensors", "words", 0.5, "", image, False)
    assert "written: scribble.json" in said and "scribble.png: is there already" in said
    assert (folder / "scribble.png").read_bytes() == b"mine"
    said = tab.write_card("scribble.safetensors", "words", 0.5, "", image, True)
    assert "written: scribble.json, scribble.png" in said and Image.open(folder / "scribble.png").size == (8, 8)
    assert tab.look("scribble.safetensors")[1:3] == ("words", 0.5)
