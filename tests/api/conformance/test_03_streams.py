"""Raw bytes of the three kinds of streams: frames, ends, signs of life; and the headers of every kind of answer."""

import json
import re
import signal
from typing import Any

import pytest

from tests.api.conformance.conftest import KEY, fault_text
from tests.api.conformance.raw import Answer, get, open_request, parse, pieces, post
from tests.faulty_server import Fault
from tests.serving import Server
from tgi_local.api import sse

TEXT = "héllo, count to ten"
HI = [{"role": "user", "content": "hi"}]
NATIVE = {"inputs": TEXT, "parameters": {"max_new_tokens": 4, "details": True, "seed": 1}}
CHAT = {"messages": HI, "max_tokens": 4, "temperature": 0}
COMPLETION = {"prompt": TEXT, "max_tokens": 4, "temperature": 0}
STREAMS: list[tuple[str, dict[str, Any]]] = [
    ("/generate_stream", NATIVE),
    ("/", {**NATIVE, "stream": True}),
    ("/invocations", {**NATIVE, "stream": True}),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/invocations", {**CHAT, "stream": True}),
    ("/v1/completions", {**COMPLETION, "stream": True}),
]
by_stream = pytest.mark.parametrize(("path", "body"), STREAMS, ids=lambda value: str(value)[:40])


def is_openai(body: dict[str, Any]) -> bool:
    return "inputs" not in body


@by_stream
def test_frames_and_the_end(tiny_server: Server, path: str, body: dict[str, Any]) -> None:
    answer = post(tiny_server, path, body)
    frames = answer.body.split(b"\n\n")
    assert frames.pop() == b"", "a blank line ends every frame, the last one too"
    assert (frames[-1] == b"data: [DONE]") == is_openai(body) and answer.body.count(b"[DONE]") == is_openai(body)
    events = frames[:-1] if is_openai(body) else frames
    assert len(events) == 4 if "inputs" in body or "prompt" in body else events, "chats leave out what shows nothing"
    for frame in events:
        data = frame.removeprefix(b"data: ")
        assert data != frame and b"\n" not in data and b"\r" not in data
        compact = json.dumps(json.loads(data), separators=(",", ":"), ensure_ascii=False)
        assert data.decode() == compact or re.search(r"\de-?\d", data.decode()), "no spaces, nothing escaped"


def test_native_events(tiny_server: Server) -> None:
    body = {"inputs": TEXT, "parameters": {"max_new_tokens": 5, "details": True, "top_n_tokens": 2}}
    answer = post(tiny_server, "/generate_stream", body)
    *events, last = answer.events
    assert answer.body.startswith(b'data: {"index":1,"token":{"id":')
    for event in [*events, last]:
        assert list(event) == ["index", "token", "top_tokens", "generated_text", "details"]
        assert list(event["token"]) == ["id", "text", "logprob", "special"]
        assert event["top_tokens"][0]["id"] == event["token"]["id"], "the likeliest is the one that is chosen"
    assert [event["index"] for event in [*events, last]] == [1, 2, 3, 4, 5]
    assert all(event["generated_text"] is None and event["details"] is None for event in events)
    plain = post(tiny_server, "/generate", body).json
    assert last["generated_text"] == plain["generated_text"]
    assert [event["token"] for event in [*events, last]] == plain["details"]["tokens"]
    num_prompt = len(post(tiny_server, "/tokenize", {"inputs": TEXT}).json)
    want = {"finish_reason": "length", "generated_tokens": 5, "seed": None, "input_length": num_prompt}
    assert last["details"] == want and list(last["details"]) == list(want)
    del body["parameters"]["details"], body["parameters"]["top_n_tokens"]  # type: ignore[attr-defined]
    bare = post(tiny_server, "/generate_stream", body).events
    assert all(list(event) == ["index", "token", "generated_text", "details"] for event in bare)
    assert bare[-1]["generated_text"] == last["generated_text"] and bare[-1]["details"] is None
    body["parameters"]["return_full_text"] = True  # type: ignore[index]
    full = post(tiny_server, "/generate_stream", body).events
    assert full[-1]["generated_text"] == TEXT + last["generated_text"], "the prompt only in the whole text"
    assert [event["token"] for event in full] == [event["token"] for event in bare]


def test_a_token_that_completes_no_character_has_no_text(tiny_server: Server) -> None:
    # A random model says many bytes that are no text.
    body = {"inputs": TEXT, "parameters": {"max_new_tokens": 200, "do_sample": True, "seed": 3}}
    *events, last = post(tiny_server, "/generate_stream", body).events
    texts = [event["token"]["text"] for event in [*events, last] if not event["token"]["special"]]
    assert "" in texts and "".join(texts) == last["generated_text"]


def test_special_tokens_are_seen_and_are_no_text(demo_server: Server) -> None:
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    body = {"inputs": prompt, "parameters": {"max_new_tokens": 60, "details": True}}
    *events, last = post(demo_server, "/generate_stream", body).events
    assert last["token"]["special"] and last["token"]["text"] == "<|im_end|>"
    assert last["details"]["finish_reason"] == "eos_token" and last["details"]["generated_tokens"] == last["index"]
    assert last["generated_text"] == "".join(event["token"]["text"] for event in events)


# Signs of life.


SILENT: list[tuple[str, str]] = [("/generate_stream", "inputs"), ("/v1/completions", "prompt")]


@pytest.mark.parametrize(("path", "field"), SILENT)
def test_silence_is_filled_with_comments(slow_server: Server, path: str, field: str) -> None:
    limit = {"parameters": {"max_new_tokens": 6}, "max_tokens": 6, "temperature": 0, "stream": True}
    body = {field: fault_text(Fault.PAUSE, 3), **limit}
    received, is_silent = b"", True
    for piece in pieces(open_request(slow_server, "POST", path, body)):
        received += piece
        *events, silence = received.split(b"data: ")
        if is_silent and len(events) == 3 and silence.count(b":\n\n") >= 2:
            is_silent = False
            slow_server.process.send_signal(signal.SIGUSR2)
    answer = parse(received)
    frames = answer.body.split(b"\n\n")
    places = [number for number, frame in enumerate(frames) if frame != b":"]
    assert frames[places[2] + 1 : places[3]].count(b":") >= 2, "again and again, after what came before"
    num_done = 1 if field == "prompt" else 0
    assert len([event for event in answer.events if event != b"[DONE]"]) == 6
    assert answer.events.count(b"[DONE]") == num_done


def test_a_stream_that_is_not_silent_has_none(tiny_server: Server) -> None:
    body = {"prompt": TEXT, "max_tokens": 60, "stream": True}
    assert b":\n\n" not in post(tiny_server, "/v1/completions", body).body.replace(b"data:", b"")


def test_tgis_interval() -> None:
    assert sse.KEEP_ALIVE_S == 15 and sse.KEEP_ALIVE == b":\n\n"


def test_headers_come_before_the_first_token(slow_server: Server) -> None:
    body = {"inputs": fault_text(Fault.PAUSE, 3), "parameters": {"max_new_tokens": 4}}
    received, has_begun = b"", False
    for piece in pieces(open_request(slow_server, "POST", "/generate_stream", body)):
        received += piece
        if not has_begun and b'"index":3' in received:
            has_begun = True
            assert b"content-type: text/event-stream" in received.lower() and b'"index":4' not in received
            slow_server.process.send_signal(signal.SIGUSR2)
    assert parse(received).events[-1]["index"] == 4, "tokens came while others were still to be made"


# Headers.

TIMES = {"x-total-time", "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token"}
COUNTS = {"x-prompt-tokens", "x-generated-tokens"}
ALWAYS = {"x-compute-type", "x-compute-characters"}


@by_stream
def test_headers_of_a_stream(tiny_server: Server, path: str, body: dict[str, Any]) -> None:
    answer = post(tiny_server, path, body)
    assert answer.header("content-type") == "text/event-stream", "and no charset"
    assert answer.header("cache-control") == "no-cache" and answer.header("x-accel-buffering") == "no"
    assert answer.x_headers == ALWAYS | {"x-accel-buffering"}
    if path != "/invocations" or "inputs" in body:
        templated = len("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n") if "messages" in body else len(TEXT)
        assert answer.header("x-compute-characters") == str(templated)


def whole(answer: Answer) -> dict[str, str]:
    assert answer.status == 200 and answer.header("content-type") == "application/json"
    return {name: answer.header(name) or "" for name in answer.x_headers}


@pytest.mark.parametrize(
    ("path", "body", "characters"),
    [
        ("/generate", NATIVE, len(TEXT)),
        ("/", NATIVE, len(TEXT)),
        ("/invocations", NATIVE, len(TEXT)),
        ("/v1/chat/completions", CHAT, len("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")),
    ],
    ids=str,
)
def test_headers_of_a_whole_answer(tiny_server: Server, path: str, body: dict[str, Any], characters: int) -> None:
    headers = whole(post(tiny_server, path, body))
    assert set(headers) == ALWAYS | TIMES | COUNTS | {"x-compute-time"}
    assert headers["x-compute-characters"] == str(characters), "characters, not bytes"
    assert headers["x-generated-tokens"] == "4" and headers["x-compute-type"] == "cpu"
    assert all(headers[name].isdecimal() for name in TIMES | COUNTS), headers
    assert re.fullmatch(r"\d+\.\d+", headers["x-compute-time"])
    total = int(headers["x-total-time"])
    parts = sum(int(headers[name]) for name in ("x-validation-time", "x-queue-time", "x-inference-time"))
    assert abs(total - parts) <= 2 and abs(total - 1000 * float(headers["x-compute-time"])) <= 1
    assert abs(int(headers["x-time-per-token"]) - int(headers["x-inference-time"]) / 4) <= 1


def test_completions_sum_over_their_prompts(tiny_server: Server) -> None:
    prompts = ["count", "the quick brown fox"]
    headers = whole(post(tiny_server, "/v1/completions", {**COMPLETION, "prompt": prompts}))
    assert set(headers) == ALWAYS | TIMES | COUNTS, "no x-compute-time, as TGI"
    assert headers["x-compute-characters"] == str(sum(map(len, prompts)))
    tokens = [len(post(tiny_server, "/tokenize", {"inputs": prompt}).json) for prompt in prompts]
    assert (headers["x-prompt-tokens"], headers["x-generated-tokens"]) == (str(sum(tokens)), "8")
    # A prompt counts once, however many choices it has.
    several = whole(post(tiny_server, "/v1/completions", {**COMPLETION, "prompt": prompts, "n": 3}))
    assert several["x-prompt-tokens"] == headers["x-prompt-tokens"] and several["x-generated-tokens"] == "24"
    assert several["x-compute-characters"] == headers["x-compute-characters"]
    stream = post(tiny_server, "/v1/completions", {**COMPLETION, "prompt": prompts, "n": 2, "stream": True})
    assert stream.header("x-compute-characters") == headers["x-compute-characters"]
    choices = whole(post(tiny_server, "/v1/chat/completions", {**CHAT, "n": 2}))
    assert choices["x-prompt-tokens"] == whole(post(tiny_server, "/v1/chat/completions", CHAT))["x-prompt-tokens"]


def test_other_answers_have_none_of_them(tiny_server: Server) -> None:
    instances = {"instances": [{"inputs": "x", "parameters": {"max_new_tokens": 1}}]}
    answers = [get(tiny_server, path) for path in ("/info", "/health", "/metrics", "/v1/models")]
    answers += [post(tiny_server, "/tokenize", {"inputs": "x"}), post(tiny_server, "/vertex", instances)]
    answers += [post(tiny_server, "/chat_tokenize", {"messages": HI}), post(tiny_server, "/generate", {"inputs": ""})]
    for answer in answers:
        assert answer.status in (200, 422) and not answer.x_headers, answer.headers


def test_the_compute_type_can_be_named(limited_server: Server) -> None:
    body = {"inputs": "x", "parameters": {"max_new_tokens": 1}}
    for path in ("/generate", "/generate_stream"):
        assert post(limited_server, path, body, x_api_key=KEY).header("x-compute-type") == "2-test-gpu"
