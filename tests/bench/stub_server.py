"""A server of completions that behaves as the model's name says: well, or in one of the ways servers fail."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

KEY = "the-key"
NUM_TOKENS = 4


@dataclass
class Stub:
    """A running stub; `bodies` are the requests it has read."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_connections: int = 0

    @property
    def streamed(self) -> list[dict[str, Any]]:
        return [body for body in self.bodies if body.get("stream")]


@contextlib.contextmanager
def serving(models: bool = True, key: str | None = None) -> Iterator[Stub]:
    """The stub on a free port, in a thread of its own; `models` whether /v1/models names one."""
    loop = asyncio.new_event_loop()
    stub = Stub("")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stub.num_connections += 1
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while await _answer(stub, reader, writer, models, key):
                    await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = loop.run_until_complete(asyncio.start_server(connected, "127.0.0.1", 0))
    stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield stub
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(_close(server))
        loop.close()


async def _close(server: asyncio.Server) -> None:
    server.close()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(
    stub: Stub, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, models: bool, key: str | None
) -> bool:
    """Whether the connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next(int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length"))
    body = await reader.readexactly(length)
    if key is not None and f"bearer {key}" not in head:
        return _reply(writer, 401, {"error": {"message": "no key"}})
    if head.startswith("get /v1/models"):
        return _reply(writer, 200, {"data": [{"id": "good"}] if models else []})
    request = json.loads(body)
    stub.bodies.append(request)
    usage = {"prompt_tokens": num_tokens(request["prompt"]), "completion_tokens": NUM_TOKENS}
    behaviour = request["model"]
    if behaviour == "unknown":
        return _reply(writer, 404, {"error": {"message": "no such model"}})
    if not request.get("stream"):
        return _reply(
            writer, 200, {"choices": [{"text": " a"}], **({"usage": usage} if behaviour != "uncounted" else {})}
        )
    is_warm_up = len(stub.streamed) == 1
    return await _stream(writer, "good" if is_warm_up and behaviour in LATE else behaviour, usage)


# Ways to fail that show only after the warm-up request has been answered well.
LATE = ("busy", "error-event", "cut", "endless", "no-stream", "nonsense", "drops")


async def _stream(writer: asyncio.StreamWriter, behaviour: str, usage: dict[str, int]) -> bool:
    if behaviour == "busy":
        return _reply(writer, 429, {"error": "Model is overloaded", "error_type": "overloaded"}, indent=2)
    if behaviour == "no-stream":
        return _reply(writer, 200, {"choices": [{"text": "all at once"}]})
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    packed = behaviour == "packed"
    texts = [" a b", "", " c d"] if packed else [" a"] * NUM_TOKENS
    _event(writer, _choice(texts[0]))
    if behaviour == "error-event":
        _event(writer, {"error": {"message": "the model failed"}})
    elif behaviour == "nonsense":
        _chunk(writer, b"data: {not json\n\n")
    elif behaviour == "drops":
        await writer.drain()
        return False
    elif behaviour == "endless":
        await asyncio.sleep(3600)
    elif behaviour != "cut":
        for text in texts[1:]:
            _event(writer, _choice(text))
        _event(writer, _choice("", finish="length"))
        if behaviour not in ("uncounted", "no-usage"):
            _event(writer, {"choices": [], "usage": usage})
        _chunk(writer, b"data: [DONE]\r\n\r\n")
    writer.write(b"0\r\n\r\n")
    return behaviour != "closes"


def num_tokens(prompt: str | list[int]) -> int:
    """A word is a token, and a BOS token stands before them."""
    return 1 + (len(prompt) if isinstance(prompt, list) else len(prompt.split()))


def _choice(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}], "usage": None}


def _event(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    _chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    # In two pieces: an event may end anywhere in what a socket delivers.
    for part in (data[: len(data) // 2], data[len(data) // 2 :]):
        writer.write(b"%x\r\n%s\r\n" % (len(part), part))


def _reply(writer: asyncio.StreamWriter, status: int, body: dict[str, Any], indent: int | None = None) -> bool:
    text = json.dumps(body, indent=indent).encode()
    writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(text)) + text)
    return True
