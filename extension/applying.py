"""The work of a generation: from a request to rewritten prompts, an infotext and what the user is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import infotext, prompts
from .adapters import MINIATURE, Adapter, Use
from .catalog import Catalog
from .request import MOST, USUAL, BadRequest, Request, parse

AXIS_ADAPTER, AXIS_SCALE = "scribble_lora_adapter", "scribble_lora_scale"
"""Attributes of the processing object that the axes of the X/Y/Z plot set."""


Loader = Callable[[str | None], Catalog]
"""Gives the catalog; with a name, read again first where it lacks that."""

MODELS = {"SD1": "Stable Diffusion 1.x", "SD2": "SD2", "SDXL": "SDXL", "SD3": "SD3"}
"""Kinds of model -> in words."""

OTHER = "other"
"""The kind of a model that is none of these."""


@dataclass(frozen=True)
class Applied:
    """A generation's adapter, after its tag was written."""

    name: str
    scale: float


def recommended(adapter: Adapter) -> float:
    """The scale to start with: the file's own, within the slider, else the paper's 0.8."""
    return USUAL if adapter.card.scale is None else min(adapter.card.scale, MOST)


def process(p: Any, args: Sequence[Any], load: Loader, model: str, say: Callable[[str], None]) -> Applied | None:
    """Rewrite the prompts of `p` as the arguments ask; None where nothing is applied.

    Args:
        p: the web UI's processing object, whose prompts are set up and not yet parsed.
        load: gives the catalog.
        model: the loaded model's kind, as `Adapter.base` has it; "" where it is not known.
        say: tells the user one line.
    """
    infotext.clear(p.extra_generation_params)
    try:
        request = parse(args, adapter=getattr(p, AXIS_ADAPTER, None), scale=getattr(p, AXIS_SCALE, None))
        applied = _apply(p, request, load, model, say) if request is not None else None
    except BadRequest as error:
        p.extra_generation_params[infotext.ERROR] = str(error)
        say(str(error))
        applied = None
    _warn_of_tags(p, applied, load, model, say)
    return applied


def _apply(p: Any, request: Request, load: Loader, model: str, say: Callable[[str], None]) -> Applied:
    catalog = load(request.adapter)
    request = replace(request, adapter=catalog.name_of(request.adapter))
    adapter = catalog.find(request.adapter)
    if adapter is None:
        raise BadRequest(catalog.why_missing(request.adapter))
    problem = why_not(adapter, model)
    if problem:
        raise BadRequest(f"nothing was applied: {adapter.name}: {problem}")
    if adapter.use is Use.UNCHECKED:
        say(f"{adapter.name}: {adapter.why}")
    scale = recommended(adapter) if request.scale is None else request.scale
    _rewrite(p, request, scale, adapter.card.trigger_words if request.use_trigger_words else "", catalog)
    infotext.write(p.extra_generation_params, request, scale)
    return Applied(request.adapter, scale)


def _rewrite(p: Any, request: Request, scale: float, trigger: str, catalog: Catalog) -> None:
    tag = prompts.tag(request.adapter, scale)

    def rewritten(prompt: str) -> str:
        return prompts.rewrite(prompt, tag, lambda tagged: catalog.resolve(tagged) == request.adapter, trigger)

    p.all_prompts = [rewritten(prompt) for prompt in p.all_prompts]
    p.main_prompt = rewritten(p.main_prompt)
    if getattr(p, "all_hr_prompts", None):
        p.all_hr_prompts = [rewritten(prompt) for prompt in p.all_hr_prompts]


def why_not(adapter: Adapter, model: str) -> str | None:
    """Why the web UI could not apply this file to the loaded model, after "<name>: "; None where it can."""
    problem = prompts.why_no_tag(adapter.name)
    if problem:
        return f"cannot be used: {problem}"
    if adapter.use in (Use.CONVERT, Use.BROKEN):
        return adapter.why
    if adapter.use is Use.UNCHECKED or not model or adapter.base == model:
        return None
    if model == OTHER and adapter.base not in MODELS and adapter.base != MINIATURE:
        return None  # neither the file nor the model is of a kind that could be told apart here
    return f"is a LoRA of {adapter.base_words} and the loaded model is {MODELS.get(model, 'of another kind')}"


def _warn_of_tags(p: Any, applied: Applied | None, load: Loader, model: str, say: Callable[[str], None]) -> None:
    """Tags that somebody wrote by hand and that the web UI would drop without a word."""
    tagged = prompts.all_names([*p.all_prompts, *(getattr(p, "all_hr_prompts", None) or ())])
    if not tagged:
        return
    catalog = load(None)
    for name in tagged:
        if applied is not None and name == applied.name:
            continue
        adapter = catalog.find(catalog.resolve(name) or "")
        if adapter is None or (adapter.use is Use.CONVERT and catalog.many_forms):
            continue
        problem = why_not(adapter, model)
        if problem:
            say(f"<lora:{name}:…> has no effect: {adapter.name}: {problem}")
