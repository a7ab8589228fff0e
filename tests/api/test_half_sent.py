"""What is sent by halves: it holds neither memory nor connections for long, and takes nothing from what comes whole."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from tgi_local.api import exchange, http_server
from tgi_local.api.security import SecurityGate, SecurityPolicy

LIMIT = 40
HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json")]


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that answers with the length of the body."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


class Upload:
    """One request through `gate`, whose body comes as the test says."""

    def __init__(self, gate: SecurityGate) -> None:
        self._pieces: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._sent: list[dict[str, Any]] = []
        scope = {"type": "http", "method": "POST", "path": "/generate", "raw_path": b"/generate", "headers": HEADERS}
        self._task = asyncio.ensure_future(gate(scope, self._pieces.get, self._keep))

    async def _keep(self, message: Any) -> None:
        self._sent.append(message)

    async def send(self, num_bytes: int, *, last: bool = False) -> None:
        self._pieces.put_nowait({"type": "http.request", "body": b"x" * num_bytes, "more_body": not last})
        while not self._pieces.empty():
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)

    def leave(self) -> None:
        self._pieces.put_nowait({"type": "http.disconnect"})

    async def answer(self) -> tuple[int, dict[bytes, bytes], bytes]:
        await asyncio.wait_for(self._task, 5)
        start, *rest = self._sent
        return start["status"], dict(start["headers"]), b"".join(message["body"] for message in rest)

    @property
    def is_answered(self) -> bool:
        return bool(self._sent)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> SecurityGate:
    """Two bodies of the largest size fit, and half of a third."""
    monkeypatch.setattr(exchange, "MIN_HELD_BYTES", 100)
    return SecurityGate(read_all, SecurityPolicy(max_body_bytes=LIMIT))


async def test_half_sent_bodies_are_bounded_together(gate: SecurityGate) -> None:
    first, second, third = (Upload(gate) for _ in range(3))
    for upload in (first, second):
        await upload.send(LIMIT)
    await third.send(LIMIT)
    status, headers, body = await third.answer()
    assert (status, headers[b"retry-after"], headers[b"connection"]) == (429, b"1", b"close")
    assert b'"error_type":"overloaded"' in body
    assert not first.is_answered and not second.is_answered, "they go on"
    whole = Upload(gate)
    await whole.send(LIMIT, last=True)
    assert (await whole.answer())[0] == 200, "what comes whole is no half-sent body"
    await first.send(0, last=True)
    assert (await first.answer())[::2] == (200, b"40")
    fourth = Upload(gate)
    await fourth.send(LIMIT)
    assert not fourth.is_answered, "the first has made room"
    for upload in (second, fourth):
        upload.leave()
        await upload.answer()


async def test_a_client_that_goes_gives_its_room_back(gate: SecurityGate) -> None:
    for _ in range(10):
        upload = Upload(gate)
        await upload.send(LIMIT)
        assert not upload.is_answered
        upload.leave()
        await upload.answer()


async def test_a_body_that_stops_coming_is_told_so(gate: SecurityGate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BODY_PAUSE_S", 0.01)
    upload = Upload(gate)
    await upload.send(1)
    status, headers, body = await upload.answer()
    assert (status, headers[b"connection"], body) == (408, b"close", b"The request body stopped coming")


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[int]:
    config = uvicorn.Config(app, http=http_server.Connection, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: http_server.Connection(config, state, {}), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*state.tasks)


@pytest.mark.parametrize("head", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: "])
async def test_a_head_that_does_not_come_ends_the_connection(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT_S", 0.05)
    async with listening(read_all) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_an_answer_may_take_longer_than_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT_S", 0.01)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.05)
        await read_all(scope, receive, send)

    async with listening(slow) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()
