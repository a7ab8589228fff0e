"""Answers recorded from TGI beside ours for requests of the same kind: the same keys, types and nulls.

The records are what TGI's own test clients wrote down, which add nulls for keys that TGI leaves out; these are left out
here. What `/v1` answers in OpenAI's form instead is listed, and nothing else may differ.
"""

from typing import Any

import pytest

from tests.api.conformance.raw import post
from tests.serving import Server

Shape = dict[str, str]
TEXT = "Test request"
HI = [{"role": "user", "content": "hi"}]

# One per kind of record; `[]` stands for every item of a list.
TOKEN = {"id": "int", "logprob": "float", "special": "bool", "text": "str"}
RECORDED_DETAILS: Shape = {
    "generated_text": "str",
    "details.finish_reason": "str",
    "details.generated_tokens": "int",
    "details.prefill": "empty",
    "details.seed": "null",
    **{f"details.tokens[].{key}": kind for key, kind in TOKEN.items()},
}
RECORDED_HEAD: Shape = {"created": "int", "id": "str", "model": "str", "object": "str", "system_fingerprint": "str"}
RECORDED_USAGE: Shape = dict.fromkeys(("usage.completion_tokens", "usage.prompt_tokens", "usage.total_tokens"), "int")
RECORDED_CHOICE: Shape = {"choices[].finish_reason": "str", "choices[].index": "int", "choices[].logprobs": "null"}
RECORDED_CHAT = RECORDED_HEAD | RECORDED_USAGE | RECORDED_CHOICE
RECORDED_CHAT |= {"choices[].message.content": "str", "choices[].message.role": "str"}
RECORDED_CHAT |= {"choices[].message.refusal": "null"}  # OpenAI's schema wants it
RECORDED_COMPLETION = RECORDED_HEAD | RECORDED_USAGE | RECORDED_CHOICE | {"choices[].text": "str"}
RECORDED_CHUNK = RECORDED_HEAD | RECORDED_CHOICE | {"usage": "null"}
RECORDED_CHUNK |= {"choices[].delta.content": "str", "choices[].delta.role": "str"}
RECORDED_CHUNK |= {"choices[].finish_reason": "null or str"}
# In 3.3 also the other chunks have the key.
RECORDED_USAGE_CHUNK = RECORDED_HEAD | RECORDED_USAGE | {"choices": "empty"}
CALL = {"id": "str", "type": "str", "function.name": "str", "function.arguments": "str"}

# Design: /v1 answers OpenAI's form. Each key says why it is more than TGI has.
MORE_USAGE: Shape = {
    "usage.prompt_tokens_details.cached_tokens": "int",  # OpenAI's details
    "usage.completion_tokens_details.reasoning_tokens": "int",
}


def shape(value: Any, place: str = "") -> Shape:
    """Every leaf's place and kind."""
    if isinstance(value, dict) and value:
        parts = [shape(item, f"{place}.{key}" if place else key) for key, item in value.items()]
    elif isinstance(value, list) and value:
        parts = [shape(item, f"{place}[]") for item in value]
    else:
        names = {type(None): "null", list: "empty", dict: "empty"}
        return {place: names.get(type(value), type(value).__name__)}
    merged: Shape = {}
    for part in parts:
        for key, kind in part.items():
            merged[key] = " or ".join(sorted({*merged.get(key, kind).split(" or "), kind}))
    return merged


def test_details(tiny_server: Server) -> None:
    parameters: dict[str, Any] = {"max_new_tokens": 10, "details": True}
    plain = post(tiny_server, "/generate", {"inputs": TEXT, "parameters": parameters}).json
    assert shape(plain) == RECORDED_DETAILS
    (listed,) = post(tiny_server, "/", {"inputs": TEXT, "parameters": parameters}).json
    assert shape(listed) == RECORDED_DETAILS


def test_details_of_all_parameters(tiny_server: Server) -> None:
    # As test_flash_llama_all_params sends it.
    parameters = {
        "max_new_tokens": 10,
        "repetition_penalty": 1.2,
        "return_full_text": True,
        "stop": ["test"],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 10,
        "truncate": 5,
        "typical_p": 0.9,
        "watermark": True,
        "seed": 0,
        "details": True,
    }
    answer = post(tiny_server, "/generate", {"inputs": TEXT, "parameters": parameters}).json
    assert shape(answer) == RECORDED_DETAILS | {"details.seed": "int"} and answer["details"]["seed"] == 0
    assert answer["generated_text"].startswith(TEXT)


def test_a_grammar_with_details(demo_server: Server) -> None:
    grammar = {"type": "json", "value": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}
    parameters = {"max_new_tokens": 60, "details": True, "grammar": grammar}
    answer = post(demo_server, "/generate", {"inputs": TEXT, "parameters": parameters}).json
    assert shape(answer) == RECORDED_DETAILS
    regex = {"max_new_tokens": 10, "details": True, "grammar": {"type": "regex", "value": "[0-9]{3}"}}
    answer = post(demo_server, "/generate", {"inputs": TEXT, "parameters": regex}).json
    assert shape(answer) == RECORDED_DETAILS and len(answer["generated_text"]) == 3


def test_a_chat(tiny_server: Server) -> None:
    answer = post(tiny_server, "/v1/chat/completions", {"messages": HI, "max_tokens": 10, "seed": 0}).json
    assert shape(answer) == RECORDED_CHAT | MORE_USAGE
    assert answer["object"] == "chat.completion" and answer["choices"][0]["finish_reason"] == "length"
    assert answer["system_fingerprint"].endswith("-native")
    assert answer["id"] != "", "OpenAI's, where TGI has none"


@pytest.mark.parametrize("prompt", ["What is Deep Learning?", ["one", "two", "three", "four"]])
def test_completions(tiny_server: Server, prompt: str | list[str]) -> None:
    body = {"model": "tgi", "prompt": prompt, "max_tokens": 10, "seed": 0}
    answer = post(tiny_server, "/v1/completions", body).json
    assert shape(answer) == RECORDED_COMPLETION | MORE_USAGE and answer["object"] == "text_completion"
    number = 1 if isinstance(prompt, str) else 4
    assert [choice["index"] for choice in answer["choices"]] == list(range(number)), "in order, where TGI has none"
    assert answer["usage"]["completion_tokens"] == 10 * number


def test_chunks_of_a_chat(tiny_server: Server) -> None:
    body = {"messages": HI, "max_tokens": 10, "seed": 0, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = post(tiny_server, "/v1/chat/completions", body).events
    assert done == b"[DONE]" and all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert shape(chunks) == {f"[].{key}": kind for key, kind in RECORDED_CHUNK.items()}
    assert shape(usage) == RECORDED_USAGE_CHUNK | MORE_USAGE
    *others, bare, done = post(tiny_server, "/v1/chat/completions", body | {"stream_options": None}).events
    assert bare["choices"] and shape(bare) == RECORDED_CHUNK | {"choices[].finish_reason": "str"}
    assert all(shape(chunk) == RECORDED_CHUNK | {"choices[].finish_reason": "null"} for chunk in others)


def test_chunks_of_completions(tiny_server: Server) -> None:
    body = {"prompt": ["one", "two", "three", "four"], "max_tokens": 10, "seed": 0, "stream": True}
    *chunks, done = post(tiny_server, "/v1/completions", body).events
    assert done == b"[DONE]"
    want = RECORDED_HEAD | RECORDED_CHOICE | {"choices[].text": "str"}
    for index in range(4):
        *others, last = [chunk for chunk in chunks if chunk["choices"][0]["index"] == index]
        # TGI's are "" until the last, OpenAI's null.
        assert all(shape(chunk) == want | {"choices[].finish_reason": "null"} for chunk in others)
        assert shape(last) == want | RECORDED_USAGE | MORE_USAGE
        assert last["usage"]["completion_tokens"] == 10, "the prompt's own"
    body["stream_options"] = {"include_usage": True}
    *chunks, usage, done = post(tiny_server, "/v1/completions", body).events
    assert all(chunk["usage"] is None for chunk in chunks) and usage["usage"]["completion_tokens"] == 40


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather",
        "parameters": {
            "type": "object",
            "properties": {"format": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["format"],
        },
    },
}


def test_a_tool_call(demo_server: Server) -> None:
    body = {"messages": HI, "tools": [WEATHER], "tool_choice": "get_current_weather", "max_tokens": 60}
    answer = post(demo_server, "/v1/chat/completions", body).json
    want = RECORDED_CHAT | MORE_USAGE | {"choices[].message.content": "null"}
    want |= {f"choices[].message.tool_calls[].{key}": kind for key, kind in CALL.items()}
    assert shape(answer) == want
    choice = answer["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_current_weather"
    assert choice["finish_reason"] == "tool_calls", "OpenAI's, where TGI says stop"
    *chunks, done = post(demo_server, "/v1/chat/completions", body | {"stream": True}).events
    assert done == b"[DONE]" and chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    for chunk in chunks:
        (call,) = chunk["choices"][0]["delta"]["tool_calls"]
        # TGI's later deltas have a null name, which OpenAI's clients take for another call.
        assert call["index"] == 0 and ("name" in call["function"]) == (chunk is chunks[0])
        assert isinstance(call["function"]["arguments"], str)
