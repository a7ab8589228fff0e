"""What may wait for a worker, what a shutdown waits for, and where the work is done. Threads move when the test says so."""

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.in_process import LIMITS, InProcess, serving
from tests.waiting import until
from tgi_local.api import answers, body, routes_tgi
from tgi_local.errors import NotReadyError
from tgi_local.text.chat_template import ChatTemplate
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.types import RequestParameters

NUM_SLOTS = LIMITS.max_concurrent_requests
MESSAGES = [{"role": "user", "content": "hi"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/": {"inputs": "hi"},
    "/generate": {"inputs": "hi"},
    "/tokenize": {"inputs": "hi"},
    "/chat_tokenize": {"messages": MESSAGES},
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/responses/input_tokens": {"input": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/invocations": {"messages": MESSAGES},
}


@pytest.fixture
async def server(tiny_folder: Path) -> AsyncIterator[InProcess]:
    async with serving(tiny_folder) as running:
        yield running


class HeldTexts:
    """Tokenizing waits until `release`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._may_go = threading.Event()
        encode = TextTokenizer.encode

        def held(*args: Any, **kwargs: Any) -> list[int]:
            self._may_go.wait()
            return encode(*args, **kwargs)

        monkeypatch.setattr(TextTokenizer, "encode", held)

    def release(self) -> None:
        self._may_go.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, server: InProcess) -> HeldTexts:
    return HeldTexts(monkeypatch)


def ask(server: InProcess) -> "asyncio.Task[httpx.Response]":
    body = {"inputs": "hi", "parameters": {"max_new_tokens": 3}}
    return asyncio.ensure_future(server.client.post("/generate", json=body))


async def test_a_flood_of_prompts_is_refused_in_every_dialect(server: InProcess, held: HeldTexts) -> None:
    """As many are prepared as there are slots; the others are told at once, and hold no worker."""
    accepted = [ask(server) for _ in range(NUM_SLOTS)]
    await until(lambda: server.service._workers.num_requests == NUM_SLOTS)
    for path, request in ROUTES.items():
        response = await server.client.post(path, json=request)
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1, path
        assert "Model is overloaded" in response.text, path
        if path.startswith("/v1/messages"):
            assert response.json()["error"]["type"] == "rate_limit_error"
        elif path.startswith("/v1"):
            assert response.json()["error"]["type"] == "rate_limit_error"
            assert response.json()["error_type"] == "overloaded"
        else:
            assert response.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
    streamed = await server.client.post("/generate_stream", json={"inputs": "hi"})
    assert streamed.text == 'data: {"error":"Model is overloaded","error_type":"overloaded"}\n\n'
    flood = [ask(server) for _ in range(1000)]
    assert {response.status_code for response in await asyncio.gather(*flood)} == {429}
    large = {"inputs": "x" * 100_000}  # is parsed by a worker
    assert (await server.client.post("/generate", json=large)).status_code == 429
    held.release()
    assert {response.status_code for response in await asyncio.gather(*accepted)} == {200}
    assert server.service._workers.num_requests == server.service._slots.num_taken == 0
    assert (await ask(server)).status_code == 200


async def test_a_running_request_leaves_one_slot_less_to_prepare_for(server: InProcess, held: HeldTexts) -> None:
    taken = [
        await server.service.prepare_text([5], RequestParameters(max_new_tokens=2), 0.0) for _ in range(NUM_SLOTS - 1)
    ]
    async with server.service.open(taken):
        last = ask(server)
        await until(lambda: server.service._workers.num_requests == 1)
        assert (await ask(server)).status_code == 429
        held.release()
        assert (await last).status_code == 200


SEVERAL: list[tuple[str, dict[str, Any], int]] = [
    ("/v1/chat/completions", {"messages": MESSAGES, "n": 4, "max_tokens": 2}, 4),
    ("/v1/chat/completions", {"messages": MESSAGES, "n": 4, "max_tokens": 2, "stream": True}, 4),
    ("/v1/completions", {"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 2}, 6),
    ("/v1/completions", {"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 2, "stream": True}, 6),
    ("/v1/completions", {"prompt": "hi", "best_of": 3, "max_tokens": 2}, 3),
    ("/generate", {"inputs": "hi", "parameters": {"best_of": 2, "do_sample": True, "max_new_tokens": 2}}, 2),
    ("/vertex", {"instances": [{"inputs": "a"}, {"inputs": "b"}]}, 2),
    ("/v1/messages", ROUTES["/v1/messages"], 1),
    ("/v1/messages", {**ROUTES["/v1/messages"], "stream": True}, 1),
]


@pytest.mark.parametrize(("path", "request_body", "num_sequences"), SEVERAL)
async def test_who_is_prepared_has_the_slots_of_all_its_sequences(
    server: InProcess, held: HeldTexts, path: str, request_body: dict[str, Any], num_sequences: int
) -> None:
    """So that who was let in is never told so late that there is no room, whatever came in between."""
    asking = asyncio.ensure_future(server.client.post(path, json=request_body))
    await until(lambda: server.service._workers.num_requests == num_sequences)
    others = [ask(server) for _ in range(NUM_SLOTS)]
    held.release()
    answer = await asking
    assert answer.status_code == 200 and "overloaded" not in answer.text
    statuses = [response.status_code for response in await asyncio.gather(*others)]
    assert statuses.count(200) == NUM_SLOTS - num_sequences and statuses.count(429) == num_sequences
    assert server.service._workers.num_requests == server.service._slots.num_taken == 0


async def test_more_sequences_than_there_are_slots_are_refused_at_the_door(server: InProcess) -> None:
    """A 429 would be tried again for ever."""
    body = {"prompt": ["a", "b", "c"], "n": 6, "max_tokens": 2}
    refused = await server.client.post("/v1/completions", json=body)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "n"
    assert f"18 texts at once, and no more than {NUM_SLOTS}" in refused.json()["error"]["message"]
    counts = server.service.metrics.render().decode()
    assert 'tgi_request_failure{err="validation"} 1.0' in counts and "tgi_request_count 1.0" in counts
    assert (await server.client.post("/v1/completions", json={**body, "n": 5})).status_code == 200
    # Too many samples are wrong in themselves.
    parameters = {"best_of": 1000, "do_sample": True, "max_new_tokens": 2}
    refused = await server.client.post("/generate", json={"inputs": "hi", "parameters": parameters})
    assert refused.status_code == 422 and "best_of" in refused.json()["error"]
    assert server.service._workers.num_requests == 0


@pytest.mark.parametrize(("fields", "num_sequences"), [({"best_of": 2}, 2), ({}, 1)])
async def test_slots_are_taken_by_sequences(server: InProcess, fields: dict[str, int], num_sequences: int) -> None:
    taken = [
        await server.service.prepare_text([5], RequestParameters(max_new_tokens=2), 0.0) for _ in range(NUM_SLOTS - 1)
    ]
    async with server.service.open(taken):
        parameters = {"max_new_tokens": 2, "do_sample": True, **fields}
        response = await server.client.post("/generate", json={"inputs": "hi", "parameters": parameters})
        assert response.status_code == (200 if num_sequences == 1 else 429)


async def test_a_shutdown_waits_for_what_is_being_prepared(server: InProcess, held: HeldTexts) -> None:
    accepted = [ask(server) for _ in range(3)]
    prompts = {"prompt": ["hi", "there"], "max_tokens": 3}
    accepted.append(asyncio.ensure_future(server.client.post("/v1/completions", json=prompts)))
    await until(lambda: server.service._workers.num_requests == 5)  # one sequence each, and the two prompts'
    closing = asyncio.ensure_future(server.service.close(10))
    await until(lambda: server.service.state().name == "draining")
    assert (await ask(server)).status_code == 503
    with pytest.raises(NotReadyError):
        _ = server.service.model
    await asyncio.sleep(0.1)
    assert not closing.done()
    held.release()
    assert [response.status_code for response in await asyncio.gather(*accepted)] == [200] * 4
    await closing


async def test_a_shutdown_does_not_wait_for_ever(server: InProcess, held: HeldTexts) -> None:
    asking = ask(server)
    await until(lambda: server.service._workers.num_requests == 1)
    await server.service.close(0)
    held.release()
    assert (await asking).status_code == 503


async def test_nothing_is_left_of_a_thousand_requests(server: InProcess) -> None:
    """Good ones, wrong ones, refused ones and those whose client goes at any moment."""
    rng = random.Random(1)
    statuses = []
    counted_alone = []  # requests of which the metrics say no more than that they came

    async def one() -> None:
        path = rng.choice(list(ROUTES))
        request = dict(ROUTES[path])
        if rng.random() < 0.2:
            request = {"inputs": 5, "messages": 5}
        if path == "/v1/completions" and rng.random() < 0.5:
            request |= {"prompt": ["a", "b"], "n": 2}
        if path in ("/", "/generate"):
            request |= {"parameters": {"max_new_tokens": rng.randrange(1, 30)}}
        elif "token" not in path:
            request |= {"max_tokens": 20, "max_output_tokens": 20, "stream": rng.random() < 0.5}
        asking = asyncio.ensure_future(server.client.post(path, json=request))
        if rng.random() < 0.4:
            for _ in range(rng.randrange(30)):
                await asyncio.sleep(0)
            asking.cancel()
        result = (await asyncio.gather(asking, return_exceptions=True))[0]
        statuses.append(getattr(result, "status_code", None))
        counted_alone.append(path == "/chat_tokenize" and statuses[-1] == 200)

    async def several() -> None:
        for _ in range(40):
            await one()

    await asyncio.gather(*(several() for _ in range(25)))
    assert len(statuses) == 1000
    assert {200, None} <= set(statuses) <= {200, 400, 422, 429, None}
    await until(lambda: not server.service._slots.open)
    assert server.service._workers.num_requests == server.service._slots.num_taken == 0
    text = server.service.metrics.render().decode()
    counts = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}
    ended = sum(
        value for name, value in counts.items() if name.startswith(("tgi_request_success", "tgi_request_failure{"))
    )
    assert ended + sum(counted_alone) >= counts["tgi_request_count"] > 500


class Threads:
    """On which threads some functions ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.seen: dict[str, set[str]] = {}

    def watch(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            kind = "worker" if threading.current_thread().name.startswith("text") else "loop"
            self.seen.setdefault(name, set()).add(kind)
            return function(*args, **kwargs)

        self._monkeypatch.setattr(owner, name, noted)


@pytest.mark.parametrize("size", ["large", "small"])
async def test_the_event_loop_does_nothing_that_takes_long(
    server: InProcess, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small bodies and answers, the negative control, are worth no thread; text is a worker's in any case."""
    threads = Threads(monkeypatch)
    for owner, name in [
        (body, "_loads"),
        (body, "parse"),
        (routes_tgi, "generate_response"),
        (routes_tgi, "_write_spans"),
        (TextTokenizer, "encode"),
        (TextTokenizer, "encode_spans"),
        (ChatTemplate, "render"),
    ]:
        threads.watch(owner, name)
    monkeypatch.setattr(body, "INLINE_BYTES", 64 * 1024 if size == "small" else 10)
    monkeypatch.setattr(answers, "INLINE_ITEMS", 512 if size == "small" else 0)
    text = "the quick brown fox"
    await server.client.post("/generate", json={"inputs": text, "parameters": {"max_new_tokens": 1}})
    for path in ("/v1/chat/completions", "/v1/messages", "/chat_tokenize"):
        request = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
        assert (await server.client.post(path, json=request)).status_code == 200
    spans = (await server.client.post("/tokenize", json={"inputs": text})).json()
    assert [span["text"] for span in spans] == [text[span["start"] : span["stop"]] for span in spans]
    by_size = {"worker"} if size == "large" else {"loop"}
    assert threads.seen == {
        "_loads": by_size,
        "parse": by_size,
        "generate_response": by_size,
        "_write_spans": {"worker"},
        "encode": {"worker"},
        "encode_spans": {"worker"},
        "render": {"worker"},
    }


async def test_a_long_list_is_written_in_pieces(server: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "CHUNK_ITEMS", 3)
    for count in range(12):
        items = [{"id": i, "text": f'"{i}"'} for i in range(count)]
        assert orjson.loads(b"".join(answers.list_pieces(items, dict))) == items


@pytest.mark.parametrize("few", [0, 2, 128])
def test_an_answer_is_written_in_pieces(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "CHUNK_ITEMS", 3)
    monkeypatch.setattr(answers, "FEW_ITEMS", few)
    tokens = [{"id": i, "logprob": -i / 3, "text": 'ż"\\'} for i in range(8)]
    lists = {"tokens": tokens, "nothing": [], "none": None, "map": {}, "floats": [0.5, None, 1e-9]}
    value = {"id": "x", "choices": [{"index": 0, "logprobs": lists}, {"index": 1, "logprobs": None}], "usage": {"n": 1}}
    pieces = list(answers.value_pieces(value))
    assert b"".join(pieces) == orjson.dumps(value)
    assert len(pieces) > 5


async def test_prompt_tokens_are_turned_into_text_by_a_worker(
    server: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tgi_local import open_generation
    from tgi_local.stream import TextStream

    threads = Threads(monkeypatch)
    threads.watch(TextStream, "step")
    monkeypatch.setattr(open_generation, "INLINE_TOKENS", 4)
    request = {"prompt": list(range(5, 20)), "max_tokens": 1, "echo": True, "logprobs": 1}
    answer = (await server.client.post("/v1/completions", json=request)).json()
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 16
    assert threads.seen == {"step": {"worker"}}


async def test_the_first_of_half_a_million_errors_is_the_last_one_made(server: InProcess) -> None:
    """Not seconds of describing them: the number of errors is looked at, not the time."""
    from pydantic import ValidationError

    from tgi_local.protocol.openai import ChatRequest, CompletionRequest

    wrong: list[tuple[Any, dict[str, Any]]] = [
        (CompletionRequest, {"prompt": [1.5] * 5000}),
        (CompletionRequest, {"prompt": [[1.5] * 5000] * 2}),
        (ChatRequest, {"messages": [{"role": "user", "content": [5] * 5000}]}),
        (ChatRequest, {"messages": MESSAGES, "logit_bias": {str(i): "x" for i in range(5000)}}),
        (ChatRequest, {"messages": MESSAGES, "chat_template_kwargs": {str(i): [] for i in range(5000)}}),
        (ChatRequest, {"messages": MESSAGES, "tools": [5] * 5000}),
    ]
    for model, request in wrong:
        with pytest.raises(ValidationError) as caught:
            model.model_validate(json.loads(json.dumps(request)))
        assert caught.value.error_count() < 20
