"""The server: loopback by default, no telemetry, no share link, no access for other pages or hosts."""

from __future__ import annotations

import os
import secrets
import threading

for name, value in (("GRADIO_ANALYTICS_ENABLED", "False"), ("HF_HUB_DISABLE_TELEMETRY", "1"), ("DO_NOT_TRACK", "1")):
    os.environ[name] = value  # before Gradio is imported, which reads them then

import gradio as gr  # noqa: E402

from trainer.page.context import Context  # noqa: E402
from trainer.page.guard import LOOPBACK, OwnPagesOnly  # noqa: E402
from trainer.page.page import build  # noqa: E402
from trainer.page.reports import Reports  # noqa: E402
from trainer.terminal import say  # noqa: E402

TICK = 1.0  # seconds between checks of the queue
USER = "scribble"


def theme() -> gr.themes.Default:
    """Gradio's own theme, with local fonts and primary buttons dark enough for white text (contrast above 4.5)."""
    fills = {f"button_primary_background_fill{kind}": f"*primary_{shade}" for kind, shade in
             (("", 700), ("_dark", 700), ("_hover", 800), ("_hover_dark", 800))}  # fmt: skip
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(**fills)


def serve(page: Context, *, host: str, port: int, browser: bool, stop: threading.Event) -> None:
    """Serve until `stop` is set. On an address that other machines can reach it requires a password, which is printed."""
    from starlette.middleware import Middleware

    local = host in LOOPBACK
    password = "" if local else secrets.token_urlsafe(9)
    _, url, _ = build(page).queue(default_concurrency_limit=4).launch(
        server_name=host, server_port=port, inbrowser=browser, share=False, quiet=True, prevent_thread_lock=True,
        show_error=False, footer_links=[], ssr_mode=False, enable_monitoring=False, mcp_server=False, max_file_size=0,
        auth=(USER, password) if password else None,
        theme=theme(),
        app_kwargs={"middleware": [Middleware(OwnPagesOnly, hosts=LOOPBACK if local else ()),
                                   Middleware(Reports, queue=page.queue)]})  # fmt: skip
    say(f"the page is at {url}" + (f" (user {USER}, password {password})" if password else ", for this machine only"))
    say("closing it, or stopping this with Ctrl-C, does not stop a training")
    while not stop.wait(TICK):
        page.queue.tick()
    gr.close_all(verbose=False)

