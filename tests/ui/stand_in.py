"""A stand-in for the server: it speaks the few routes the page calls, slowly or wrongly as a test wishes, and takes notes."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tests.waiting import wait_until

INFO: dict[str, Any] = {
    "model_id": "stand-in/tiny-chat",
    "model_dtype": "float32",
    "model_device_type": "cpu",
    "max_total_tokens": 2048,
}


@dataclass
class StandIn:
    """What the server will say, and what it saw. Tests write the first block and read the second."""

    pieces: list[str] = field(default_factory=lambda: ["Hello", " from", " the", " stand-in."])
    reasoning: list[str] = field(default_factory=list)
    delay_s: float = 0.01
    info: dict[str, Any] = field(default_factory=lambda: dict(INFO))
    health: dict[str, Any] | None = None  # the body of a 503, or None for healthy
    refuse: tuple[int, dict[str, Any]] | None = None  # answers the chat with this status and body
    break_after: int | None = None  # sends an error event after so many pieces
    finish_reason: str = "stop"

    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    finished: int = 0
    disconnected_at: list[float] = field(default_factory=list)

    def routes(self, app: FastAPI) -> FastAPI:
        app.get("/health")(self._health)
        app.get("/info")(self._info)
        app.post("/v1/chat/completions")(self._chat)
        return app

    def loads(self, detail: str) -> None:
        self.health = {"error": "loading", "error_type": "healthcheck", "state": "loading", "detail": detail}

    async def _health(self) -> Response:
        return Response() if self.health is None else JSONResponse(self.health, 503)

    async def _info(self) -> Response:
        return JSONResponse(self.info)

    async def _chat(self, request: Request) -> Response:
        self.requests.append(await request.json())
        self.headers.append(dict(request.headers))
        if self.health is not None:
            return JSONResponse({"error": {"message": "loading", "type": "server_error"}, "error_type": "loading"}, 503)
        if self.refuse is not None:
            status, body = self.refuse
            return JSONResponse(body, status)
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[bytes]:
        done, disconnected_at = False, self.disconnected_at  # the notes of this test, should the stream outlive it
        try:
            for count, delta in enumerate(self._deltas()):
                if count == self.break_after:
                    error = {
                        "error": {"message": "the engine stumbled", "type": "server_error"},
                        "error_type": "generation",
                    }
                    yield b"data: " + json.dumps(error).encode() + b"\n\n"
                    break
                yield _event([{"index": 0, "delta": delta, "finish_reason": None}])
                await asyncio.sleep(self.delay_s)
            else:
                last = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": self.finish_reason}
                yield _event([last])
                count = len(self.pieces)
                usage = {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": 9 + count}
                yield _event([], usage)
                yield b"data: [DONE]\n\n"
            done = True
        finally:
            if done:
                self.finished += 1
            else:
                disconnected_at.append(time.monotonic())

    def _deltas(self) -> list[dict[str, Any]]:
        thoughts = [{"role": "assistant", "reasoning": piece} for piece in self.reasoning]
        return thoughts + [{"role": "assistant", "content": piece} for piece in self.pieces]


def _event(choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
    chunk = {
        "object": "chat.completion.chunk",
        "id": "chatcmpl-1",
        "created": 1,
        "model": "stand-in",
        "system_fingerprint": "x",
        "choices": choices,
        "usage": usage,
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


class Served:
    """An ASGI app on a real socket, in a thread: only a real socket shows a disconnect."""

    def __init__(self, listener: socket.socket, app: FastAPI) -> None:
        self.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._listener = listener
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)

    def __enter__(self) -> "Served":
        self._thread.start()
        wait_until(lambda: self._server.started, lambda: "the stand-in server did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._listener.close()


def bound_socket() -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    return listener
