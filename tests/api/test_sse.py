"""Event streams: keep-alive comments, and exactly one close."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.waiting import PATIENCE_S, until
from tgi_local.api import sse


class Connection:
    """An ASGI client that reads everything and disconnects when told to."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.gone = asyncio.Event()
        self.num_closed = 0

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            self.sent.append(message["body"])

    async def close(self) -> None:
        self.num_closed += 1

    async def run(self, frames: AsyncIterator[bytes]) -> None:
        await sse.EventStream(frames, self.close, {})({"type": "http"}, self.receive, self.send)


async def slow(delays: list[float]) -> AsyncIterator[bytes]:
    for number, delay in enumerate(delays):
        await asyncio.sleep(delay)
        yield sse.frame({"number": number})


async def silent_until(condition: Callable[[], bool]) -> AsyncIterator[bytes]:
    """An event, silence until `condition` holds, and two more."""
    yield sse.frame({"number": 0})
    await until(condition)
    yield sse.frame({"number": 1})
    yield sse.frame({"number": 2})


async def test_frames_then_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection()
    await connection.run(slow([0, 0]))
    assert connection.sent == [b'data: {"number":0}\n\n', b'data: {"number":1}\n\n', b""]
    assert connection.num_closed == 1


async def test_idle_streams_are_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.05)
    connection = Connection()
    await connection.run(silent_until(lambda: connection.sent.count(b":\n\n") >= 2))
    assert [body for body in connection.sent if body.startswith(b"data")] == [
        sse.frame({"number": number}) for number in range(3)
    ]
    assert connection.sent[-1] == b""


async def test_the_sign_of_life_is_the_dialects_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.05)
    connection = Connection()
    ping = sse.typed_frame({"type": "ping"})
    frames = silent_until(lambda: connection.sent.count(ping) >= 2)
    await sse.EventStream(frames, connection.close, {}, ping)({"type": "http"}, connection.receive, connection.send)
    assert ping == b'event: ping\ndata: {"type":"ping"}\n\n'
    assert b":\n\n" not in connection.sent


async def test_a_client_that_goes_away_closes_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection()
    running = asyncio.ensure_future(connection.run(slow([0, 2 * PATIENCE_S])))
    await until(lambda: bool(connection.sent))
    connection.gone.set()
    await asyncio.wait_for(running, PATIENCE_S)
    assert connection.num_closed == 1 and connection.sent == [b'data: {"number":0}\n\n']


@pytest.mark.parametrize("frame", [sse.frame({"number": 0}), sse.KEEP_ALIVE, b""])
async def test_a_client_that_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch, frame: bytes) -> None:
    """Whatever it does not take: an event, a sign of life, or the end."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.02)
    monkeypatch.setattr(sse, "STALLED_S", 0.1)

    class Stalled(Connection):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message.get("body") == frame:
                await asyncio.sleep(2 * PATIENCE_S)

    connection = Stalled()
    delays = [0] if frame != sse.KEEP_ALIVE else [0, 2 * PATIENCE_S]
    await asyncio.wait_for(connection.run(slow(delays)), PATIENCE_S)
    assert connection.sent[-1] == frame and connection.num_closed == 1


async def test_work_for_a_client_that_goes_away_is_cancelled() -> None:
    connection = Connection()
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(2 * PATIENCE_S)
        finally:
            cancelled.set()

    class Request:
        receive = staticmethod(connection.receive)

    running = asyncio.ensure_future(sse.until_disconnect(Request(), work()))  # type: ignore[arg-type]
    await begun.wait()
    connection.gone.set()
    with pytest.raises(sse.ClientGoneError):
        await asyncio.wait_for(running, PATIENCE_S)
    assert cancelled.is_set()
