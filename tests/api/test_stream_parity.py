"""A streamed answer is the whole one in pieces: text, log-probabilities, why it ended, and what it cost."""

import json
import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.serving import Server

TOPICS = ["count to ten", "what is deep learning", "the quick brown fox", "user: assistant\nuser:", "ä😀 x"]
Body = dict[str, Any]


def send(server: Server, path: str, body: Body) -> httpx.Response:
    response = server.client.post(f"{server.url}{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response


def events(response: httpx.Response) -> list[Body]:
    blocks = [block.removeprefix("data:").strip() for block in response.text.split("\n\n") if block]
    return [json.loads(block) for block in blocks if block != "[DONE]"]


def common(rng: random.Random) -> Body:
    """Sampling that both dialects of `/v1` take."""
    body: Body = {
        "max_tokens": rng.randrange(1, 16),
        "temperature": rng.choice([0, 1.0, 1.3]),
        "seed": rng.randrange(2**31),
        "n": rng.choice([1, 2, 3]),
    }
    extras: list[Body] = [{}, {"top_p": 0.9}, {"top_k": 5}, {"frequency_penalty": 1.0}, {"stop": ["e", "th"]}]
    return body | rng.choice(extras)


def chat_body(rng: random.Random) -> Body:
    body = common(rng) | {"messages": [{"role": "user", "content": rng.choice(TOPICS)}]}
    return body | rng.choice([{}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 3}])


def completion_body(rng: random.Random) -> Body:
    prompts: list[Body] = [{"prompt": rng.choice(TOPICS)}, {"prompt": TOPICS[:2]}, {"prompt": [5, 6, 7, 300]}]
    return common(rng) | rng.choice(prompts) | rng.choice([{}, {"logprobs": 2}, {"echo": True}])


def native_body(rng: random.Random) -> Body:
    parameters = {"max_new_tokens": rng.randrange(1, 16), "details": True, "seed": rng.randrange(2**31)}
    extras: list[Body] = [{}, {"do_sample": True}, {"top_p": 0.8}, {"top_n_tokens": 2}, {"stop": ["e"]}]
    return {"inputs": rng.choice(TOPICS), "parameters": parameters | rng.choice(extras)}


def chat(server: Server, body: Body) -> Any:
    answer = send(server, "/v1/chat/completions", body).json()
    choices = {
        choice["index"]: {
            "text": choice["message"]["content"],
            "finish": choice["finish_reason"],
            "logprobs": (choice["logprobs"] or {}).get("content", []),
        }
        for choice in answer["choices"]
    }
    return choices, answer["usage"]


def streamed_chat(server: Server, body: Body) -> Any:
    asked = body | {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(send(server, "/v1/chat/completions", asked))
    choices: dict[int, Body] = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        mine = choices.setdefault(choice["index"], {"text": "", "finish": None, "logprobs": []})
        assert mine["finish"] is None, "nothing comes after the end"
        mine["text"] += choice["delta"].get("content") or ""
        mine["finish"] = choice["finish_reason"]
        mine["logprobs"] += (choice["logprobs"] or {}).get("content", [])
    return choices, last["usage"]


def complete(server: Server, body: Body) -> Any:
    answer = send(server, "/v1/completions", body).json()
    choices = {
        choice["index"]: {
            "text": choice["text"],
            "finish": choice["finish_reason"],
            **(choice["logprobs"] or {}),
        }
        for choice in answer["choices"]
    }
    return choices, answer["usage"]


def streamed_complete(server: Server, body: Body) -> Any:
    asked = body | {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(send(server, "/v1/completions", asked))
    choices: dict[int, Body] = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        mine = choices.setdefault(choice["index"], {"text": "", "finish": None})
        assert mine["finish"] is None, "nothing comes after the end"
        mine["text"] += choice["text"]
        mine["finish"] = choice["finish_reason"]
        for name, values in (choice["logprobs"] or {}).items():
            mine[name] = mine.get(name, []) + values
    return choices, last["usage"]


def generate(server: Server, body: Body) -> Any:
    answer = send(server, "/generate", body).json()
    details = answer["details"]
    tops = details.get("top_tokens", [])
    return answer["generated_text"], details["finish_reason"], details["seed"], details["tokens"], tops


def streamed_generate(server: Server, body: Body) -> Any:
    answer = events(send(server, "/generate_stream", body))
    assert [event["index"] for event in answer] == list(range(1, len(answer) + 1))
    *others, last = answer
    assert all(event["generated_text"] is None and event["details"] is None for event in others)
    assert last["details"]["generated_tokens"] == len(answer)
    tokens = [event["token"] for event in answer]
    tops = [event["top_tokens"] for event in answer if "top_tokens" in event]
    return last["generated_text"], last["details"]["finish_reason"], last["details"]["seed"], tokens, tops


Ways = tuple[Callable[[random.Random], Body], Callable[[Server, Body], Any], Callable[[Server, Body], Any]]
DIALECTS: dict[str, Ways] = {
    "chat": (chat_body, chat, streamed_chat),
    "completions": (completion_body, complete, streamed_complete),
    "native": (native_body, generate, streamed_generate),
}


def same(a: Any, b: Any) -> bool:
    """The same answer computed twice may differ in the last digits of a log-probability, and in what was cached."""
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) < 1e-3
    if isinstance(a, dict) and isinstance(b, dict):
        names = (a.keys() | b.keys()) - {"prompt_tokens_details"}
        return all(name in a and name in b and same(a[name], b[name]) for name in names)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_is_the_answer_in_pieces(tiny_server: Server, dialect: str) -> None:
    make_body, whole, streamed = DIALECTS[dialect]
    rng = random.Random(1)
    lengths = set()
    for _ in range(12):
        body = make_body(rng)
        want = whole(tiny_server, body)
        assert same(streamed(tiny_server, body), want), body
        lengths.add(len(str(want)))
    assert len(lengths) > 6, "answers that are all alike prove little"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_comparison_notices_another_answer(tiny_server: Server, dialect: str) -> None:
    make_body, whole, streamed = DIALECTS[dialect]
    body = make_body(random.Random(1))
    other = {**body, "inputs": "another"} if dialect == "native" else {**body, "max_tokens": body["max_tokens"] + 1}
    assert not same(streamed(tiny_server, other), whole(tiny_server, body))
