"""Serves the reports of finished evaluations: the files of a report, and nothing else."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, PlainTextResponse

from trainer.page.evaluation import KIND
from trainer.page.queue import Queue

PREFIX = "/report/"
SECRET = secrets.token_urlsafe(16)
"""Secret part of every address, so that it cannot be guessed without seeing the page, which may require a password."""
KINDS = {".html": "text/html", ".json": "application/json", ".csv": "text/csv", ".png": "image/png"}
POLICY = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""Reports run no scripts."""


def address(id: str) -> str:
    """The address of the report that job `id` writes."""
    return f"{PREFIX}{SECRET}/{id}/"


class Reports:
    """Answers requests under `PREFIX` and passes on all others."""

    def __init__(self, app: Any, queue: Queue) -> None:
        self.app, self.queue = app, queue

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            return await self.app(scope, receive, send)
        file = await run_in_threadpool(self.find, scope["path"])
        answer = (FileResponse(file, media_type=KINDS[file.suffix], headers={"content-security-policy": POLICY}) if file else
                  PlainTextResponse("there is no such report: open it from the page again", 404))  # fmt: skip
        await answer(scope, receive, send)

    def find(self, path: str) -> Path | None:
        """The file for an address: only of a report's kinds, and within its evaluation's folder after following links."""
        secret, _, rest = path.removeprefix(PREFIX).partition("/")
        id, _, name = rest.partition("/")
        if not secrets.compare_digest(secret.encode(), SECRET.encode()):
            return None
        job = self.queue.find(id)
        if job is None or job.kind != KIND or "\0" in name:
            return None
        file, folder = Path(os.path.realpath(job.out / name)), Path(os.path.realpath(job.out))
        return file if folder in file.parents and file.suffix in KINDS and file.is_file() else None
