"""The grammar of tags, and rewriting: on written examples here, against the web UI's own parser in test_web_uis.py."""

from __future__ import annotations

import pytest


def plain(core, prompt: str, name: str = "scribble", trigger: str = "") -> str:
    return core.prompts.rewrite(prompt, name, 0.80, lambda tagged: tagged in (name, "Alias"), trigger).prompt


@pytest.mark.parametrize(("prompt", "rewritten"), [
    ("cat", "cat <lora:scribble:0.8>"),
    ("", "<lora:scribble:0.8>"),
    ("<lora:scribble:0.3> cat <lora:other:1> <lyco:Alias:1>", "cat <lora:other:1> <lora:scribble:0.8>"),
    ("cat # a note", "cat # a note\n<lora:scribble:0.8>"),
    ("cat [<lora:scribble:1>:0.5]", "cat <lora:scribble:0.8>"),
    ("cat [<lora:scribble:1>::0.5], dog", "cat , dog <lora:scribble:0.8>"),
    ("cat [<lora:scribble:1>:<lora:scribble:0.2>:0.5]", "cat <lora:scribble:0.8>"),
    ("cat ((<lora:scribble:1>):1.2)", "cat <lora:scribble:0.8>"),
    ("cat [<lora:scribble:1>]", "cat <lora:scribble:0.8>"),
    ("cat [<lora:scribble:1> red:blue:0.5]", "cat [ red:blue:0.5] <lora:scribble:0.8>"),
    (r"cat \(<lora:scribble:1>\)", r"cat \(\) <lora:scribble:0.8>"),
    ("cat [:0.5]", "cat [:0.5] <lora:scribble:0.8>"),
    ("cat <lora:oth", "<lora:scribble:0.8> cat <lora:oth"),
    ("cat <lora:scribble:0.3:lbw=MIDD:te=0>", "cat <lora:scribble:0.8:lbw=MIDD>"),
    ("cat <lora:scribble:0.3:0.5:IN02> <lora:scribble:1:lbw=MIDD>", "cat <lora:scribble:0.8:IN02:lbw=MIDD>"),
])  # fmt: skip
def test_a_prompt_gets_one_tag_and_keeps_everything_else(core, prompt, rewritten) -> None:
    assert plain(core, prompt) == rewritten
    assert plain(core, rewritten) == rewritten


@pytest.mark.parametrize(("prompt", "said"), [
    ("<lora:scribble:0.3:0.5>", "separate strengths"), ("<lora:scribble:0.3:te=0>", "separate strengths"),
    ("[<lora:scribble:1>:0.5]", "not scheduled"), ("[<lora:scribble:1>::9]", "not scheduled"),
    ("<lora:scribble:0.3>", None), ("(<lora:scribble:1>)", None), ("<lora:scribble:1:lbw=X>", None),
])  # fmt: skip
def test_what_a_rewrite_drops_is_reported(core, prompt, said) -> None:
    notes = core.prompts.rewrite(prompt, "scribble", 0.8, "scribble".__eq__).notes
    assert (len(notes) == 1 and said in notes[0]) if said else not notes


def test_trigger_words_are_put_first_once(core) -> None:
    words = "a scribble of"
    assert plain(core, "cat", trigger=words) == "a scribble of cat <lora:scribble:0.8>"
    assert plain(core, "(A  Scribble of cat)", trigger=words) == "(A  Scribble of cat) <lora:scribble:0.8>"
    assert plain(core, "a scribble often", trigger=words).startswith("a scribble of a scribble often")


@pytest.mark.parametrize(("text", "problem"), [
    ("<lora:a:1>", None), ("<lora:a:0.5:1>", None), ("<lora:a:te=0:unet=1>", None), ("<lora:a:1:lbw=X>", None),
    ("<lora:a:x>", "'x' where a number"), ("<lora:a:1:te=>", "'' where a number"), ("<lora:a=1>", "does not name a file"),
])  # fmt: skip
def test_a_tag_that_makes_the_web_ui_fail_is_recognised(core, text, problem) -> None:
    [tag] = core.prompts.tags(f"x {text} y")
    assert (tag.problem is None) if problem is None else problem in tag.problem


@pytest.mark.parametrize("name", ["a:b", "a>b", "a#b", "eq=sign"])
def test_names_that_no_tag_can_have_are_to_be_renamed(core, name) -> None:
    assert "rename the file" in core.prompts.why_no_tag(name)


@pytest.mark.parametrize("name", ["a=b=c", "a,b", "[a] (b)", "a|b", "lt<x", " lead", "诡异", "a\"b'"])
def test_other_names_become_tags(core, name) -> None:
    assert core.prompts.why_no_tag(name) is None
    prompt = plain(core, "cat", name)
    assert [tag.name for tag in core.prompts.tags(prompt)] == [name]


def test_a_paste_leaves_tags_with_something_for_another_extension(core) -> None:
    without = core.prompts.without
    assert without("cat <lora:a:1> <lora:a:0.5:lbw=X> <lora:b:1>", "a".__eq__) == "cat  <lora:a:0.5:lbw=X> <lora:b:1>"
    assert without("  untouched ", "a".__eq__) == "  untouched "
