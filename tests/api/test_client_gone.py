"""A client that goes, at every stage: no step of the engine is for it any more. Steps happen when the test says so."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.in_process import InProcess, serving
from tests.waiting import until
from tgi_local.api.server import create_app
from tgi_local.engine.step import StepPlan
from tgi_local.text.chat_template import ChatTemplate
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.types import GenerationRequest

MESSAGES = [{"role": "user", "content": "hi"}]
LONG: dict[str, Any] = {"max_new_tokens": 200}
NATIVE: dict[str, Any] = {"inputs": "hi", "parameters": LONG}
CHAT: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 200}
# path, body, how many sequences it makes
CALLS: list[tuple[str, dict[str, Any], int]] = [
    ("/", NATIVE, 1),
    ("/generate", NATIVE, 1),
    ("/generate", {"inputs": "hi", "parameters": LONG | {"best_of": 2, "do_sample": True}}, 2),
    ("/generate_stream", NATIVE, 1),
    ("/v1/chat/completions", CHAT, 1),
    ("/v1/chat/completions", CHAT | {"n": 3}, 3),
    ("/v1/chat/completions", CHAT | {"n": 3, "stream": True}, 3),
    ("/v1/completions", {"prompt": ["hi", "there"], "max_tokens": 200, "n": 2}, 4),
    ("/v1/completions", {"prompt": ["hi", "there"], "max_tokens": 200, "stream": True}, 2),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 200}, 1),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 200, "stream": True}, 1),
    ("/v1/messages", CHAT, 1),
    ("/v1/messages", CHAT | {"stream": True}, 1),
    ("/invocations", NATIVE, 1),
    ("/vertex", {"instances": [NATIVE, CHAT, NATIVE]}, 3),
    (
        "/v2/models/m/versions/1/infer",
        {
            "inputs": [{"name": "a", "data": ["hi"]}, {"name": "b", "data": ["ho"]}],
            "outputs": [{"name": "a"}, {"name": "b"}],
            "parameters": LONG,
        },
        2,
    ),
]
each_call = pytest.mark.parametrize(
    ("path", "body", "num_sequences"), CALLS, ids=[f"{i} {c[0]}" for i, c in enumerate(CALLS)]
)


class Client:
    """One request, straight into the application; `leave` is what a closed connection is there."""

    def __init__(self, server: InProcess, path: str, body: dict[str, Any]) -> None:
        self._body: bytes | None = json.dumps(body).encode()
        self._gone = asyncio.Event()
        self.sent: list[Any] = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
            "scheme": "http",
            "root_path": "",
        }
        self.call = asyncio.ensure_future(create_app(server.api)(scope, self._receive, self._send))

    def leave(self) -> None:
        self._gone.set()

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


class Gate:
    """Lets the engine's thread take one step after another, or all."""

    def __init__(self, server: InProcess) -> None:
        self._permits = threading.Semaphore(0)
        self._is_open = False
        self.plans: list[StepPlan] = []
        server.runner.before_step = self._wait

    def step(self) -> None:
        self._permits.release()

    async def steps(self, count: int) -> None:
        """So many, and the next one has begun."""
        begun = max(len(self.plans), 1)
        await until(lambda: len(self.plans) == begun)
        for number in range(begun + 1, begun + count + 1):
            self.step()
            await self._begun(number)

    async def _begun(self, number: int) -> None:
        await until(lambda: len(self.plans) == number)

    def open(self) -> None:
        self._is_open = True
        self._permits.release()

    def _wait(self, plan: StepPlan) -> None:
        self.plans.append(plan)
        if not self._is_open:
            self._permits.acquire()


@asynccontextmanager
async def gated(folder: Path) -> AsyncIterator[tuple[InProcess, Gate]]:
    async with serving(folder) as server:
        gate = Gate(server)
        try:
            yield server, gate
        finally:
            gate.open()


def num_rows(gate: Gate) -> int:
    return len({row.request_id for plan in gate.plans for row in plan.rows})


@each_call
async def test_while_it_is_answered(tiny_folder: Path, path: str, body: dict[str, Any], num_sequences: int) -> None:
    async with gated(tiny_folder) as (server, gate):
        client = Client(server, path, body)
        await gate.steps(3)
        assert num_rows(gate) == num_sequences
        client.leave()
        await client.call
        assert not server.service._slots.num_taken
        gate.open()
        await server_idle(server)
        assert len(gate.plans) <= 4 + 2


async def server_idle(server: InProcess) -> None:
    model = server.service._model
    assert model is not None
    engine = model.engine._engine
    await until(lambda: not engine.has_work)


async def test_who_stays_is_answered(tiny_folder: Path) -> None:
    """The negative control."""
    async with gated(tiny_folder) as (server, gate):
        client = Client(server, "/generate", NATIVE)
        gate.open()
        await client.call
        assert len(gate.plans) == 200 and client.sent[0]["status"] == 200


async def test_while_it_waits_for_its_turn_or_its_long_prompt_is_read(tiny_folder: Path) -> None:
    async with gated(tiny_folder) as (server, gate):
        first = Client(server, "/generate", {"inputs": "x " * 120, "parameters": LONG})  # 64 tokens a step
        await until(lambda: len(gate.plans) == 1)
        waiting = [Client(server, "/generate", NATIVE) for _ in range(8)]
        await until(lambda: server.service._slots.num_taken == 9)
        for client in waiting:
            client.leave()
            await client.call
        gate.step()
        await until(lambda: len(gate.plans) == 2)
        assert num_rows(gate) == 1 and gate.plans[1].rows[0].start > 0
        first.leave()
        await first.call
        gate.open()
        await server_idle(server)
        assert num_rows(gate) == 1 and len(gate.plans) <= 4


class Held:
    """A function that ends when it is told to."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.has_begun = threading.Event()
        self.may_end = threading.Event()
        self.num_calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.num_calls += 1
        self.has_begun.set()
        self.may_end.wait()
        return self._function(*args, **kwargs)


@each_call
async def test_while_its_prompt_is_prepared(
    tiny_folder: Path, path: str, body: dict[str, Any], num_sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been prepared for nobody is never submitted; who still waits for a worker is not prepared."""
    async with gated(tiny_folder) as (server, gate):
        encode, render = Held(TextTokenizer.encode), Held(ChatTemplate.render)
        monkeypatch.setattr(TextTokenizer, "encode", lambda *args, **kwargs: encode(*args, **kwargs))
        monkeypatch.setattr(ChatTemplate, "render", lambda *args, **kwargs: render(*args, **kwargs))
        clients = [Client(server, path, body) for _ in range(4)]  # for two workers
        await until(lambda: server.service._workers.num_requests == 4 * num_sequences)
        await until(lambda: encode.num_calls + render.num_calls == 2)
        for client in clients:
            client.leave()
            await client.call
        assert server.service._workers.num_requests == 0
        encode.may_end.set()
        render.may_end.set()
        gate.open()
        await asyncio.to_thread(server.service._workers._threads.shutdown)
        num_texts = encode.num_calls + render.num_calls
        assert num_texts <= 4 and not gate.plans  # a template encodes what it has rendered
        text = server.service.metrics.render().decode()
        assert 'tgi_request_failure{err="dropped"} 4.0' in text and "tgi_request_count 4.0" in text


async def test_while_its_grammar_is_compiled(tiny_folder: Path) -> None:
    class Grammars:
        constrain = Held(lambda request, source: request)

    async with gated(tiny_folder) as (server, gate):
        model = server.service._model
        assert model is not None
        server.service._model = replace(model, grammars=Grammars())  # type: ignore[arg-type]
        grammar = {"type": "regex", "value": "a+"}
        client = Client(server, "/generate", {"inputs": "x", "parameters": LONG | {"grammar": grammar}})
        await until(Grammars.constrain.has_begun.is_set)
        client.leave()
        await client.call
        Grammars.constrain.may_end.set()
        gate.open()
        await asyncio.to_thread(server.service._workers._threads.shutdown)
        assert not gate.plans and not server.service._slots.num_taken


async def test_between_its_preparation_and_the_engine(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes in the very moment in which its request is ready."""
    from tgi_local.service import Service

    build = Service._build
    async with gated(tiny_folder) as (server, gate):

        async def leave_then_build(service: Service, *args: Any) -> GenerationRequest:
            request = await build(service, *args)
            client.leave()
            return request

        monkeypatch.setattr(Service, "_build", leave_then_build)
        for path, body, _ in CALLS[:6]:
            client = Client(server, path, body)
            await client.call
        gate.open()
        await server_idle(server)
        assert not gate.plans and not server.service._slots.num_taken
        dropped = sum(num_sequences for _, _, num_sequences in CALLS[:6])
        assert f'tgi_request_failure{{err="dropped"}} {dropped}.0' in server.service.metrics.render().decode()
