"""OpenAI's Responses, through its own SDK: objects, numbered events, stored conversations, refusals, errors."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from tests.api.scripted import NATIVE, TIME, WEATHER, calls, finish, play, replaying, text, thought
from tests.in_process import InProcess, serving
from tests.serving import Server
from tgi_local.api.response_store import ResponseStore
from tgi_local.engine.step import StepPlan
from tgi_local.errors import NotFoundError, UnsupportedError
from tgi_local.protocol.openai import to_messages
from tgi_local.protocol.responses import ResponsesRequest, template_kwargs, to_chat
from tgi_local.protocol.responses_answers import ResponseAnswer
from tgi_local.protocol.responses_items import InputItem, to_turns
from tgi_local.protocol.wire import parse
from tgi_local.types import FinishReason, TextEvent

ASK: dict[str, Any] = {"model": "tgi", "input": "hi", "max_output_tokens": 6, "temperature": 0}
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Bonn", "Oslo"]}}, "required": ["city"]},
    "strict": False,
}
# What differs between two responses to the same request.
OWN = {"id", "created_at", "completed_at"}


class Weather(BaseModel):
    city: Literal["Bonn", "Oslo"]


@pytest.fixture
def client(tiny_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def post(server: Server, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/responses", json={**ASK, **body}, timeout=60)


def wire_events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    events = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        event, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert event == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def answer(script: list[TextEvent], **body: Any) -> tuple[list[dict[str, Any]], ResponseAnswer]:
    machine = ResponseAnswer(parse(ResponsesRequest, {**ASK, **body}), "served", NATIVE)
    return play(machine, script), machine


def items(*given: dict[str, Any]) -> list[InputItem]:
    return [parse(InputItem, item) for item in given]


def test_response(tiny_server: Server, client: openai.OpenAI) -> None:
    response = client.responses.create(**ASK, metadata={"k": "v"})
    assert response.id.startswith("resp_") and response.object == "response" and response.error is None
    assert response.model == httpx.get(f"{tiny_server.url}/info").json()["model_id"]
    assert response.status == "incomplete" and response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    (message,) = response.output
    assert message.type == "message" and message.role == "assistant" and message.status == "incomplete"
    assert response.metadata == {"k": "v"} and response.temperature == 0 and response.max_output_tokens == 6
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0}
    same = httpx.post(f"{tiny_server.url}/v1/chat/completions", json=chat).json()
    assert response.output_text == same["choices"][0]["message"]["content"]
    usage = response.usage
    assert usage is not None and usage.output_tokens == 6 and usage.input_tokens == same["usage"]["prompt_tokens"]
    assert usage.total_tokens == usage.input_tokens + 6


def test_stream_is_the_response_in_typed_events(tiny_server: Server, client: openai.OpenAI) -> None:
    events = wire_events(post(tiny_server, stream=True))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    whole = client.responses.create(**ASK)
    last = events[-1]["response"]
    assert "".join(event["delta"] for event in events[4:-4]) == whole.output_text
    streamed = Response.model_validate(last)
    assert streamed.output_text == whole.output_text and len({e.get("item_id") for e in events[3:-2]}) == 1
    hidden = {*OWN, "output", "usage"}
    assert streamed.model_dump(exclude=hidden) == whole.model_dump(exclude=hidden)
    with client.responses.stream(**ASK) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == whole.output_text


async def test_async_client(tiny_server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{tiny_server.url}/v1", api_key="-", max_retries=0) as client:
        whole = await client.responses.create(**ASK)
        stream = await client.responses.create(**ASK, stream=True)
        kinds = [event.type async for event in stream]
        async with client.responses.stream(**ASK) as helper:
            parts = [event.delta async for event in helper if event.type == "response.output_text.delta"]
        counted = await client.responses.input_tokens.count(model="tgi", input="hi")
    assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete"
    assert "".join(parts) == whole.output_text
    assert whole.usage is not None and counted.input_tokens == whole.usage.input_tokens


def test_a_conversation_goes_on_from_a_stored_response(client: openai.OpenAI) -> None:
    first = client.responses.create(**ASK, instructions="be kind")
    second = client.responses.create(**{**ASK, "input": "and now?"}, previous_response_id=first.id)
    explicit: Any = [
        {"role": "user", "content": "hi"},
        *(item.model_dump() for item in first.output),
        {"role": "user", "content": [{"type": "input_text", "text": "and now?"}]},
    ]
    # Instructions are not carried on.
    same = client.responses.create(**{**ASK, "input": explicit}, store=False)
    assert second.output_text == same.output_text and second.previous_response_id == first.id
    assert second.usage is not None and same.usage is not None
    assert second.usage.input_tokens == same.usage.input_tokens
    found = client.responses.retrieve(second.id)
    assert found.model_dump() == second.model_dump()
    client.responses.delete(first.id)
    for gone in (first.id, same.id, "resp_unknown"):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone)
        with pytest.raises(openai.NotFoundError) as missing:
            client.responses.create(**ASK, previous_response_id=gone)
        assert missing.value.param == "previous_response_id"
        assert missing.value.code == "previous_response_not_found"
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(gone)
    # A stored response holds its whole conversation.
    third = client.responses.create(**{**ASK, "input": "more"}, previous_response_id=second.id)
    assert third.usage is not None and third.usage.input_tokens > second.usage.input_tokens


def test_input_may_refer_to_stored_items(client: openai.OpenAI) -> None:
    first = client.responses.create(**ASK)
    (item,) = first.output
    question: Any = {"role": "user", "content": "hi"}
    # The type of a reference may be left out.
    for reference in ({"type": "item_reference", "id": item.id}, {"id": item.id}):
        referring = client.responses.create(**{**ASK, "input": [question, reference, question]})
        spelled = client.responses.create(**{**ASK, "input": [question, item.model_dump(), question]})
        assert referring.output_text == spelled.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(**{**ASK, "input": [{"type": "item_reference", "id": item.id}]})
    assert missing.value.param == "input" and missing.value.code == "item_not_found"


def test_what_was_streamed_is_stored_too(tiny_server: Server, client: openai.OpenAI) -> None:
    last = wire_events(post(tiny_server, stream=True))[-1]["response"]
    assert client.responses.retrieve(last["id"]).output_text == last["output"][0]["content"][0]["text"]


def test_store_is_bounded_by_number_and_size() -> None:
    def response(name: str, size: int = 10) -> dict[str, Any]:
        return {"id": name, "text": "x" * size}

    store = ResponseStore(max_responses=2, max_bytes=1000)
    for name in "abc":
        store.put(response(name), [])
        if name == "b":
            store.get("a")
    store.get("a")
    with pytest.raises(NotFoundError):
        store.get("b")
    store.put(response("big", 885), [InputItem(role="user")])
    store.get("big")
    for name in "ac":
        with pytest.raises(NotFoundError):
            store.get(name)
    store.put(response("too big", 2000), [])
    for name in ("big", "too big"):
        with pytest.raises(NotFoundError):
            store.get(name)
    store.put(response("a"), [], [InputItem(id="item", content="x")])
    assert store.item("item").content == "x"
    store.delete("a")
    with pytest.raises(NotFoundError):
        store.item("item")
    assert store._num_bytes == 0 and not store._owners


def test_thoughts_belong_to_what_comes_after_them() -> None:
    summary = [{"type": "summary_text", "text": "a tool"}]
    given = items(
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": "e"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "ok"},
        {"type": "reasoning", "id": "rs_2", "summary": [], "content": [{"type": "reasoning_text", "text": "done"}]},
        {"role": "assistant", "content": "Done."},
        {"role": "assistant", "content": "And?"},
    )
    thoughts = [turn.get("reasoning_content") for turn in to_turns(given)]
    assert thoughts == [None, "a tool", None, "done", None]
    chat = to_chat(parse(ResponsesRequest, {**ASK}), to_turns(given))
    assert to_messages(chat)[1]["reasoning_content"] == "a tool"


def test_items_become_turns() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"}
    output = [{"type": "input_text", "text": "ra"}, {"type": "input_text", "text": "in"}]
    given = items(
        {"role": "developer", "content": "s"},
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        call,
        {**call, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": output},
        {"type": "function_call_output", "call_id": "c2", "output": "sun"},
        {**call, "call_id": "c3"},
    )
    turns = to_turns(given)
    made = [{"id": f"c{n}", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}} for n in (1, 2)]
    assert turns[:-1] == [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "I look.", "tool_calls": made, "reasoning_content": "hm"},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        {"role": "tool", "content": "sun", "tool_call_id": "c2"},
    ]
    assert turns[-1]["content"] == "" and turns[-1]["tool_calls"][0]["id"] == "c3"
    chat = to_chat(parse(ResponsesRequest, {**ASK, "instructions": "i", "tools": [TOOL]}), turns)
    assert to_messages(chat)[0] == {"role": "system", "content": "i"}
    assert chat.offered_tools[0].name == "get_weather" and chat.max_completion_tokens == 6


@pytest.mark.parametrize("choice", ["auto", "none", "required", {"type": "function", "name": "get_weather"}])
def test_tool_choice_in_a_chats_words(choice: Any) -> None:
    chat = to_chat(
        parse(ResponsesRequest, {**ASK, "tools": [TOOL], "tool_choice": choice}),
        to_turns(items({"role": "user", "content": "hi"})),
    )
    named = {"type": "function", "function": {"name": "get_weather"}}
    assert chat.tool_choice == (choice if isinstance(choice, str) else named)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_forced_tools_are_called(client: openai.OpenAI, choice: Any) -> None:
    ask = {**ASK, "max_output_tokens": 100, "tools": [TOOL], "tool_choice": choice}
    response = client.responses.create(**ask)
    assert response.status == "completed" and response.output
    for item in response.output:
        assert item.type == "function_call" and item.name == "get_weather"
        assert json.loads(item.arguments) in ({"city": "Bonn"}, {"city": "Oslo"})
    with client.responses.stream(**ask) as stream:
        final = stream.get_final_response()
    assert [item.arguments for item in final.output] == [item.arguments for item in response.output]  # type: ignore[union-attr]
    results: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "rain"}  # type: ignore[union-attr]
        for item in response.output
    ]
    after = client.responses.create(**{**ASK, "input": results}, previous_response_id=response.id, tools=[TOOL])
    assert after.output_text


def test_text_format_is_kept_to(client: openai.OpenAI) -> None:
    response = client.responses.parse(**{**ASK, "max_output_tokens": 100}, text_format=Weather)
    assert isinstance(response.output_parsed, Weather) and response.status == "completed"
    assert response.text is not None and response.text.format is not None
    assert response.text.format.type == "json_schema"


def test_text_format_in_a_chats_words() -> None:
    def translated(format: dict[str, Any]) -> dict[str, Any] | None:
        return to_chat(
            parse(ResponsesRequest, {**ASK, "text": {"format": format}}),
            to_turns(items({"role": "user", "content": "hi"})),
        ).response_format

    schema = {"name": "n", "schema": {"type": "object"}, "strict": True}
    assert translated({"type": "text"}) is None
    assert translated({"type": "json_object"}) == {"type": "json_object"}
    assert translated({"type": "json_schema", **schema}) == {"type": "json_schema", "json_schema": schema}


def test_calls_and_thoughts_as_items() -> None:
    script = [thought("so "), thought("what"), text("I "), text("look."), calls(WEATHER, TIME), finish(cached=4)]
    events, machine = answer(script, tools=[TOOL])
    response = Response.model_validate(machine.object)
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]
    assert response.status == "completed" and response.output_text == "I look."
    assert response.usage is not None and response.usage.input_tokens_details.cached_tokens == 4
    assert response.usage.output_tokens_details.reasoning_tokens == 2
    assert machine.output[2]["arguments"] == WEATHER.arguments and machine.output[2]["call_id"].startswith("call_")
    client = openai.OpenAI(api_key="-", http_client=replaying(events))
    with client, client.responses.stream(**ASK) as stream:
        seen = list(stream)
        final = stream.get_final_response()
    assert {"response.reasoning_text.delta", "response.function_call_arguments.done"} <= {event.type for event in seen}
    assert final.model_dump(exclude_none=True, warnings=False)["output"] == [
        {**item, "parsed_arguments": final.output[index].parsed_arguments}  # type: ignore[union-attr]
        if item["type"] == "function_call" and final.output[index].parsed_arguments is not None  # type: ignore[union-attr]
        else item
        for index, item in enumerate(response.model_dump(exclude_none=True, warnings=False)["output"])
    ]
    # What it said can be given back as input.
    (turn,) = to_turns([parse(InputItem, item) for item in machine.output])
    assert turn["content"] == "I look." and [call["id"] for call in turn["tool_calls"]] == [
        item["call_id"] for item in machine.output[2:]
    ]


def test_every_event_is_one_the_sdk_knows() -> None:
    events, _ = answer([thought("a"), text("b"), calls(WEATHER), text("c"), finish(FinishReason.LENGTH)])
    client = openai.OpenAI(api_key="-", http_client=replaying(events))
    with client:
        received = list(client.responses.create(**ASK, stream=True))
    for seen, event in zip(received, events, strict=True):
        dumped = type(seen).model_validate(event).model_dump(exclude_unset=True, warnings=False)
        assert dumped["type"] == event["type"] == seen.type
    added = [event["output_index"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["output_index"] for event in events if event["type"] == "response.output_item.done"]
    assert added == done == [0, 1, 2, 3]


def test_an_empty_answer_is_an_empty_message() -> None:
    _, machine = answer([finish()])
    assert machine.output[0]["content"][0]["text"] == "" and machine.object["status"] == "completed"


def test_effort_goes_to_templates_that_read_it() -> None:
    def kwargs(effort: str, *names: str) -> dict[str, Any]:
        return template_kwargs(parse(ResponsesRequest, {**ASK, "reasoning": {"effort": effort}}), names.__contains__)

    assert kwargs("low", "reasoning_effort") == {"reasoning_effort": "low"}
    assert kwargs("low", "enable_thinking") == {"enable_thinking": True}
    assert kwargs("none", "enable_thinking") == {"enable_thinking": False}
    assert kwargs("high") == {}


IMAGE = {"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}


def test_tools_that_agents_offer_anyway_are_left_out_beside_functions() -> None:
    # As Codex 0.169 does in every request.
    tools = [
        TOOL,
        {"type": "web_search", "external_web_access": False},
        {"type": "namespace", "name": "agents", "tools": []},
    ]
    chat = to_chat(parse(ResponsesRequest, {**ASK, "tools": tools}), to_turns(items({"role": "user", "content": "hi"})))
    assert [function.name for function in chat.offered_tools] == ["get_weather"]
    for served_by_others in ("file_search", "mcp", "code_interpreter"):
        with pytest.raises(UnsupportedError, match="only tools of type function"):
            to_chat(
                parse(ResponsesRequest, {**ASK, "tools": [TOOL, {"type": served_by_others}]}),
                to_turns(items({"role": "user", "content": "hi"})),
            )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [IMAGE]}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x " * 9000, "max_output_tokens": None}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "x"}}}}, "text.format"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"truncation": "middle"}, "truncation"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"text": {"verbosity": "silent"}}, "text.verbosity"),
        ({"reasoning": {"summary": "none"}}, "reasoning.summary"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "mcp", "server_label": "s"}}, "tool_choice"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
        ({"metadata": {"k": 1}}, "metadata.k"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_fields_are_refused_by_name(tiny_server: Server, body: dict[str, Any], param: str, stream: bool) -> None:
    response = post(tiny_server, stream=stream, **body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == param


def test_neutral_values_are_accepted(client: openai.OpenAI) -> None:
    neutral: dict[str, Any] = {
        "background": False,
        "include": ["reasoning.encrypted_content"],
        "parallel_tool_calls": True,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "tool_choice": "none",
        "tools": [TOOL],
        "truncation": "disabled",
        "user": "u",
        "service_tier": "auto",
    }
    assert client.responses.create(**ASK, **neutral).output_text


def test_a_stored_response_is_not_streamed_again(client: openai.OpenAI) -> None:
    first = client.responses.create(**ASK)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.retrieve(first.id, stream=True)
    assert refused.value.param == "stream"


@pytest.fixture
async def fake(tiny_folder: Path) -> AsyncIterator[InProcess]:
    async with serving(tiny_folder) as server:
        yield server


@pytest.mark.logs_errors
async def test_an_error_after_the_start_is_a_failed_response(fake: InProcess) -> None:
    def fail_late(plan: StepPlan) -> None:
        if fake.runner.num_steps == 4:
            raise RuntimeError("boom")

    fake.runner.before_step = fail_late
    streamed = await fake.client.post("/v1/responses", json={**ASK, "max_output_tokens": 20, "stream": True})
    last = wire_events(streamed)[-1]  # type: ignore[arg-type]
    assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error" and "boom" not in streamed.text
    found = await fake.client.get(f"/v1/responses/{last['response']['id']}")
    assert found.status_code == 404


@pytest.mark.logs_errors
async def test_an_error_before_the_answer_is_a_status(fake: InProcess) -> None:
    def fail(plan: StepPlan) -> None:
        raise RuntimeError("boom")

    fake.runner.before_step = fail
    response = await fake.client.post("/v1/responses", json=ASK)
    assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
