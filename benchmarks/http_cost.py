"""CPU time of the HTTP path per streamed token: the whole server, but a stand-in for the engine that computes nothing.

The stand-in gives one token to every request at a steady pace. Counted is the CPU time of the event loop's thread alone,
which does not depend on what else the machine does; the client is another process. A run with one token per answer is
taken off, so that the cost of a token holds nothing of the cost of a request.
"""

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tgi_local.types import FinishReason, GenerationRequest, SampledToken, StepStats, TokenEvent

ROOT = Path(__file__).parents[1]
STREAMS = (1, 32, 64)
NUM_TOKENS = {1: 2000, 32: 300, 64: 150}
TOKENS_PER_S = {1: 400.0, 32: 160.0, 64: 40.0}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True},
    "/v1/completions": {"model": "m", "prompt": "Hello", "stream": True},
    "/generate_stream": {"inputs": "Hello"},
}


class PacedEngine:
    """The interface of Engine, as its thread uses it. One token a step for each request, a step every `step_s`."""

    def __init__(self, token_ids: list[int], step_s: float) -> None:
        self._token_ids = token_ids
        self._step_s = step_s
        self._random = random.Random(0)
        self._left: dict[str, int] = {}
        self._begun: set[str] = set()
        self._next_s = 0.0
        self.last_return_s = time.monotonic()

    @property
    def has_work(self) -> bool:
        return bool(self._left)

    def submit(self, request: GenerationRequest) -> None:
        self._left[request.request_id] = request.stopping.max_new_tokens

    def cancel(self, request_id: str) -> bool:
        return self._left.pop(request_id, None) is not None

    def step(self) -> tuple[list[TokenEvent], StepStats]:
        self._next_s = max(self._next_s + self._step_s, time.monotonic())
        time.sleep(max(0.0, self._next_s - time.monotonic()))
        self.last_return_s = time.monotonic()
        events = [self._event(request_id) for request_id in self._left]
        self._left = {request_id: left - 1 for request_id, left in self._left.items() if left > 1}
        return events, self.stats(len(events))

    def stats(self, num_rows: int = 0) -> StepStats:
        return StepStats(len(self._left), 0, 0, 1, self._step_s, num_rows=num_rows, num_generated_tokens=num_rows)

    def fail_all(self, reason: str) -> list[TokenEvent]:
        return []

    def _event(self, request_id: str) -> TokenEvent:
        token = SampledToken(self._random.choice(self._token_ids), -1.0)
        reason = FinishReason.LENGTH if self._left[request_id] == 1 else None
        now_s, is_first = self.last_return_s, request_id not in self._begun
        self._begun.add(request_id)
        return TokenEvent(request_id, token, reason, started_s=now_s, emitted_s=now_s, is_first=is_first)


def serve(step_s: float) -> None:
    """The server as app.py wires it, without a page. Prints its port, then on every line read its CPU seconds."""
    from tests.in_process import INFO, LIMITS
    from tgi_local.api.context import ApiContext
    from tgi_local.api.http_server import HttpServer, bind
    from tgi_local.api.security import SecurityGate, SecurityPolicy
    from tgi_local.api.server import create_app
    from tgi_local.engine.engine_thread import EngineThread
    from tgi_local.metrics import Metrics
    from tgi_local.service import ServedModel, Service
    from tgi_local.text.chat_template import ChatTemplate
    from tgi_local.text.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.load(ROOT / "tgi_local" / "demo_model")
    ids = [i for i in range(tokenizer.vocab_size) if tokenizer.is_known(i) and not tokenizer.is_special(i)]
    service = Service(Metrics())
    engine = EngineThread(PacedEngine(ids, step_s), service.metrics.step_done)  # type: ignore[arg-type]
    limits = type(LIMITS)(2, 4, 5, 4000, 8000, 4, 128, 1024, tokenizer.vocab_size)

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        engine.start()
        service.attach(ServedModel(INFO, limits, tokenizer, ChatTemplate(tokenizer), engine))
        threading.Thread(target=answer, daemon=True).start()
        yield

    def answer() -> None:
        print(listener.getsockname()[1], flush=True)
        for _ in sys.stdin:
            print(main_thread_cpu_s(), flush=True)
        server.should_exit = True

    app = create_app(ApiContext(service, 2, None), lifespan)
    server = HttpServer(SecurityGate(app, SecurityPolicy()), service, drain_s=1.0, behind_proxy=False)
    listener = bind("127.0.0.1", 0)
    server.run([listener])


def main_thread_cpu_s() -> float:
    """Of this process."""
    clock = time.pthread_getcpuclockid(threading.main_thread().ident or 0)
    return time.clock_gettime(clock)


def stream_once(port: int, path: str, num_tokens: int) -> int:
    """One answer read to its end, in large pieces; the number of events with data."""
    body = dict(BODIES[path])
    if path == "/generate_stream":
        body["parameters"] = {"max_new_tokens": num_tokens}
    else:
        body["max_tokens"] = num_tokens
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + raw)
        received = bytearray()
        while not received.endswith(b"0\r\n\r\n"):
            piece = connection.recv(65536)
            if not piece:
                raise RuntimeError(f"cut off: {bytes(received[-300:])!r}")
            received += piece
    return received.count(b"data:")


def measure(path: str, num_streams: int) -> dict[str, float]:
    step_s = 1 / TOKENS_PER_S[num_streams]
    command = [sys.executable, __file__, "--serve", str(step_s)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    port = int(process.stdout.readline())

    def cpu_s() -> float:
        assert process.stdin is not None and process.stdout is not None
        print(file=process.stdin, flush=True)
        return float(process.stdout.readline())

    def run(num_tokens: int) -> tuple[float, int]:
        counts: list[int] = []
        threads = [
            threading.Thread(target=lambda: counts.append(stream_once(port, path, num_tokens)))
            for _ in range(num_streams)
        ]
        started_s = cpu_s()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(counts) == num_streams, "a stream was cut off"
        return cpu_s() - started_s, sum(counts)

    run(20)
    per_request_s = min(run(1)[0] for _ in range(5)) / num_streams
    used_s, num_events = run(NUM_TOKENS[num_streams])
    process.stdin.close()
    process.wait(20)
    num_tokens = NUM_TOKENS[num_streams] * num_streams
    per_token_s = (used_s - per_request_s * num_streams) / num_tokens
    return {
        "us_per_token": per_token_s * 1e6,
        "us_per_request": per_request_s * 1e6,
        "events_per_token": num_events / num_tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="take the least of so many (default: 3)")
    parser.add_argument("--path", action="append", choices=list(BODIES), help="default: chat")
    parser.add_argument("--streams", type=int, action="append", choices=STREAMS, help="default: all")
    parser.add_argument("--serve", type=float, metavar="STEP_S", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    for path in options.path or ["/v1/chat/completions"]:
        for num_streams in options.streams or STREAMS:
            rows = [measure(path, num_streams) for _ in range(options.repeat)]
            best = {name: min(row[name] for row in rows) for name in rows[0]}
            spread = statistics.median(row["us_per_token"] for row in rows)
            print(
                f"{path:22} {num_streams:3} streams: {best['us_per_token']:6.1f} us per token (median {spread:.1f}), "
                f"{best['us_per_request']:6.0f} us per request, {best['events_per_token']:.2f} events per token"
            )


if __name__ == "__main__":
    main()
