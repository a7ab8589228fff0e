"""One request and its answer on their way through the gate: the body is bounded, the headers are completed."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from starlette.types import Message, Receive, Scope, Send

from tgi_local.api import sign_in
from tgi_local.api.error_responses import RETRY_AFTER_S, refusal_body

RawHeaders = list[tuple[bytes, bytes]]

# How much of a body that is too large is still taken, and for how long.
_MAX_DISCARDED_BYTES: Final = 64 * 1024 * 1024
_DISCARD_S: Final = 2.0
# How long a body may pause, and how many bytes of bodies that are not whole may be held at once: two of the largest, at least.
BODY_PAUSE_S: Final = 30.0
MIN_HELD_BYTES: Final = 64 * 1024 * 1024
PAGE_API_PREFIX: Final = "/gradio_api/"
TEXT_413: Final = "Failed to buffer the request body: length limit exceeded"
NOT_FRAMED: Final = "'none'"
# What the page needs and no more: Gradio's index has its configuration in an inline script, and images come from
# nowhere but here, whatever a model writes.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)


class Refusal(Exception):
    """A request that goes no further. `text` is empty for an empty body and never echoes the request."""

    def __init__(
        self, status: int, text: str, error_type: str = "validation", *, is_plain: bool = False, closes: bool = False
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.error_type = error_type
        self.is_plain = is_plain  # plain text on native routes: TGI's form for what fails before a handler
        self.closes = closes  # the connection: nobody knows where the next request would begin


class CutOff(Exception):
    """Unwinds the app once the gate has answered in its place."""


class TooManyBodies(Exception):
    """The bodies that are on their way would hold too much memory together."""


class BodiesOnTheWay:
    """How many bytes of bodies are held that are not whole yet: whole ones are requests, and counted as those."""

    def __init__(self, max_body_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max(MIN_HELD_BYTES, 2 * max_body_bytes)

    def check(self) -> None:
        """Raises TooManyBodies."""
        if self.num_bytes > self._max_bytes:
            raise TooManyBodies


class Exchange:
    """Owns one request's way through the gate: counts its body, completes the headers of its answer."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        max_body_bytes: int,
        frame_ancestors: str,
        bodies: BodiesOnTheWay,
        cors_headers: RawHeaders,
    ) -> None:
        self.scope = scope
        self.is_cut_off = False  # the gate has answered, whatever the app still sends
        self._receive = receive
        self._send = send
        self._max_body_bytes = max_body_bytes
        self._frame_ancestors = frame_ancestors
        self._bodies = bodies
        self._cors_headers = cors_headers
        self._is_started = False
        self._num_body_bytes = 0
        self._num_held_bytes = 0
        self._has_more_body = True

    async def receive(self) -> Message:
        """The app's `receive`; answers itself when a body grows over the limit, stops coming, or when too many come."""
        if self.is_cut_off:
            raise CutOff
        try:
            async with asyncio.timeout(BODY_PAUSE_S if self._has_more_body else None):
                message = await self._receive_counted()
            self._hold(len(message.get("body", b"")))
        except TimeoutError:
            return await self._cut_off(Refusal(408, "The request body stopped coming", is_plain=True, closes=True))
        except TooManyBodies:
            text = "Too many request bodies are on their way"
            return await self._cut_off(Refusal(429, text, "overloaded", closes=True))
        if self._num_body_bytes > self._max_body_bytes:
            return await self._cut_off(Refusal(413, TEXT_413, is_plain=True, closes=True))
        return message

    def end(self) -> None:
        """Nothing more is received or sent."""
        self._bodies.num_bytes -= self._num_held_bytes
        self._num_held_bytes = 0

    def _hold(self, num_bytes: int) -> None:
        """Count a body as long as it is not whole; from then on it is a request, and bounded as such."""
        if not self._has_more_body:
            self.end()
            return
        self._num_held_bytes += num_bytes
        self._bodies.num_bytes += num_bytes
        self._bodies.check()

    async def _cut_off(self, refusal: Refusal) -> Message:
        """Answer in place of the app, and raise CutOff; where it has begun to answer, its client has gone."""
        if self._is_started:
            return {"type": "http.disconnect"}
        await self.refuse(refusal)
        self.is_cut_off = True
        raise CutOff

    async def send(self, message: Message) -> None:
        """The app's `send`, with our headers in every answer."""
        if self.is_cut_off:
            return
        if message["type"] == "http.response.start":
            self._is_started = True
            message = {**message, "headers": self._complete(message.get("headers", ()))}
        await self._send(message)

    async def read_body(self, max_bytes: int) -> bytes:
        """The whole body of a form. Raises `Refusal` when it is longer."""
        body = bytearray()
        while True:
            message = await self.receive()
            body += message.get("body", b"")
            if len(body) > max_bytes:
                raise Refusal(413, TEXT_413)
            if not message.get("more_body", False):
                return bytes(body)

    async def respond(self, status: int, headers: RawHeaders | None = None, body: bytes = b"") -> None:
        length = (b"content-length", str(len(body)).encode())
        await self.send({"type": "http.response.start", "status": status, "headers": [*(headers or []), length]})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        if status == 413:
            await self._discard()
        await self.send({"type": "http.response.body", "body": b""})

    async def _discard(self) -> None:
        """Take what is still on its way, within bounds: a connection that is closed before is reset, the answer lost."""
        if header_values(list(self.scope["headers"]), b"expect"):
            return  # nothing is on its way before it is asked for
        with suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_S):
                while self._has_more_body and self._num_body_bytes < _MAX_DISCARDED_BYTES:
                    await self._receive_counted()

    async def _receive_counted(self) -> Message:
        message = await self._receive()
        self._num_body_bytes += len(message.get("body", b""))
        self._has_more_body = message.get("more_body", False)
        return message

    async def respond_page(self, status: int, message: str | None = None) -> None:
        """The sign-in page."""
        headers = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
        await self.respond(status, [*headers, *_challenge(status)], sign_in.sign_in_page(message))

    async def refuse(self, refusal: Refusal) -> None:
        """The refusal in the form of the route that was asked."""
        if refusal.status == 401 and _wants_page(self.scope):
            await self.respond_page(401)
            return
        content_type, body = refusal_body(
            self.scope["path"], refusal.status, refusal.text, refusal.error_type, is_plain=refusal.is_plain
        )
        headers = [(b"content-type", content_type)] if body else []
        if refusal.closes:
            headers.append((b"connection", b"close"))
        if refusal.status == 429:
            headers.append((b"retry-after", RETRY_AFTER_S.encode()))
        await self.respond(refusal.status, [*headers, *_challenge(refusal.status)], body)

    def _complete(self, headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
        """An answer's headers with ours in place; the app has no say in CORS."""
        replaced = (b"x-content-type-options", b"referrer-policy")
        kept = [
            (name, value)
            for name, value in headers
            if name.lower() not in replaced and not name.lower().startswith(b"access-control-")
        ]
        kept += [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
        is_html = any(value.lower().startswith(b"text/html") for value in header_values(kept, b"content-type"))
        if is_html and not header_values(kept, b"content-security-policy"):
            policy = f"{CONTENT_SECURITY_POLICY}; frame-ancestors {self._frame_ancestors}"
            kept.append((b"content-security-policy", policy.encode()))
        return [*kept, *self._cors_headers]


def _challenge(status: int) -> RawHeaders:
    return [(b"www-authenticate", b"Bearer")] if status == 401 else []


def _wants_page(scope: Scope) -> bool:
    """Whether a person's browser asks for a page, not a script for data."""
    if scope["method"] not in ("GET", "HEAD") or scope["path"].startswith(("/v1/", PAGE_API_PREFIX)):
        return False
    return any(b"text/html" in accept.lower() for accept in header_values(list(scope["headers"]), b"accept"))


def header_values(headers: RawHeaders, name: bytes) -> list[bytes]:
    return [value for header, value in headers if header.lower() == name]
