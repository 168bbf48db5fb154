"""The messages of the page's buttons."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr

from convert.errors import JobError, UsageError
from trainer.page.markup import bad


def answer() -> gr.HTML:
    """The place for a button's message. Screen readers announce it: see `page.ANNOUNCE`."""
    return gr.HTML(elem_classes=["said"])


def answering(outputs: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap a handler whose first output is an `answer`: user errors are shown there, and the other outputs do not change."""

    def decorate(handler: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(handler)
        def answered(*values: Any) -> Any:
            try:
                return handler(*values)
            except (JobError, UsageError) as error:
                said = str(error)
            except OSError as error:
                said = f"{error.filename or 'a file'}: {error.strerror or error}"
            return bad(said) if outputs == 1 else (bad(said), *[gr.skip()] * (outputs - 1))

        return answered

    return decorate
