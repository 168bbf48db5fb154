"""One generation: turns a request into prompts with the adapter's tag, an infotext and messages to the user.

Three moments, in the order of the web UI's hooks:
    begin     `process`: checks the request
    add_tag   `before_process_batch`: after wildcards and dynamic prompts, so that no other extension changes the tag
    verify    `process_batch` and later: checks that the web UI loaded the file
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..convert import miniature
from ..convert.miniature import EARLIER, MINIATURE
from . import infotext, prompts
from .arguments import DEFAULT_SCALE, MAX_SCALE, BadRequest, Request, parse
from .inspection import RENAMED as ENDING_OF_RENAMED
from .inspection import Inspected, Use, renamed
from .lora_files import LoraFiles
from .web_uis import WebUI

AXIS_ADAPTER, AXIS_SCALE = "scribble_lora_adapter", "scribble_lora_scale"
"""Attributes of the processing object that the axes of the X/Y/Z plot set."""

MODELS = {"SD1": "Stable Diffusion 1.x", MINIATURE: "Scribble LoRA's miniature", "SD2": "SD2", "SDXL": "SDXL", "SD3": "SD3"}
"""Kind of model -> its name in messages."""

OTHER = "other"
"""The kind of any other model."""


class Processing(Protocol):
    """The part of the web UI's processing object that we use. `all_hr_prompts` exists in txt2img only."""

    prompts: list[str]
    """of the current batch"""
    all_prompts: list[str]
    all_negative_prompts: list[str]
    main_prompt: str
    batch_size: int
    width: int
    height: int
    extra_generation_params: dict[str, object]
    scribble_lora: Generation | None
    """ours"""

    def comment(self, text: str) -> None:
        """Show a line under the picture."""


@dataclass(frozen=True)
class Applied:
    """The adapter of a generation."""

    found: Inspected
    scale: float
    trigger: str
    """trigger words for the start of the prompt"""

    @property
    def name(self) -> str:
        return self.found.name


@dataclass
class Generation:
    """One call of the web UI's `process_images`."""

    files: LoraFiles
    model: str
    """the loaded model's kind, in the same words as `Inspected.base`; "" if unknown"""
    say: Callable[[str], None]
    """shows one line to the user"""
    applied: Applied | None = None
    said: set[str] = field(default_factory=set)

    def tell(self, text: str) -> None:
        """Show a line once, even in a generation of many batches."""
        if text not in self.said:
            self.said.add(text)
            self.say(text)

    def fail(self, p: Processing, text: str, *, nothing_applied: bool = True) -> None:
        """Report an error on the page, in the console, and in the infotext for API clients."""
        infotext.fail(p.extra_generation_params, text, nothing_applied=nothing_applied)
        self.tell(text)

    def note(self, p: Processing, text: str) -> None:
        """Report what the user should know of a picture that is drawn, in the same places."""
        infotext.notice(p.extra_generation_params, text)
        self.tell(text)


Loader = Callable[[str | None], LoraFiles]
"""Returns the files; rescans the folders first if the name is not among them."""


def recommended(found: Inspected) -> float:
    """The scale to start with: the file's recommended one, limited to the slider's range, or the paper's 0.8."""
    return DEFAULT_SCALE if found.card.scale is None else min(found.card.scale, MAX_SCALE)


def begin(
    p: Processing, args: Sequence[object], load: Loader, model: str, say: Callable[[str], None]
) -> Generation:
    """Check the request in a script's arguments and the pictures' size, and write the infotext."""
    infotext.clear(p.extra_generation_params)
    this = Generation(load(None), model, say)
    if model == MINIATURE and (large := miniature.too_large(p.width, p.height)):
        this.note(p, large)
    try:
        request = parse(args, adapter=getattr(p, AXIS_ADAPTER, None), scale=getattr(p, AXIS_SCALE, None))
        if request is not None:
            this.files = load(request.adapter)
            this.applied = _applied(p, this, request)
            infotext.write(
                p.extra_generation_params, this.files.spelled(this.applied.name), this.applied.scale, request.use_trigger_words
            )
    except BadRequest as error:
        this.fail(p, str(error))
    return this


def _applied(p: Processing, this: Generation, request: Request) -> Applied:
    found = this.files.chosen(request.adapter)
    if found is None:
        raise BadRequest(f"nothing was applied: adapter {_shown(request.adapter)} {this.files.why_missing(request.adapter)}")
    problem = why_not(found, this.model)
    if problem:
        raise BadRequest(f"nothing was applied: {found.name}: {problem}")
    for said in (found.why, notice(found, this.model)):
        if said:
            this.note(p, f"{found.name}: {said}")
    scale = recommended(found) if request.scale is None else request.scale
    return Applied(found, scale, found.card.trigger_words if request.use_trigger_words else "")


def add_tag(p: Processing, this: Generation, batch: Sequence[int], now: list[str]) -> None:
    """Write the adapter's tag into the prompts of one batch, and report other tags that will have no effect.

    Args:
        batch: indices of the batch's pictures in `p.all_prompts`.
        now: the prompts of the batch, which the web UI parses next. Changed in place, and `p.all_prompts` too.
    """
    if this.applied is not None:
        applied, files = this.applied, this.files

        def rewritten(prompt: str) -> str:
            done = prompts.rewrite(
                prompt, applied.name, applied.scale, lambda tagged: files.resolve(tagged) == applied.name, applied.trigger
            )
            for note in done.notes:
                this.tell(note)
            return done.prompt

        now[:] = [rewritten(prompt) for prompt in now]
        for place, prompt in zip(batch, now):
            p.all_prompts[place] = prompt
        p.main_prompt = rewritten(p.main_prompt)
        of_hires = getattr(p, "all_hr_prompts", None) or []
        for place in batch:
            if place < len(of_hires):
                of_hires[place] = rewritten(of_hires[place])
    _check_tags(p, this, batch, now)


def _check_tags(p: Processing, this: Generation, batch: Sequence[int], now: Sequence[str]) -> None:
    of_hires = getattr(p, "all_hr_prompts", None) or []
    written = [*now, *(of_hires[place] for place in batch if place < len(of_hires))]
    all_tags = dict.fromkeys(tag for prompt in written for tag in prompts.tags(prompt))
    for tag in all_tags:
        _check_tag(p, this, tag)
    if len({tuple(prompts.tags(prompt)) for prompt in now}) > 1:
        this.tell("the pictures of this batch have different LoRA tags: the web UI applies the first picture's to all")
    negative = (p.all_negative_prompts[place] for place in batch if place < len(p.all_negative_prompts))
    for tag in dict.fromkeys(tag for prompt in negative for tag in prompts.tags(prompt)):
        this.tell(f"{tag.text} in the negative prompt loads no LoRA: the web UI reads it as plain words there")


def _check_tag(p: Processing, this: Generation, tag: prompts.Tag) -> None:
    """Report a tag written by hand that the web UI would silently ignore."""
    if this.applied is not None and tag.name == this.applied.name:
        return
    name = this.files.resolve(tag.name)
    wrong = f"{_shown(tag.name)} {this.files.why_missing(tag.name)}" if name is None else tag.problem
    if wrong is not None and this.files.web_ui is not WebUI.A1111:
        this.fail(p, f"{this.files.web_ui.value} applies none of this prompt's LoRAs because of {tag.text}: {wrong}")
    elif wrong is not None:
        this.tell(f"{tag.text}: {wrong}")
    if name is None:
        return
    found = this.files.find(name)
    if found is None:
        return
    problem, said = why_not(found, this.model), notice(found, this.model)
    if problem:
        part = "has no effect, or only part of it" if found.use is Use.CONVERT else "has no effect"
        this.tell(f"{tag.text} {part}: {name}: {problem}")
    elif said:
        this.note(p, f"{tag.text}: {name}: {said}")


def verify(
    p: Processing, this: Generation, is_applied: Callable[[Inspected, float | None], bool], now: Iterable[str],
    parsed: Sequence[str] = (),
) -> None:  # fmt: skip
    """Report a file that the web UI did not load. Called after it has loaded the LoRAs of a batch.

    Args:
        is_applied: whether the web UI has loaded the file at this scale, or at any scale if the scale is None.
        now: the batch's prompts with their tags, as `add_tag` left them.
        parsed: the names in the tags that the web UI parsed.
    """
    tagged = list(dict.fromkeys(tag for prompt in now for tag in prompts.tags(prompt)))
    for tag in tagged:
        path = this.files.paths.get(this.files.resolve(tag.name) or "")
        away = path.with_name(f"{path.name}{ENDING_OF_RENAMED}") if path is not None else None
        if path is not None and away is not None and away.is_file() and not path.exists():
            this.fail(p, f"{tag.text} was not applied: {renamed(away)}")
            return
    if this.applied is None or infotext.ERROR in p.extra_generation_params:
        return
    again = [text for text in parsed if this.files.resolve(text) == this.applied.name]
    if len(again) > 1:
        text = f"another extension added a second tag of {this.applied.name} to the prompt: the strengths add up"
        this.fail(p, text, nothing_applied=False)
        return
    shared = any(tag.extras for tag in tagged if this.files.resolve(tag.name) == this.applied.name)
    if not is_applied(this.applied.found, None if shared else float(prompts.number(this.applied.scale))):
        bad = next((f": {tag.text} {tag.problem}" for tag in tagged if tag.problem), ": its console says why")
        this.fail(p, f"{this.files.web_ui.value} did not load {this.applied.name}{bad}")


def why_not(found: Inspected, model: str) -> str | None:
    """Why the web UI could not apply this file to the loaded model, worded to follow the file's name; None if it can."""
    problem = prompts.why_no_tag(found.name)
    if problem:
        return f"cannot be used: {problem}"
    if found.use in (Use.CONVERT, Use.BROKEN) or found.base == EARLIER:
        return found.why
    if found.use is Use.UNCHECKED or not model or found.base == ("SD1" if model == MINIATURE else model):
        return None
    if model == OTHER and found.base not in MODELS:
        return None  # both kinds are unknown, so they may fit
    return f"is a LoRA of {found.base_words} and the loaded model is {MODELS.get(model, 'of another kind')}"


def notice(found: Inspected, model: str) -> str:
    """A warning about a file that the web UI does apply to the loaded model; "" for none."""
    if model not in ("SD1", MINIATURE) or not (found.base == "SD1" or found.of_miniature):
        return ""
    return miniature.notice(of_miniature=found.of_miniature, on_miniature=model == MINIATURE)


def _shown(name: str) -> str:
    return ascii(name) if len(name) <= 80 else f"{ascii(name[:77])}..."
