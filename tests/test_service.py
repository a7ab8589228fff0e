"""Admission, streams and failures of the service, around a fake model."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import expected_output
from tests.in_process import VOCAB_SIZE, InProcess, serving
from tgi_local.engine.step import StepPlan
from tgi_local.errors import NotReadyError, OverloadedError
from tgi_local.metrics import Metrics
from tgi_local.service import Service
from tgi_local.types import FinishReason, RequestParameters, TextOptions


@pytest.fixture
async def server(tiny_folder: Path) -> AsyncIterator[InProcess]:
    async with serving(tiny_folder) as running:
        yield running


def fail_at(server: InProcess, step: int) -> None:
    """The model raises in the step-th step from now, and when it is tried again."""
    failing = server.runner.num_steps + step
    attempts = iter(range(2))

    def before(plan: StepPlan) -> None:
        if server.runner.num_steps == failing and next(attempts, None) is not None:
            raise RuntimeError("boom: secret detail")

    server.runner.before_step = before


async def test_text_is_that_of_the_tokens(server: InProcess) -> None:
    prompt = server.tokenizer.encode("count to ten")
    request = await server.service.prepare_text("count to ten", RequestParameters(max_new_tokens=12), 0.0)
    (generation,) = await server.service.generate([request])
    expected = expected_output(prompt, 12, VOCAB_SIZE)
    assert [token.id for token in generation.tokens] == expected
    context = server.tokenizer.decode(prompt + expected, skip_special_tokens=True)
    assert "count to ten" + generation.text == context
    assert generation.finish is not None and generation.finish.reason is FinishReason.LENGTH


async def test_concurrent_requests_do_not_mix(server: InProcess) -> None:
    async def one(i: int) -> None:
        prompt = [3 + i, 40 + i, 80 + i]
        request = await server.service.prepare_text(prompt, RequestParameters(max_new_tokens=20 + i), 0.0)
        (generation,) = await server.service.generate([request])
        assert [token.id for token in generation.tokens] == expected_output(prompt, 20 + i, VOCAB_SIZE)

    await asyncio.gather(*(one(i) for i in range(16)))


async def test_a_stop_string_ends_one_sibling_and_not_the_other(server: InProcess) -> None:
    parameters = RequestParameters(max_new_tokens=40)
    plain = [await server.service.prepare_text(p, parameters, 0.0) for p in ("count", "the quick")]
    texts = [generation.text for generation in await server.service.generate(plain)]
    stop = texts[0][3:6]
    assert stop not in texts[1]
    stopping = RequestParameters(max_new_tokens=40, stop=(stop,), text=TextOptions(keep_stop_string=False))
    requests = [await server.service.prepare_text(p, stopping, 0.0) for p in ("count", "the quick")]
    first, second = await server.service.generate(requests)
    assert first.text == texts[0][: texts[0].index(stop)] and second.text == texts[1]
    assert first.finish is not None and first.finish.reason is FinishReason.STOP_SEQUENCE
    assert first.finish.num_tokens == len(first.tokens) < 40


async def test_slots_are_taken_at_once_and_given_back(server: InProcess) -> None:
    request = await server.service.prepare_text("count", RequestParameters(max_new_tokens=400), 0.0)
    streams = [server.service.open([request]) for _ in range(16)]
    with pytest.raises(OverloadedError):
        server.service.open([request])
    for stream in streams:
        await stream.aclose()
        await stream.aclose()
    async with server.service.open([request]) as stream:
        async for _ in stream:
            break


async def test_a_service_without_a_model_says_what_it_waits_for() -> None:
    service = Service(Metrics())
    service.report_loading("reading the weights")
    with pytest.raises(NotReadyError, match="reading the weights"):
        await service.prepare_text("x", RequestParameters(), 0.0)
    assert service.state().name == "loading"


@pytest.mark.logs_errors
async def test_a_failed_step_is_an_error_in_the_words_of_each_dialect(server: InProcess) -> None:
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    native: dict[str, Any] = {"inputs": "hi", "parameters": {"max_new_tokens": 8}}
    fail_at(server, 2)
    answer = await server.client.post("/v1/chat/completions", json=chat)
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    fail_at(server, 2)
    answer = await server.client.post("/generate", json=native)
    assert answer.status_code == 424 and answer.json()["error_type"] == "generation"
    assert "secret" not in answer.text
    fail_at(server, 2)
    lines = (await server.client.post("/v1/chat/completions", json={**chat, "stream": True})).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""] and "error" in json.loads(lines[-3][6:])
    fail_at(server, 2)
    lines = (await server.client.post("/generate_stream", json=native)).text.split("\n\n")
    assert json.loads(lines[-2][6:])["error_type"] == "generation" and lines[-1] == ""
    assert (await server.client.get("/health")).status_code == 200
    assert (await server.client.post("/generate", json=native)).status_code == 200


@pytest.mark.logs_errors
async def test_a_bug_in_the_text_machines_ends_only_its_request(
    server: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tgi_local.text.detokenizer import Detokenizer

    step = Detokenizer.step

    def faulty(self: Detokenizer, token_id: int) -> str:
        if token_id == poison:
            raise KeyError("a bug")
        return step(self, token_id)

    poison = expected_output(server.tokenizer.encode("count"), 5, VOCAB_SIZE)[4]
    monkeypatch.setattr(Detokenizer, "step", faulty)
    good = {"inputs": "what is", "parameters": {"max_new_tokens": 5}}
    bad = {"inputs": "count", "parameters": {"max_new_tokens": 30}}
    first, second = await asyncio.gather(
        server.client.post("/generate", json=bad), server.client.post("/generate", json=good)
    )
    assert first.status_code == 424 and second.status_code == 200
    stream = (await server.client.post("/generate_stream", json=bad)).text.split("\n\n")
    assert json.loads(stream[-2][6:])["error_type"] == "generation"


@pytest.mark.logs_errors
async def test_counters_add_up(server: InProcess) -> None:
    native = {"inputs": "hi", "parameters": {"max_new_tokens": 8}}
    for _ in range(3):
        await server.client.post("/generate", json=native)
    await server.client.post("/generate", json={"inputs": "", "parameters": {}})
    fail_at(server, 1)
    await server.client.post("/generate", json=native)
    text = (await server.client.get("/metrics")).text.splitlines()
    for line in (
        "tgi_request_count 5.0",
        "tgi_request_success 3.0",
        'tgi_request_failure{err="validation"} 1.0',
        'tgi_request_failure{err="generation"} 1.0',
        "tgi_request_generated_tokens_sum 24.0",
        'tgi_batch_inference_failure{method="decode"} 1.0',
        'tgi_batch_inference_count{method="decode"} 22.0',
        "tgi_batch_next_size_count 4.0",
        'tgi_request_input_length_bucket{le="511.0"} 4.0',  # the model's own limit, in TGI's hundred steps
        'tgi_request_max_new_tokens_bucket{le="512.0"} 4.0',
    ):
        assert line in text, line


async def test_usage_shows_the_cached_part_of_the_prompt(server: InProcess) -> None:
    async def usage(**body: Any) -> dict[str, Any]:
        """Of a call that tells it in one object and again in a stream's last chunk."""
        body = {"prompt": list(range(3, 24)), "max_tokens": 3, **body}
        whole = await server.client.post("/v1/completions", json=body)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        streamed = (await server.client.post("/v1/completions", json=body)).text.split("\n\n")
        last = json.loads(streamed[-3].removeprefix("data: "))["usage"]
        return {"whole": whole.json()["usage"], "streamed": last}

    first = await usage()
    assert first["whole"]["prompt_tokens"] == 21
    assert first["whole"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert first["streamed"]["prompt_tokens_details"] == {"cached_tokens": 20}
    several = await usage(n=3, prompt=[list(range(3, 24)), list(range(50, 71))])
    assert several["whole"]["prompt_tokens"] == several["streamed"]["prompt_tokens"] == 42
    assert several["whole"]["prompt_tokens_details"] == {"cached_tokens": 20}
    assert several["streamed"]["prompt_tokens_details"] == {"cached_tokens": 40}
    text = (await server.client.get("/metrics")).text.splitlines()
    # A call's other choices find the prompt in the cache, too: that is the server's gain, though not the usage's.
    assert f"tgi_cached_prompt_tokens {20.0 + (20 + 4 * 20) + 6 * 20}" in text


async def test_health_at_the_root_without_a_page(server: InProcess) -> None:
    assert (await server.client.get("/")).content == b""
    assert (await server.client.head("/")).status_code == 200
