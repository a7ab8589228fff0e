"""OpenAI's Responses: items of every kind, log-probabilities, truncation, paging, and that the SDK's types know all of it."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent

from tests.api.scripted import NATIVE, WEATHER, calls, finish, piece, play, strictly, text, thought
from tests.text.test_tool_formats import tokenizer
from tests.writing_model import MAX_TOKENS, Writing, writing
from tgi_local.api.truncation import droppable, without
from tgi_local.errors import UnsupportedError, ValidationError
from tgi_local.protocol.responses import ResponsesRequest, to_chat
from tgi_local.protocol.responses_answers import ResponseAnswer
from tgi_local.protocol.responses_items import InputItem, listed, to_turns
from tgi_local.protocol.wire import parse
from tgi_local.types import FinishReason, TextEvent, TextToken

ASK: dict[str, Any] = {"model": "tgi", "input": "hi", "temperature": 0}
TOOL: dict[str, Any] = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": False}
USER = {"role": "user", "content": "hi"}


@pytest.fixture
async def server() -> AsyncIterator[Writing]:
    async with writing(tokenizer("hermes", "special")) as running:
        running.says("Good day to you.")
        yield running


async def post(server: Writing, path: str = "", **body: Any) -> Any:
    answer = await server.client.post(f"/v1/responses{path}", json={**ASK, **body})
    assert answer.status_code == 200, answer.text
    return answer.json() if not body.get("stream") else events(answer.text)


def events(text: str) -> list[Any]:
    found = [json.loads(block.split("data: ", 1)[1]) for block in text.strip().split("\n\n")]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    for event in found:
        strictly(ResponseStreamEvent, {name: value for name, value in event.items() if name != "obfuscation"})
    return found


def machine(**body: Any) -> ResponseAnswer:
    return ResponseAnswer(parse(ResponsesRequest, {**ASK, **body}), "served", NATIVE)


def items(*given: dict[str, Any]) -> list[InputItem]:
    return [parse(InputItem, item) for item in given]


SHELL = {"type": "exec", "command": ["ls", "-l"], "env": {}, "working_directory": "/tmp", "timeout_ms": None}
HISTORY: list[dict[str, Any]] = [
    {"role": "developer", "content": "s"},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "x"}], "encrypted_content": "e"},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
    {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "s", "tools": []},
    {"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]},
    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "one"}]},
    {"type": "custom_tool_call", "call_id": "c2", "name": "run", "input": "pass"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": "two"},
    {"type": "local_shell_call", "id": "lsh_1", "call_id": "c3", "status": "completed", "action": SHELL},
    {"type": "local_shell_call_output", "id": "c3", "output": "three"},
    {"type": "mcp_call", "id": "mcp_1", "server_label": "s", "name": "m", "arguments": "{}", "output": "four"},
]


def test_histories_of_every_kind_are_read() -> None:
    turns = to_turns(items(*HISTORY))
    assert [turn["role"] for turn in turns] == ["developer", "user", *["assistant", "tool"] * 4]
    assert [turn["content"] for turn in turns] == ["s", "hi", "a", "one", "", "two", "", "three", "", "four"]
    made = [call["function"] for turn in turns for call in turn.get("tool_calls", [])]
    assert made == [
        {"name": "f", "arguments": "{}"},
        {"name": "run", "arguments": {"input": "pass"}},
        {"name": "local_shell", "arguments": {"command": ["ls", "-l"], "working_directory": "/tmp"}},
        {"name": "m", "arguments": "{}"},
    ]
    ids = [call["id"] for turn in turns for call in turn.get("tool_calls", [])]
    assert ids == [turn["tool_call_id"] for turn in turns if turn["role"] == "tool"] == ["c1", "c2", "c3", "mcp_1"]
    to_chat(parse(ResponsesRequest, ASK), turns)


@pytest.mark.parametrize(
    "item",
    [
        {"type": "computer_call", "id": "i", "call_id": "c", "action": {"type": "screenshot"}},
        {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot"}},
        {"type": "image_generation_call", "id": "i", "result": "x"},
        {"type": "code_interpreter_call", "id": "i", "code": "x", "outputs": []},
        {"type": "file_search_call", "id": "i", "queries": ["q"], "results": [{"text": "t"}]},
        {"type": "shell_call_output", "call_id": "c", "output": [{"stdout": "x", "stderr": ""}]},
        {"type": "compaction", "encrypted_content": "x"},
    ],
)
def test_items_that_are_refused_by_name(item: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=item["type"]):
        to_turns(items(item))


def test_outputs_of_a_wrong_shape() -> None:
    with pytest.raises(ValidationError, match="string or a list"):
        to_turns(items({"type": "function_call_output", "call_id": "c", "output": {"a": 1}}))
    with pytest.raises(UnsupportedError, match="input_image"):
        to_turns(items({"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}))


def test_every_item_is_listed_as_the_sdk_knows_it() -> None:
    for item in items(*HISTORY):
        strictly(ResponseItem, listed(item.with_id()))


async def test_input_items_are_paged(server: Writing) -> None:
    first = await post(server, input=[USER, {"role": "assistant", "content": "a"}, USER])
    second = await post(server, input="more", previous_response_id=first["id"])
    path = f"/v1/responses/{second['id']}/input_items"
    whole = (await server.client.get(path, params={"order": "asc"})).json()
    for item in whole["data"]:
        strictly(ResponseItem, item)
    # What it was made from: the conversation before it, and its own input.
    assert [item["role"] for item in whole["data"]] == ["user", "assistant", "user", "assistant", "user"]
    assert whole["data"][3]["content"][0]["text"] == "Good day to you." and whole["has_more"] is False
    assert whole["data"][3]["id"] == first["output"][0]["id"]
    assert (whole["first_id"], whole["last_id"]) == (whole["data"][0]["id"], whole["data"][-1]["id"])
    ids = [item["id"] for item in whole["data"]]
    assert len(set(ids)) == 5
    for order, expected in (("asc", ids), (None, ids[::-1])):
        seen: list[str] = []
        while len(seen) < 5:
            params = {"limit": "2"} | ({"after": seen[-1]} if seen else {}) | ({"order": order} if order else {})
            page = (await server.client.get(path, params=params)).json()
            seen += [item["id"] for item in page["data"]]
            assert page["has_more"] is (len(seen) < 5)
        assert seen == expected
    for params, param in (({"limit": "0"}, "limit"), ({"limit": "x"}, "limit"), ({"order": "up"}, "order")):
        refused = await server.client.get(path, params=params)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == param
    assert (await server.client.get(path, params={"after": "msg_none"})).status_code == 404
    assert (await server.client.get("/v1/responses/resp_none/input_items")).status_code == 404


async def test_a_response_that_is_not_stored_is_not_found(server: Writing) -> None:
    answer = await post(server, store=False)
    assert answer["store"] is False
    for path in (answer["id"], f"{answer['id']}/input_items"):
        missing = await server.client.get(f"/v1/responses/{path}")
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "response_not_found"


async def test_only_a_background_response_could_be_cancelled(server: Writing) -> None:
    answer = await post(server)
    refused = await server.client.post(f"/v1/responses/{answer['id']}/cancel")
    assert refused.status_code == 400 and "background" in refused.json()["error"]["message"]
    assert (await server.client.post("/v1/responses/resp_none/cancel")).status_code == 404


async def test_what_was_asked_for_is_shown(server: Writing) -> None:
    fields: dict[str, Any] = {
        "max_tool_calls": 3,
        "metadata": {"k": "v"},
        "prompt_cache_key": "key",
        "safety_identifier": "id",
        "user": "u",
        "truncation": "auto",
        "max_output_tokens": 50,
        "parallel_tool_calls": False,
        "instructions": "be kind",
    }
    given = {
        **fields,
        "service_tier": "flex",
        "text": {"verbosity": "low", "format": {"type": "text"}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "tools": [TOOL, {"type": "web_search"}],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "get_weather"}],
        },
        "stream_options": {"include_obfuscation": False},
    }
    answer = await post(server, **given)
    strictly(Response, answer)
    assert fields.items() <= answer.items() and answer["service_tier"] == "default"
    assert answer["text"] == given["text"] and answer["reasoning"] == given["reasoning"]
    assert [tool["name"] for tool in answer["tools"]] == ["get_weather"] and answer["tool_choice"] == given[
        "tool_choice"
    ]


@pytest.mark.parametrize(
    "body", [{"include": ["message.output_text.logprobs"], "top_logprobs": 0}, {"top_logprobs": 0}], ids=["both", "top"]
)
async def test_log_probabilities(server: Writing, body: dict[str, Any]) -> None:
    answer = await post(server, **body)
    strictly(Response, answer)
    (part,) = answer["output"][0]["content"]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"] == "Good day to you."
    assert all(
        entry["logprob"] == -1.0 and bytes(entry["bytes"]).decode() == entry["token"] for entry in part["logprobs"]
    )
    streamed = await post(server, **body, stream=True)
    deltas = [event for event in streamed if event["type"] == "response.output_text.delta"]
    for event in deltas:
        assert "".join(entry["token"] for entry in event["logprobs"]) == event["delta"]
    (done,) = (event for event in streamed if event["type"] == "response.output_text.done")
    assert done["logprobs"] == [entry for event in deltas for entry in event["logprobs"]]
    assert streamed[-1]["response"]["output"][0]["content"] == [part]
    plain = await post(server)
    assert plain["output"][0]["content"][0]["logprobs"] == []


def test_log_probabilities_are_of_the_text_alone() -> None:
    def token(shown: str, special: bool = False) -> TextToken:
        return TextToken(1, shown, -0.5, special, (TextToken(2, "alt", -1.5, False),))

    script = [
        TextEvent(token("hm"), reasoning="hm"),
        TextEvent(token("</think>", special=True)),
        TextEvent(token("I"), text="I"),
        TextEvent(token(" l")),  # held back, as it might begin a stop string
        TextEvent(token("ook"), text=" look"),
        TextEvent(token("{"), tool_calls=piece(0, "f", "{").tool_calls),
        TextEvent(token("}"), tool_calls=piece(0, None, "}", is_last=True).tool_calls),
        TextEvent(token("END")),
        finish(),
    ]
    answer = machine(top_logprobs=1)
    made = play(answer, script)
    (part,) = answer.output[1]["content"]
    assert [entry["token"] for entry in part["logprobs"]] == ["I", " l", "ook"]
    assert [entry["top_logprobs"][0]["token"] for entry in part["logprobs"]] == ["alt"] * 3
    for event in made:
        strictly(ResponseStreamEvent, event)


def test_a_summary_is_the_thought_itself() -> None:
    script = [thought("so "), thought("what"), text("hi"), finish()]
    answer = machine(reasoning={"summary": "auto"})
    made = play(answer, script)
    for event in made:
        strictly(ResponseStreamEvent, event)
    assert (
        answer.output[0]["summary"] == [{"type": "summary_text", "text": "so what"}] and not answer.output[0]["content"]
    )
    kinds = [event["type"].removeprefix("response.") for event in made][2:8]
    assert kinds == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
    ]
    unasked = machine()
    play(unasked, script)
    assert unasked.output[0]["content"][0]["text"] == "so what" and unasked.output[0]["summary"] == []


@pytest.mark.parametrize("last", [finish(), finish(FinishReason.LENGTH)])
def test_the_sdk_knows_every_event(last: TextEvent) -> None:
    for script in ([text("a")], [thought("x"), text("a"), calls(WEATHER), text("b")], [], [piece(0, "f", '{"a')]):
        answer = machine(tools=[TOOL])
        for event in play(answer, [*script, last]):
            strictly(ResponseStreamEvent, event)
        strictly(Response, answer.object)


def test_deltas_are_padded_for_who_asks() -> None:
    sizes = set()
    for word in ("a", "a longer text", "é" * 9):
        answer = machine(stream_options={"include_obfuscation": True})
        (delta,) = (event for event in play(answer, [text(word), finish()]) if event["type"].endswith("delta"))
        sizes.add((len(delta["delta"].encode()) + len(delta["obfuscation"])) % 16)
    assert sizes == {0}
    assert all("obfuscation" not in event for event in play(machine(), [text("a"), finish()]))


def turn(role: str, content: str = "x") -> dict[str, Any]:
    return {"role": role, "content": content}


def test_what_may_be_dropped() -> None:
    roles = [
        "system",
        "user",
        "assistant",
        "tool",
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "tool",
    ]
    turns = [turn(role, str(i)) for i, role in enumerate(roles)]

    def left(count: int) -> list[int]:
        return [int(kept["content"]) for kept in without(turns, droppable(turns)[:count])]

    assert left(0) == list(range(12))
    assert left(1) == [0, *range(1, 12)] and left(2) == [0, *range(4, 12)] and left(3) == [0, *range(6, 12)]
    # The question of the user stays, and what came last.
    assert left(4) == left(99) == [0, 6, 10, 11]
    assert droppable([turn("user")]) == droppable([turn("system"), turn("user")])[1:] == []


async def test_the_oldest_goes_where_the_rest_does_not_fit(server: Writing) -> None:
    hundred = "word " * 100
    long = hundred * (3 * MAX_TOKENS // 10 // len(server.tokenizer.encode(hundred)))  # three of them fit
    conversation: list[Any] = [{"role": "developer", "content": "Be kind."}]
    for _ in range(4):
        conversation += [{"role": "user", "content": long}, {"role": "assistant", "content": "yes"}]
    conversation += [{"role": "user", "content": "last"}]
    refused = await server.client.post("/v1/responses", json={**ASK, "input": conversation})
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"
    answer = await post(server, input=conversation, truncation="auto", max_output_tokens=50)
    assert answer["truncation"] == "auto" and answer["output"][0]["content"][0]["text"] == "Good day to you."
    # As little as possible was dropped, and what is left are whole exchanges.
    kept = await post(server, "/input_tokens", input=[conversation[0], *conversation[-7:]])
    assert answer["usage"]["input_tokens"] == kept["input_tokens"]
    counted = await post(server, "/input_tokens", input=conversation, truncation="auto")
    assert counted == kept
    # A question that is too long by itself is still refused.
    alone = await server.client.post("/v1/responses", json={**ASK, "input": long * 20, "truncation": "auto"})
    assert alone.status_code == 400 and alone.json()["error"]["param"] == "input"


def test_references_may_leave_out_their_type() -> None:
    assert (
        items({"id": "msg_1"})[0].referred_id
        == items({"type": "item_reference", "id": "msg_1"})[0].referred_id
        == "msg_1"
    )
    assert items({"id": "msg_1", **USER})[0].referred_id is None
