"""Access control: only the server's own page may send requests, and it may load nothing from elsewhere."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = ("default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
          "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss:; worker-src 'self' blob:; "
          "frame-ancestors 'self'")  # fmt: skip
"""Keeps the browser from loading anything from other servers."""


HEADERS = ((b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer"),
           (b"x-content-type-options", b"nosniff"))  # fmt: skip


class OwnPagesOnly:
    """Refuses requests from other web pages, or with a foreign host name (DNS rebinding)."""

    def __init__(self, app: Any, hosts: tuple[str, ...]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        if not self.allows(headers.get("host", ""), headers.get("origin", "")):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            return await send({"type": "http.response.body", "body": b"only this server's own page is served"})

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self.app(scope, receive, with_policy)

    def allows(self, host: str, origin: str) -> bool:
        """Whether a request with these headers is our own page's."""
        if self.hosts and urlsplit(f"//{host}").hostname not in self.hosts:
            return False
        return not origin or urlsplit(origin).netloc == host
