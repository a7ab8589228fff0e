"""Server-sent events: framing, keep-alive, and the client that goes away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

KEEP_ALIVE_S = 15.0
# A client that reads nothing for so long is given up; its request slot serves others.
STALLED_S = 60.0
KEEP_ALIVE = b":\n\n"
DONE = b"data: [DONE]\n\n"


class ClientGoneError(Exception):
    """The client closed the connection; nobody reads the answer."""


def frame(data: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def typed_frame(data: Mapping[str, Any]) -> bytes:
    """A frame whose event line repeats the `type` of its data."""
    kind: str = data["type"]
    return f"event: {kind}\n".encode() + frame(data)


class EventStream(Response):
    """Streams frames; when the client goes, or at the end, `close` is awaited exactly once."""

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None]],
        headers: Mapping[str, str],
        keep_alive: bytes = KEEP_ALIVE,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._frames = frames
        self._close = close
        self._keep_alive_frame = keep_alive
        self._active_s = 0.0  # when something was last given to the client's connection
        self._is_sending = False
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        # TGI sends the bare media type.
        self.headers["content-type"] = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._active_s = asyncio.get_running_loop().time()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            with suppress(ClientGoneError, OSError):
                await _unless(self._send_frames(send), _disconnected(receive), self._watch(send))
        finally:
            await self._close()

    async def _send_frames(self, send: Send) -> None:
        # Watched from beside: a timeout around every `send` takes a tenth of the time an event costs.
        clock = asyncio.get_running_loop().time
        async for body in self._frames:
            self._active_s = clock()
            self._is_sending = True
            await send({"type": "http.response.body", "body": body, "more_body": True})
            self._is_sending = False
        self._active_s = clock()
        self._is_sending = True
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, send: Send) -> None:
        """A sign of life after every idle KEEP_ALIVE_S, so that proxies and clients do not give up.

        Returns once the client has taken nothing for STALLED_S.
        """
        clock = asyncio.get_running_loop().time
        while True:
            limit_s = STALLED_S if self._is_sending else KEEP_ALIVE_S
            left_s = self._active_s + limit_s - clock()
            if left_s > 0:
                # No longer than either limit: what the stream does may change meanwhile.
                await asyncio.sleep(min(left_s, STALLED_S, KEEP_ALIVE_S))
            elif self._is_sending:
                return
            else:
                try:
                    async with asyncio.timeout(STALLED_S):
                        await send({"type": "http.response.body", "body": self._keep_alive_frame, "more_body": True})
                except OSError:  # TimeoutError is one
                    return
                self._active_s = clock()


async def until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, unless the client goes first: then `work` is cancelled and ClientGoneError raised."""
    return await _unless(work, _disconnected(request.receive))


async def _unless(work: Awaitable[T], *ends: Awaitable[None]) -> T:
    """The result of `work`, unless one of `ends` is over first: then ClientGoneError.

    Where one is over already, `work` does not begin.
    """
    watchers = [asyncio.ensure_future(end) for end in ends]
    task: asyncio.Future[T] | None = None
    try:
        await asyncio.sleep(0)
        if not any(watcher.done() for watcher in watchers):
            task = asyncio.ensure_future(work)
            await asyncio.wait([task, *watchers], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        raise ClientGoneError()
    finally:
        task = task or asyncio.ensure_future(work)  # cancelled before its first step, it never takes one
        task.cancel()
        for watcher in watchers:
            watcher.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
