"""Anthropic's Messages, through its own SDK: objects, typed events, counts, refusals, errors."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx
import httpx2
import pytest
from pydantic import BaseModel

from tests.api.scripted import TIME, WEATHER, calls, finish, play, replaying, text, thought
from tests.in_process import InProcess, serving
from tests.serving import Server
from tgi_local.api.security import SecurityGate, SecurityPolicy
from tgi_local.engine.step import StepPlan
from tgi_local.protocol.anthropic import CountTokensRequest, MessagesRequest, template_kwargs, to_chat
from tgi_local.protocol.anthropic_answers import MessageAnswer
from tgi_local.protocol.openai import to_messages
from tgi_local.protocol.tools import to_tools
from tgi_local.protocol.wire import parse
from tgi_local.types import FinishReason, TextEvent, ToolCall

HI: list[Any] = [{"role": "user", "content": "hi"}]
TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "of a city",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Bonn", "Oslo"]}}, "required": ["city"]},
}
ASK: dict[str, Any] = {"model": "tgi", "messages": HI, "max_tokens": 6}
# This SDK has no sampling parameters any more; older ones send them as fields of the body, as this does.
GREEDY: dict[str, Any] = {**ASK, "extra_body": {"temperature": 0.0}}


class Weather(BaseModel):
    city: Literal["Bonn", "Oslo"]


@pytest.fixture
def client(tiny_server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=tiny_server.url, api_key="-", max_retries=0) as client:
        yield client


def post(server: Server, path: str = "", **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/messages{path}", json={**ASK, "temperature": 0, **body}, timeout=60)


def wire_events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    events = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        event, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert event == f"event: {events[-1]['type']}"
    return events


def answer(script: list[TextEvent], **body: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    machine = MessageAnswer(parse(MessagesRequest, {**ASK, **body}), "served", 10)
    return play(machine, script), machine.object


def test_message(tiny_server: Server, client: anthropic.Anthropic) -> None:
    message = client.messages.create(**GREEDY)
    assert message.id.startswith("msg_") and message.type == "message" and message.role == "assistant"
    assert message.model == httpx.get(f"{tiny_server.url}/info").json()["model_id"]
    (block,) = message.content
    assert block.type == "text" and block.text
    assert message.stop_reason == "max_tokens" and message.stop_sequence is None
    assert message.usage.output_tokens == 6
    chat = {"messages": HI, "max_tokens": 6, "temperature": 0}
    same = httpx.post(f"{tiny_server.url}/v1/chat/completions", json=chat).json()
    assert block.text == same["choices"][0]["message"]["content"]
    cached = message.usage.cache_read_input_tokens
    assert cached is not None and message.usage.input_tokens + cached == same["usage"]["prompt_tokens"]
    named = client.messages.create(**{**ASK, "model": "claude-x", "max_tokens": 1})
    assert named.model == "claude-x"


def test_stream_is_the_message_in_typed_events(tiny_server: Server, client: anthropic.Anthropic) -> None:
    events = wire_events(post(tiny_server, stream=True))
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert events[0]["message"]["content"] == [] and events[0]["message"]["stop_reason"] is None
    whole = client.messages.create(**GREEDY)
    with client.messages.stream(**GREEDY) as stream:
        parts = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(parts) > 1 and "".join(parts) == whole.content[0].text  # type: ignore[union-attr]
    ours = {"id", "usage"}
    assert final.model_dump(exclude=ours) == whole.model_dump(exclude=ours)
    assert final.usage.output_tokens == whole.usage.output_tokens
    total = [u.input_tokens + (u.cache_read_input_tokens or 0) for u in (final.usage, whole.usage)]
    assert total[0] == total[1]


async def test_async_client(tiny_server: Server) -> None:
    async with anthropic.AsyncAnthropic(base_url=tiny_server.url, api_key="-", max_retries=0) as client:
        whole = await client.messages.create(**GREEDY)
        async with client.messages.stream(**GREEDY) as stream:
            parts = [part async for part in stream.text_stream]
        raw = [event.type async for event in await client.messages.create(**GREEDY, stream=True)]
        counted = await client.messages.count_tokens(model="tgi", messages=HI)
    assert "".join(parts) == whole.content[0].text  # type: ignore[union-attr]
    assert raw[0] == "message_start" and raw[-1] == "message_stop"
    assert counted.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)


def test_stop_sequence(client: anthropic.Anthropic) -> None:
    long = client.messages.create(**{**GREEDY, "max_tokens": 40}).content[0].text  # type: ignore[union-attr]
    stop = long[7:10]
    message = client.messages.create(**{**GREEDY, "max_tokens": 40}, stop_sequences=["never", stop])
    assert message.stop_reason == "stop_sequence" and message.stop_sequence == stop
    assert message.content[0].text == long[: long.index(stop)]  # type: ignore[union-attr]


def test_sampling_is_honoured(client: anthropic.Anthropic) -> None:
    def texts(**sampling: float) -> set[str]:
        messages = [client.messages.create(**ASK, extra_body=sampling) for _ in range(4)]
        # What holds only special tokens has no content.
        return {"".join(block.text for block in message.content) for message in messages}  # type: ignore[union-attr]

    assert len(texts()) > 1 and len(texts(temperature=1.0, top_p=0.99)) > 1
    assert len(texts(temperature=1.0, top_k=1)) == 1


def test_prefill_system_and_counts(tiny_server: Server, client: anthropic.Anthropic) -> None:
    bare = client.messages.count_tokens(model="tgi", messages=HI).input_tokens
    blocks: Any = [{"type": "text", "text": "be "}, {"type": "text", "text": "kind", "cache_control": None}]
    one = client.messages.count_tokens(model="tgi", messages=HI, system="be kind").input_tokens
    two = client.messages.count_tokens(model="tgi", messages=HI, system=blocks).input_tokens
    assert one == two > bare
    prefilled = [*HI, {"role": "assistant", "content": "count to"}]
    assert client.messages.create(**{**GREEDY, "messages": prefilled}).content


def test_a_conversation_with_tools_becomes_a_chat() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "weather "}, {"type": "text", "text": "in Bonn?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Bonn"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "tool_result", "tool_use_id": "toolu_9", "content": "no such city", "is_error": True},
                {"type": "text", "text": "and now?"},
            ],
        },
    ]
    chat = to_chat(parse(MessagesRequest, {**ASK, "system": "s", "messages": messages, "tools": [TOOL]}))
    call = {"id": "toolu_1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Bonn"}}}
    assert to_messages(chat) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "weather in Bonn?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "toolu_1", "name": "get_weather"},
        {"role": "tool", "content": "Error: no such city", "tool_call_id": "toolu_9"},
        {"role": "user", "content": "and now?"},
    ]
    tools = to_tools(chat.offered_tools)
    assert tools is not None and tools[0]["function"]["parameters"] == TOOL["input_schema"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "any"}, "required"),
        ({"type": "tool", "name": "get_weather"}, {"type": "function", "function": {"name": "get_weather"}}),
    ],
)
def test_tool_choice_in_a_chats_words(choice: dict[str, Any], expected: object) -> None:
    chat = to_chat(parse(MessagesRequest, {**ASK, "tools": [TOOL], "tool_choice": choice}))
    assert chat.tool_choice == expected
    assert bool(chat.offered_tools) is (choice["type"] != "none")


def test_output_format_and_effort_in_other_words() -> None:
    schema = {"type": "object"}
    config = {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}
    body = parse(MessagesRequest, {**ASK, "output_config": config})
    wanted = {"name": "output", "schema": schema, "strict": True}
    assert to_chat(body).response_format == {"type": "json_schema", "json_schema": wanted}
    assert template_kwargs(body, lambda name: name == "reasoning_effort") == {"reasoning_effort": "low"}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_forced_tools_are_used(client: anthropic.Anthropic, choice: Any) -> None:
    ask = {**GREEDY, "max_tokens": 100, "tools": [TOOL], "tool_choice": choice}
    message = client.messages.create(**ask)
    assert message.stop_reason == "tool_use"
    for block in message.content:
        assert block.type == "tool_use" and block.name == "get_weather"
        assert block.input in ({"city": "Bonn"}, {"city": "Oslo"})
    with client.messages.stream(**ask) as stream:
        final = stream.get_final_message()
    assert [block.input for block in final.content] == [block.input for block in message.content]  # type: ignore[union-attr]
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": "rain"} for block in message.content]  # type: ignore[union-attr]
    turns: Any = [*HI, message.to_param(), {"role": "user", "content": results}]
    assert client.messages.create(**{**GREEDY, "messages": turns, "tools": [TOOL]}).content


def test_output_format_is_kept_to(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**{**GREEDY, "max_tokens": 100}, output_format=Weather) as stream:
        final = stream.get_final_message()
    assert isinstance(final.parsed_output, Weather) and final.stop_reason == "end_turn"


def test_tool_use_and_text_around_it() -> None:
    script = [text("I "), text("look."), calls(WEATHER, TIME), text("Done"), finish(cached=4)]
    events, message = answer(script, tools=[TOOL])
    kinds = [block["type"] for block in message["content"]]
    assert kinds == ["text", "tool_use", "tool_use", "text"] and message["stop_reason"] == "tool_use"
    assert message["content"][1]["input"] == {"city": "Bonn"}
    assert message["usage"] == {
        "input_tokens": 6,
        "output_tokens": 7,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
    }
    client = anthropic.Anthropic(api_key="-", http_client=replaying(events))
    with client, client.messages.stream(**GREEDY) as stream:
        final = stream.get_final_message()
    expected = anthropic.types.Message.model_validate(message)
    assert final.model_dump(exclude_none=True, warnings=False) == expected.model_dump(exclude_none=True)


def test_thinking_is_shown_when_asked_for() -> None:
    script = [thought("so "), thought("what"), text("hi"), finish()]
    events, message = answer(script, thinking={"type": "enabled", "budget_tokens": 1024})
    assert message["content"] == [
        {"type": "thinking", "thinking": "so what", "signature": ""},
        {"type": "text", "text": "hi"},
    ]
    assert [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"] == [
        "thinking_delta",
        "thinking_delta",
        "text_delta",
    ]
    for unasked in ({}, {"thinking": {"type": "disabled"}}, {"thinking": {"type": "adaptive", "display": "omitted"}}):
        assert answer(script, **unasked)[1]["content"] == [{"type": "text", "text": "hi"}]


def test_thinking_switches_the_template() -> None:
    def kwargs(**body: Any) -> dict[str, bool]:
        request = parse(CountTokensRequest, {"messages": HI, **body})
        return template_kwargs(request, lambda name: name == "enable_thinking")

    assert kwargs() == kwargs(thinking={"type": "disabled"}) == {"enable_thinking": False}
    enabled = {"type": "enabled", "budget_tokens": 1024}
    assert kwargs(thinking=enabled) == {"enable_thinking": True}
    assert kwargs(thinking={"type": "adaptive"}) == {"enable_thinking": True}


def test_a_model_without_thoughts_answers_who_asks_for_them(tiny_server: Server) -> None:
    # As Claude Code does in every request.
    plain = post(tiny_server, temperature=0).json()["content"]
    for thinking in ({"type": "enabled", "budget_tokens": 31_999}, {"type": "adaptive", "display": "updates"}):
        asked = post(tiny_server, thinking=thinking, temperature=0)
        assert asked.status_code == 200 and asked.json()["content"] == plain


@pytest.mark.parametrize(
    ("last", "reason", "stop"),
    [
        (finish(), "end_turn", None),
        (finish(FinishReason.LENGTH), "max_tokens", None),
        (finish(FinishReason.STOP_SEQUENCE, "END"), "stop_sequence", "END"),
    ],
)
def test_stop_reasons(last: TextEvent, reason: str, stop: str | None) -> None:
    events, message = answer([last])
    assert (message["stop_reason"], message["stop_sequence"], message["content"]) == (reason, stop, [])
    assert events[-2]["delta"] == {"stop_reason": reason, "stop_sequence": stop}


def test_arguments_that_no_answer_could_carry_are_mended() -> None:
    _, message = answer([calls(ToolCall(0, "f", '{"a":"\\ud800"}')), finish()])
    assert message["content"][0]["input"] == {"a": "\ufffd"}


IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x"}}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "image"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]}, "tool_use_id"),
        ({"temperature": -1}, "temperature"),
        ({"stop_sequences": list("abcdef")}, "stop"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "type custom"),
        ({"thinking": {"type": "enabled", "budget_tokens": "much"}}, "thinking.budget_tokens"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"system": "z" * 9000}, "prompt is too long"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_fields_are_refused_by_name(tiny_server: Server, body: dict[str, Any], named: str, stream: bool) -> None:
    response = post(tiny_server, stream=stream, **body)
    assert response.status_code == 400, response.text
    reply = response.json()
    assert set(reply) == {"type", "error", "request_id"} and reply["type"] == "error"
    assert reply["error"]["type"] == "invalid_request_error" and named in reply["error"]["message"]


def test_errors_reach_the_sdk_as_its_own(tiny_server: Server, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(**ASK, extra_body={"temperature": -1})
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.batches.list()
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    wrong = httpx.get(f"{tiny_server.url}/v1/messages")
    assert wrong.status_code == 405 and wrong.json()["type"] == "error"
    plain = httpx.post(f"{tiny_server.url}/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert plain.status_code == 400 and plain.json()["error"]["type"] == "invalid_request_error"


async def test_the_gate_refuses_in_the_same_form() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("a wrong key passed the gate")

    gate = SecurityGate(app, SecurityPolicy(api_key="k", allowed_hosts=None))
    async with (
        httpx2.AsyncClient(transport=httpx2.ASGITransport(gate)) as transport,
        anthropic.AsyncAnthropic(base_url="http://test", api_key="wrong", http_client=transport) as client,
    ):
        with pytest.raises(anthropic.AuthenticationError) as refused:
            await client.messages.create(**ASK)
    assert refused.value.body == {
        "type": "error",
        "error": {"type": "authentication_error", "message": "Missing or wrong API key"},
    }


@pytest.fixture
async def fake(tiny_folder: Path) -> AsyncIterator[InProcess]:
    async with serving(tiny_folder) as server:
        yield server


@pytest.mark.logs_errors
async def test_an_error_after_the_start_is_an_event(fake: InProcess) -> None:
    def fail_late(plan: StepPlan) -> None:
        if fake.runner.num_steps == 4:
            raise RuntimeError("boom")

    fake.runner.before_step = fail_late
    streamed = await fake.client.post("/v1/messages", json={**ASK, "max_tokens": 20, "stream": True})
    last = streamed.text.removesuffix("\n\n").split("\n\n")[-1]
    event, data = last.split("\n")
    assert event == "event: error" and json.loads(data.removeprefix("data: "))["error"]["type"] == "api_error"
    assert "boom" not in streamed.text


@pytest.mark.logs_errors
async def test_an_error_before_the_answer_is_a_status(fake: InProcess) -> None:
    def fail(plan: StepPlan) -> None:
        raise RuntimeError("boom")

    fake.runner.before_step = fail
    response = await fake.client.post("/v1/messages", json=ASK)
    assert response.status_code == 500 and response.json()["error"]["type"] == "api_error"
    fake.service.drain()
    response = await fake.client.post("/v1/messages", json=ASK)
    assert response.status_code == 503 and response.json()["error"]["type"] == "overloaded_error"


def test_tool_runners_are_told_to_go_on_without_threads(tiny_server: Server) -> None:
    """A thread that is not kept would end in a second turn without the first."""
    response = post(tiny_server, thread={"type": "create"})
    told = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert response.status_code == 400 and response.json()["error"]["details"] == told
