"""What real clients send and need, byte by byte, without the clients: their requests as they were recorded."""

import json
from typing import Any

import pytest

from tests.api.conformance.raw import call, get, post
from tests.serving import ROOT, Server

HI = [{"role": "user", "content": "hi"}]
CHAT = {"messages": HI, "max_tokens": 4, "temperature": 0}
CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def test_posting_to_the_root_lives_beside_a_page(demo_server: Server) -> None:
    page = get(demo_server, "/")
    assert page.status == 200 and page.header("content-type") == "text/html; charset=utf-8"
    (answer,) = post(demo_server, "/", {"inputs": "hi", "parameters": {"max_new_tokens": 1}, "stream": False}).json
    assert list(answer) == ["generated_text"]
    assert get(demo_server, "/health").body == b"" and call(demo_server, "GET", "/generate").status == 405


def test_text_generation_posts_to_completions_with_native_fields(tiny_server: Server) -> None:
    # @huggingface/inference 4: the server's URL as model, native parameters at the top level.
    body = {
        "model": f"{tiny_server.url}/v1",
        "prompt": "count",
        "max_tokens": 3,
        "temperature": 0,
        "return_full_text": False,
        "details": True,
        "top_k": 5,
        "do_sample": False,
    }
    answer = post(tiny_server, COMPLETIONS, body).json
    assert answer["object"] == "text_completion" and answer["usage"]["completion_tokens"] == 3


def test_every_chunk_has_what_strict_clients_read(tiny_server: Server) -> None:
    *chunks, done = post(tiny_server, CHATS, CHAT | {"stream": True}).events
    assert done == b"[DONE]"
    for chunk in chunks:
        assert {"object", "system_fingerprint", "id", "created", "model", "choices", "usage"} <= set(chunk)
        (choice,) = chunk["choices"]
        assert choice["delta"]["role"] == "assistant" and isinstance(choice["delta"]["content"], str)
        assert {"index", "logprobs", "finish_reason"} <= set(choice)


def test_the_last_content_is_empty_and_not_null(demo_server: Server) -> None:
    *_, last, done = post(demo_server, CHATS, CHAT | {"stream": True, "max_tokens": 60}).events
    assert done == b"[DONE]" and last["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "stop"


def test_every_chunk_of_a_call_has_its_tool_calls_and_the_last_a_reason(demo_server: Server) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]
    body = CHAT | {"stream": True, "tools": tools, "tool_choice": "get_weather", "max_tokens": 60}
    *chunks, done = post(demo_server, CHATS, body).events
    calls = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in chunks]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls" and done == b"[DONE]"
    assert [call["function"].get("name", "") for call in calls] == ["get_weather", *[""] * (len(calls) - 1)]
    assert "city" in json.loads("".join(call["function"]["arguments"] for call in calls))
    object_form = {"type": "function", "function": {"name": "get_weather"}}
    by_object = post(demo_server, CHATS, body | {"tool_choice": object_form, "stream": False}).json
    assert by_object["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


def test_usage_has_a_chunk_of_its_own_only_when_asked_for(tiny_server: Server) -> None:
    for path, body in ((CHATS, CHAT), (COMPLETIONS, {"prompt": "x", "max_tokens": 3})):
        for options, number in ((None, 0), ({}, 0), ({"include_usage": False}, 0), ({"include_usage": True}, 1)):
            *chunks, done = post(tiny_server, path, {**body, "stream": True, "stream_options": options}).events
            assert done == b"[DONE]" and [bool(chunk["choices"]) for chunk in chunks].count(False) == number


def test_done_is_a_line_with_one_space(tiny_server: Server) -> None:
    assert post(tiny_server, CHATS, CHAT | {"stream": True}).body.endswith(b"}\n\ndata: [DONE]\n\n")
    native = {"inputs": "x", "parameters": {"max_new_tokens": 1}}
    assert b"[DONE]" not in post(tiny_server, "/generate_stream", native).body


def test_errors_are_flat_on_native_routes_and_nested_on_v1(tiny_server: Server) -> None:
    native = post(tiny_server, "/generate", {"inputs": "x", "parameters": {"temperature": 0}})
    assert native.body == (
        b'{"error":"Input validation error: `temperature` must be strictly positive","error_type":"validation"}'
    )
    openai = post(tiny_server, CHATS, CHAT | {"temperature": -1})
    assert openai.status == 400 and openai.json["error_type"] == "validation"
    assert set(openai.json["error"]) == {"message", "type", "param", "code"}
    assert post(tiny_server, CHATS, CHAT).status == 200, "0 is greedy in a chat"


SCHEMA = {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"]}
FORMATS: list[dict[str, Any]] = [
    {"type": "json_object", "value": SCHEMA},
    {"type": "json", "value": json.dumps(SCHEMA)},
    {"type": "json_schema", "value": {"name": "x", "strict": True, "schema": SCHEMA}},
    {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
    {"type": "regex", "value": r'\{"a": ?7\}'},
]


@pytest.mark.parametrize("format", FORMATS, ids=lambda value: "-".join(value))
def test_every_form_of_a_response_format(demo_server: Server, format: dict[str, Any]) -> None:
    answer = post(demo_server, CHATS, CHAT | {"response_format": format, "max_tokens": 40}).json
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"a": 7}
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_tools_beside_a_format_are_tgis_error(tiny_server: Server) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    for tools in ([tool], []):
        refused = post(tiny_server, CHATS, CHAT | {"tools": tools, "response_format": FORMATS[0]})
        assert (refused.status, refused.json["error_type"]) == (400, "tool_error"), tools
        assert refused.json["error"]["message"] == "Tool error: Grammar and tools are mutually exclusive"
    unknown = post(tiny_server, CHATS, CHAT | {"tools": [tool], "tool_choice": "g"})
    assert unknown.json["error"]["message"] == "Tool error: Tool with name g not found"


@pytest.mark.parametrize("name", ["tgi", "dummy", "", None, "http://127.0.0.1:8080/v1/", "gpt-4o"])
def test_any_name_is_the_model(tiny_server: Server, name: str | None) -> None:
    served = get(tiny_server, "/info").json["model_id"]
    for path, body in ((CHATS, CHAT), (COMPLETIONS, {"prompt": "x", "max_tokens": 1})):
        answer = post(tiny_server, path, {**body, "model": name}).json
        assert answer["model"] == (served if name in ("tgi", "", None) else name)


def test_fields_that_nobody_knows_are_accepted(tiny_server: Server) -> None:
    leaked = {"max_retries": 2, "continuous_usage_stats": True, "ignore_eos": True, "max_completion_tokens": 3}
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    stop = ["no text of three tokens holds this"]
    answer = post(tiny_server, CHATS, {"messages": parts, **leaked, "stop_sequences": stop})
    assert answer.json["usage"]["completion_tokens"] == 3
    # TGI's client sends every field, as null where it has no value.
    names = "frequency_penalty logit_bias logprobs max_tokens n presence_penalty response_format seed stop "
    names += "stream_options temperature top_logprobs top_p tools tool_prompt tool_choice"
    nulls = dict.fromkeys(names.split()) | {"messages": HI, "model": "tgi", "stream": False, "max_tokens": 2}
    assert post(tiny_server, CHATS, nulls).status == 200
    both = post(tiny_server, CHATS, CHAT | {"max_completion_tokens": 2}).json
    assert both["usage"]["completion_tokens"] == 2, "the newer name wins"


def test_a_likelihood_is_asked_for_as_completions(tiny_server: Server) -> None:
    ids = [token["id"] for token in post(tiny_server, "/tokenize", {"inputs": "count to ten"}).json]
    body = {"model": "x", "prompt": [ids], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1, "echo": True}
    (choice,) = post(tiny_server, COMPLETIONS, body).json["choices"]
    assert choice["text"].startswith("count to ten")
    assert len(choice["logprobs"]["token_logprobs"]) == len(ids) + 1
    assert choice["logprobs"]["token_logprobs"][0] is None


def test_a_stop_string_stays_on_native_routes_alone(tiny_server: Server) -> None:
    parameters: dict[str, Any] = {"max_new_tokens": 30}
    text = post(tiny_server, "/generate", {"inputs": "count", "parameters": parameters}).json["generated_text"]
    stop = text[5:7]
    kept = post(tiny_server, "/generate", {"inputs": "count", "parameters": parameters | {"stop": [stop]}}).json
    cut = post(tiny_server, COMPLETIONS, {"prompt": "count", "max_tokens": 30, "temperature": 0, "stop": stop}).json
    assert kept["generated_text"] == text[: text.index(stop) + len(stop)]
    assert cut["choices"][0]["text"] == text[: text.index(stop)]


def test_the_requests_of_a_chat_front_end(demo_server: Server) -> None:
    headers = {"ChatUI-Conversation-ID": "1", "X-use-cache": "false", "x-stainless-lang": "js"}
    models = call(demo_server, "GET", "/v1/models", None, headers)
    assert models.status == 200 and models.json["data"][0]["id"]
    title = {"messages": HI, "max_tokens": 24, "temperature": 0, "stream": True}
    assert call(demo_server, "POST", CHATS, title, headers).events[-1] == b"[DONE]"
    # Its former endpoint for TGI.
    parameters = {"stop": ["zzz"], "stop_sequences": ["zzz"], "return_full_text": False, "max_new_tokens": 3}
    body = {"parameters": parameters, "inputs": "hi", "stream": True}
    assert call(demo_server, "POST", "/generate_stream", body, headers).events[-1]["generated_text"] is not None
    call_made = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        *HI,
        {"role": "assistant", "tool_calls": [call_made]},
        {"role": "tool", "tool_call_id": "1", "content": "7"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    assert (
        post(demo_server, CHATS, {"messages": turns, "tools": tools, "tool_choice": "auto", "max_tokens": 2}).status
        == 200
    )


def test_a_base_that_ends_in_v1_is_served_natively_too(tiny_server: Server) -> None:
    body = {"inputs": "x", "parameters": {"max_new_tokens": 1}}
    for path in ("/v1", "/v1/"):
        assert list(post(tiny_server, path, body).json[0]) == ["generated_text"]
        refused = post(tiny_server, path, {"inputs": ""})
        assert refused.status == 422 and refused.json["error_type"] == "validation"
    assert get(tiny_server, "/v1/info").json == get(tiny_server, "/info").json
    assert get(tiny_server, "/v1/health").body == b""


def test_surrogates_and_lists_where_objects_belong(tiny_server: Server) -> None:
    for path, content in (
        (CHATS, b'{"messages":[{"role":"user","content":"\\ud800"}]}'),
        (CHATS, b'{"messages":[["user","hi"]]}'),
        (COMPLETIONS, b'{"prompt":"\\udfff"}'),
        ("/generate", b'{"inputs":"\\ud83d"}'),
        ("/generate", b'{"inputs":"x","parameters":[1]}'),
    ):
        assert 400 <= post(tiny_server, path, content).status < 500, content


def test_the_schema_says_exclusive_minimum_as_3_0_does(tiny_server: Server) -> None:
    def bounds(value: Any) -> list[Any]:
        if isinstance(value, dict):
            found = [item for key, item in value.items() if key in ("exclusiveMinimum", "exclusiveMaximum")]
            return found + [bound for item in value.values() for bound in bounds(item)]
        return [bound for item in value for bound in bounds(item)] if isinstance(value, list) else []

    document = get(tiny_server, "/api-doc/openapi.json").json
    assert all(isinstance(bound, bool) for bound in bounds(document))
    theirs = json.loads((ROOT / "tests/data/tgi-openapi.json").read_text())
    assert not all(isinstance(bound, bool) for bound in bounds(theirs)), "generators refuse TGI's own"
