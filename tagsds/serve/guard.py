"""What a request may be before anything answers it: for this host, from this page, not too long, and not too slow to arrive."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def hosts_of(host: str) -> tuple[str, ...]:
    """Names by which a server that listens at `host` may be called; (): any. A server on the loopback thus answers no page whose
    name was pointed at this machine (DNS rebinding)."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return (*LOOPBACK, host.lower()) if loopback else ()


class Guard:
    """ASGI middleware. `hosts` as of `hosts_of`; `most_bytes` of a body, which must arrive within `seconds`."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], most_bytes: int, seconds: float) -> None:
        self.app, self.hosts, self.most_bytes, self.seconds = app, hosts, most_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in known]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        problem = self.refusal(scope, headers)
        if problem is None:
            try:
                body: bytes | None = await asyncio.wait_for(self.body(receive), self.seconds)
            except TimeoutError:
                problem = 408, f"the request did not arrive within {self.seconds:g} seconds; send it again."
            else:
                if body is None:
                    return  # the client is gone
                if len(body) > self.most_bytes:
                    problem = 413, f"the request has more than {self.most_bytes} bytes; send a shorter one."
        if problem is not None:
            await JSONResponse({"error": problem[1]}, problem[0])(scope, receive, with_headers)
            return
        given = False

        async def once() -> Message:
            nonlocal given
            if given:
                return await receive()  # the end of the connection
            given = True
            return {"type": "http.request", "body": body or b"", "more_body": False}

        await self.app(scope, once, with_headers)

    def refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and sentence for a request that is refused by its headers."""
        host = name_of(headers.get("host", ""))
        if self.hosts and host not in self.hosts:
            return 421, f"this server answers for {self.hosts[0]}, not for '{host[:80]}'; start it with --host to serve others."
        if scope["method"] == "POST" and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "a page of another site asks; open the page of this server."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:12]) > self.most_bytes:
            return 413, f"the request has more than {self.most_bytes} bytes; send a shorter one."
        return None

    async def body(self, receive: Receive) -> bytes | None:
        """The whole body, up to a byte more than is allowed; None where the client has gone."""
        parts: list[bytes] = []
        size = 0
        while True:
            message: dict[str, Any] = dict(await receive())
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.most_bytes or not message.get("more_body", False):
                return b"".join(parts)[: self.most_bytes + 1]


def name_of(host: str) -> str:
    """Of a Host header, without the port: "[::1]:8000" -> "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()
