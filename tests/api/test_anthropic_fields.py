"""Anthropic's Messages: what its users send beside text, who refuses it, and that the SDK's types know all of the answer."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message, ModelInfo, RawMessageStreamEvent

from tests.api.scripted import TIME, WEATHER, calls, finish, piece, play, strictly, text, thought
from tests.serving import Server
from tgi_local.errors import UnsupportedError, ValidationError
from tgi_local.protocol.anthropic import MessagesRequest, to_chat
from tgi_local.protocol.anthropic_answers import MessageAnswer
from tgi_local.protocol.openai import to_messages
from tgi_local.protocol.wire import parse
from tgi_local.types import FinishReason, TextEvent

HI: list[Any] = [{"role": "user", "content": "hi"}]
ASK: dict[str, Any] = {"model": "tgi", "messages": HI, "max_tokens": 6}
TOOL: dict[str, Any] = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Bonn", "Oslo"]}}, "required": ["city"]},
}


@pytest.fixture
def client(tiny_server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=tiny_server.url, api_key="-", max_retries=0) as client:
        yield client


def post(server: Server, path: str = "", **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/messages{path}", json={**ASK, "temperature": 0, **body}, timeout=60)


def translated(**body: Any) -> list[dict[str, Any]]:
    return to_messages(to_chat(parse(MessagesRequest, {**ASK, **body})))


def said(*blocks: dict[str, Any]) -> str:
    """What the model reads of a user's blocks."""
    (message,) = translated(messages=[{"role": "user", "content": list(blocks)}])
    content: str = message["content"]
    return content


def document(**fields: Any) -> dict[str, Any]:
    source = {"type": "text", "media_type": "text/plain", "data": "It rains."}
    return {"type": "document", "source": source, **fields}


RESULT: dict[str, Any] = {
    "type": "search_result",
    "source": "https://x.test/a",
    "title": "Weather",
    "content": [{"type": "text", "text": "It "}, {"type": "text", "text": "rains."}],
}


def test_documents_and_search_results_are_read() -> None:
    assert said(document()) == "<document>\nIt rains.\n</document>\n"
    titled = document(
        title="News", context="of today", citations={"enabled": False}, cache_control={"type": "ephemeral"}
    )
    question = {"type": "text", "text": "So?"}
    assert said(titled, question) == (
        "<document>\n<title>News</title>\n<context>of today</context>\nIt rains.\n</document>\nSo?"
    )
    for content in ("It rains.", [{"type": "text", "text": "It "}, {"type": "text", "text": "rains."}]):
        assert said(document(source={"type": "content", "content": content})) == said(document())
    found = "<search_result>\n<source>https://x.test/a</source>\n<title>Weather</title>\nIt rains.\n</search_result>\n"
    assert said(RESULT) == found
    result = {"type": "tool_result", "tool_use_id": "t", "content": [document(), RESULT, {"type": "text", "text": "!"}]}
    (message,) = translated(messages=[{"role": "user", "content": [result]}])
    assert message["role"] == "tool" and message["content"] == said(document()) + found + "!"


PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
SEARCHED = {
    "type": "web_search_tool_result",
    "tool_use_id": "s",
    "content": [{"type": "web_search_result", "url": "u"}],
}
FAILED = {**SEARCHED, "content": {"type": "web_search_tool_result_error", "error_code": "unavailable"}}


@pytest.mark.parametrize(
    ("block", "named"),
    [
        (document(source=PDF), "base64"),
        (document(source={"type": "url", "url": "https://x.test/a.pdf"}), "url"),
        (document(source={"type": "file", "file_id": "f"}), "file"),
        (document(source={"type": "content", "content": [IMAGE]}), "image"),
        (document(citations={"enabled": True}), "citations"),
        ({**RESULT, "citations": {"enabled": True}}, "citations"),
        (IMAGE, "image"),
        ({"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}, "image"),
        (SEARCHED, "web_search_tool_result"),
        (FAILED, "web_search_tool_result"),
        ({"type": "container_upload", "file_id": "f"}, "container_upload"),
        ({"type": "hologram"}, "unknown"),
    ],
)
def test_what_a_text_model_can_not_read_is_refused_by_name(block: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        said(block)


def test_blocks_of_a_wrong_shape() -> None:
    for wrong in ({"type": "document"}, {"type": "document", "source": "x"}):
        with pytest.raises(ValidationError, match="source"):
            said(wrong)
    with pytest.raises(ValidationError, match="string or a list"):
        said({"type": "tool_result", "tool_use_id": "t", "content": {"type": "text"}})


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"type": "url", "url": "x", "name": "n"}]}, "mcp_servers"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management"),
        ({"compaction": {"x": 1}}, "compaction"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}}, "Tool with name f not found"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "type custom"),
        ({"tools": [{**TOOL, "strict": True, "input_schema": {"type": "object", "not": {}}}]}, "not valid"),
        ({"output_format": {"type": "regex"}}, "output_config"),
    ],
)
@pytest.mark.parametrize("path", ["", "/count_tokens"])
def test_fields_are_refused_by_name(tiny_server: Server, body: dict[str, Any], named: str, path: str) -> None:
    if path and named in ("Tool with name f not found", "not valid"):
        return  # they are about the answer
    response = post(tiny_server, path, **body)
    error = response.json()
    assert response.status_code == 400 and error["type"] == "error", response.text
    assert error["error"]["type"] == "invalid_request_error" and named in error["error"]["message"]


def test_fields_that_change_no_answer_are_accepted(tiny_server: Server) -> None:
    plain = post(tiny_server).json()["content"]
    fields: dict[str, Any] = {
        "metadata": {"user_id": "u"},
        "service_tier": "standard_only",
        "cache_control": {"type": "ephemeral"},
        "inference_geo": "eu",
        "speed": "standard",
        "thinking": {"type": "between_tools"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "tool_choice": {"type": "none"},
    }
    assert post(tiny_server, **fields).json()["content"] == plain
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "a,b"}
    url = f"{tiny_server.url}/v1/messages?beta=true"
    assert httpx.post(url, json={**ASK, "temperature": 0}, headers=headers).json()["content"] == plain


def test_the_older_place_of_the_output_format(tiny_server: Server) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    body = post(tiny_server, max_tokens=60, output_format={"type": "json_schema", "schema": schema}).json()
    assert json.loads(body["content"][0]["text"])["n"] in (1, 2)


def test_at_most_one_tool_is_used_where_only_one_may_be(tiny_server: Server) -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    message = post(tiny_server, max_tokens=200, tools=[TOOL], tool_choice=choice).json()
    assert [block["type"] for block in message["content"]] == ["tool_use"] and message["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"city": "Bonn", "days": [1, 2', {"city": "Bonn", "days": [1, 2]}),
        ('{"city": "Bo', {}),
        ('{"a": 123456789012345678901234567890, "b"', {"a": 1.2345678901234568e29}),
        ('{"smile": "\\ud83d\\ude00", "half": "\\ud83d', {"smile": "\U0001f600"}),
        ("", {}),
        ('["no object"', {}),
    ],
)
def test_a_call_that_the_limit_cuts_has_what_was_whole(arguments: str, expected: dict[str, Any]) -> None:
    machine = MessageAnswer(parse(MessagesRequest, ASK), "served", 10)
    script = [piece(0, "get_weather", arguments), finish(FinishReason.LENGTH)]
    events = play(machine, script)
    assert machine.object["content"][0]["input"] == expected and machine.object["stop_reason"] == "max_tokens"
    partial = "".join(event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta")
    assert partial == arguments


SCRIPTS: list[list[TextEvent]] = [
    [text("a"), finish()],
    [thought("so"), text("a"), calls(WEATHER, TIME), text("b"), finish(cached=4)],
    [finish(FinishReason.STOP_SEQUENCE, "END")],
    [piece(0, "f", '{"a'), finish(FinishReason.LENGTH)],
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_sdk_knows_every_field(script: list[TextEvent]) -> None:
    thinking = {"type": "adaptive"}
    machine = MessageAnswer(parse(MessagesRequest, {**ASK, "thinking": thinking}), "served", 10)
    events = play(machine, script)
    strictly(Message, machine.object)
    for event in events:
        if event["type"] != "ping":  # which the SDK's types leave out
            strictly(RawMessageStreamEvent, event)
    assert [event["index"] for event in events if event["type"] == "content_block_start"] == list(
        range(len(machine.object["content"]))
    )


def test_every_answer_has_a_request_id(tiny_server: Server, client: anthropic.Anthropic) -> None:
    seen = [client.messages.create(**ASK)._request_id, client.messages.count_tokens(model="m", messages=HI)._request_id]
    seen.append(client.models.list()._request_id)  # type: ignore[attr-defined]
    seen.append(post(tiny_server, stream=True).headers["request-id"])
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**{**ASK, "max_tokens": 0})
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.batches.retrieve("b")
    for error in (refused.value, missing.value):
        assert error.body["request_id"] == error.request_id  # type: ignore[index]
        seen.append(error.request_id)
    assert all(request_id and request_id.startswith("req_") for request_id in seen) and len(set(seen)) == len(seen)


def test_models_in_both_forms_on_one_path(tiny_server: Server, client: anthropic.Anthropic) -> None:
    (model,) = client.models.list()
    openai_form = httpx.get(f"{tiny_server.url}/v1/models").json()
    assert openai_form["object"] == "list" and openai_form["data"][0]["id"] == model.id
    headers = {"anthropic-version": "2023-06-01"}
    page = httpx.get(f"{tiny_server.url}/v1/models", headers=headers).json()
    assert page["has_more"] is False and page["first_id"] == page["last_id"] == model.id
    strictly(ModelInfo, page["data"][0])
    assert client.models.retrieve(model.id) == model
    assert model.type == "model" and model.display_name and model.created_at.year == 1970
    assert list(client.models.list(after_id=model.id)) == []
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.models.retrieve("claude-none")
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    assert httpx.get(f"{tiny_server.url}/v1/models/claude-none").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("edits", "remembered"),
    [
        (None, ["a", "b", "c"]),
        ([{"type": "clear_thinking_20251015", "keep": "all"}], ["a", "b", "c"]),
        ([{"type": "clear_thinking_20251015"}], ["b", "c"]),
        ([{"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns", "value": 2}}], ["a", "b", "c"]),
    ],
)
def test_earlier_thoughts_go_to_templates_that_read_them(edits: Any, remembered: list[str]) -> None:
    def thinking(text: str, *rest: dict[str, Any]) -> dict[str, Any]:
        return {"role": "assistant", "content": [{"type": "thinking", "thinking": text, "signature": "s"}, *rest]}

    use = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "ok"}
    messages = [
        {"role": "user", "content": "one"},
        thinking("a", {"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "1"}),
        {"role": "user", "content": [{"type": "text", "text": "two"}]},
        thinking("b", use),
        {"role": "user", "content": [result]},
        thinking("c", {"type": "text", "text": "2"}),
        {"role": "user", "content": [result]},
    ]
    found = translated(messages=messages, context_management={"edits": edits}, tools=[TOOL])
    assert [message["reasoning_content"] for message in found if "reasoning_content" in message] == remembered
