"""The script that the web UI runs with every generation: its hooks. A failure is reported and the generation continues."""

from __future__ import annotations

from collections.abc import Callable

from modules import scripts  # never `from modules.scripts import Script`: the web UI would register that class as ours

from . import accordion, generation, host, infotext
from .generation import Generation, Processing

TITLE = "Scribble LoRA"


class ScribbleLora(scripts.Script):  # type: ignore[misc,unused-ignore]
    """Applies one LoRA by its tag."""

    def title(self) -> str:
        return TITLE

    def show(self, is_img2img: bool) -> object:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[object]:
        try:
            controls = accordion.build(TITLE, self.elem_id)
        except host.LoraExtensionOff as error:
            host.tell(f"its controls cannot be shown: {error}")
            return []
        except Exception as error:  # noqa: BLE001 - with --api, an error here would stop the whole web UI
            host.tell(host.unforeseen("its controls cannot be shown", error))
            return []
        self.infotext_fields = list(zip(controls, infotext.FIELDS))
        self.paste_field_names = list(infotext.FIELDS)
        return controls

    def process(self, p: Processing, *args: object) -> None:
        """Runs once the prompts are set up; other extensions may still expand wildcards in them."""
        p.scribble_lora = None

        def begin() -> None:
            p.scribble_lora = generation.begin(p, args, host.files, host.model_kind(), lambda text: host.comment(p, text))

        if host.networks() is not None or any(args[:1]):
            _guarded(p, args, begin)

    def before_process_batch(self, p: Processing, *args: object, batch_number: int, **more: object) -> None:
        """The last moment before the web UI parses the prompts of a batch."""
        this, start = _this(p), batch_number * p.batch_size
        if this is not None:
            _guarded(p, args, lambda: generation.add_tag(p, this, range(start, start + len(p.prompts)), p.prompts))

    def process_batch(self, p: Processing, *args: object, batch_number: int, **more: object) -> None:
        """Runs after the LoRAs are loaded, before sampling."""
        this, start = _this(p), batch_number * p.batch_size
        if this is not None:
            now = p.all_prompts[start : start + p.batch_size]
            _guarded(p, args, lambda: generation.verify(p, this, host.is_applied, now, host.parsed_names(p)))

    def postprocess_batch(self, p: Processing, *args: object, **more: object) -> None:
        """Runs after sampling, before the infotexts are written."""
        this = _this(p)
        if this is not None and this.applied is not None:
            broken = host.broken_layers(this.applied.name)
            if broken:
                text = f"{this.applied.name} does not fit {broken} layers of the loaded model; those layers are unchanged"
                this.fail(p, text, nothing_applied=False)


def _this(p: Processing) -> Generation | None:
    return getattr(p, "scribble_lora", None)


def _guarded(p: Processing, args: object, work: Callable[[], None]) -> None:
    """Run `work` and report any error on the page; the web UI would only print a traceback."""
    try:
        work()
    except host.LoraExtensionOff as error:
        infotext.fail(p.extra_generation_params, str(error))
        host.comment(p, f"nothing was applied: {error}")
    except Exception as error:  # noqa: BLE001 - the generation continues
        p.scribble_lora = None
        text = host.unforeseen("nothing was applied", error, args)
        infotext.fail(p.extra_generation_params, text)
        host.comment(p, text)
