"""Custom tools, whose input is free text: over chat and responses, whole and streamed, and back again in the next turn."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response, ResponseStreamEvent

from tests.api.scripted import strictly
from tests.text.families import WEATHER
from tests.text.test_tool_formats import tokenizer
from tests.writing_model import Writing, writing
from tgi_local.protocol.custom_tools import InputReader, input_of

HI = [{"role": "user", "content": "hi"}]
CUSTOM: dict[str, Any] = {"name": "run", "description": "Runs code."}
REGEX = {"syntax": "regex", "definition": r"print\([0-9]+\)|pass"}
CODE = 'print("Füße")\n\tx = {1: "a\\n"} \U0001f600'


@pytest.fixture
async def server() -> AsyncIterator[Writing]:
    async with writing(tokenizer("hermes", "special")) as running:
        yield running


def call(text: str, name: str = "run") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps({"input": text}, ensure_ascii=False)}}}\n</tool_call>'


def chunks(text: str) -> list[Any]:
    blocks = [block.split("data: ", 1)[1] for block in text.strip().split("\n\n")]
    return [json.loads(block) for block in blocks if block != "[DONE]"]


def chat_tools(**custom: Any) -> list[dict[str, Any]]:
    function = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}
    return [{"type": "custom", "custom": {**CUSTOM, **custom}}, function]


async def ask_chat(server: Writing, says: str, **body: Any) -> Any:
    """The message, which the streamed answer must be, too."""
    server.says(says)
    body = {"messages": HI, "tools": chat_tools(), **body}
    whole = await server.client.post("/v1/chat/completions", json=body)
    assert whole.status_code == 200, whole.text
    strictly(ChatCompletion, {k: v for k, v in whole.json().items() if k != "model"} | {"model": "m"})
    message = whole.json()["choices"][0]["message"]
    streamed = await server.client.post("/v1/chat/completions", json={**body, "stream": True})
    calls: list[Any] = []
    for chunk in chunks(streamed.text):
        for piece in chunk["choices"][0]["delta"].get("tool_calls", []):
            if "id" in piece:
                calls.append({"type": piece["type"], piece["type"]: piece[piece["type"]]})
            else:
                (kind,) = piece.keys() - {"index"}
                field = "input" if kind == "custom" else "arguments"
                calls[piece["index"]][kind][field] += piece[kind][field]
    assert calls == [{k: v for k, v in found.items() if k != "id"} for found in message.get("tool_calls", [])]
    return message


async def test_a_chat_calls_a_custom_tool(server: Writing) -> None:
    message = await ask_chat(server, call(CODE))
    (made,) = message["tool_calls"]
    assert made["type"] == "custom" and made["custom"] == {"name": "run", "input": CODE}
    assert made["id"].startswith("call_")


async def test_functions_and_custom_tools_side_by_side(server: Writing) -> None:
    weather = (
        f'<tool_call>\n{{"name": "get_weather", "arguments": {json.dumps({"city": "Bonn", "days": 1})}}}\n</tool_call>'
    )
    message = await ask_chat(server, f"{weather}\n{call('pass')}")
    assert [made["type"] for made in message["tool_calls"]] == ["function", "custom"]
    assert message["tool_calls"][1]["custom"]["input"] == "pass"


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "custom", "custom": {"name": "run"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "custom", "custom": {"name": "run"}}]},
        },
    ],
)
async def test_a_custom_tool_can_be_chosen(server: Writing, choice: Any) -> None:
    (made,) = (await ask_chat(server, call("pass"), tool_choice=choice))["tool_calls"]
    assert made["custom"] == {"name": "run", "input": "pass"}


async def test_a_regular_expression_holds_the_input(server: Writing) -> None:
    for grammar in (REGEX, None):
        format = {"type": "grammar", "grammar": grammar} if grammar is not None else {"type": "text"}
        message = await ask_chat(server, call("rm -rf"), tools=chat_tools(format=format), max_tokens=200)
        given = message["tool_calls"][0]["custom"]["input"]
        # Without one, the negative control, it is what the model wants.
        assert (given == "rm -rf") is (grammar is None)


@pytest.mark.parametrize(
    ("format", "words"),
    [
        ({"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /a/"}}, "Lark"),
        ({"type": "grammar", "grammar": {"syntax": "bnf", "definition": "x"}}, "syntax"),
        ({"type": "grammar"}, "syntax"),
        ({"type": "grammar", "grammar": {"syntax": "regex", "definition": "(?=x)"}}, "grammar is not valid"),
        ({"type": "poem"}, "text or grammar"),
    ],
)
async def test_formats_that_are_refused(server: Writing, format: dict[str, Any], words: str) -> None:
    body = {"messages": HI, "tools": chat_tools(format=format)}
    answer = await server.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text
    assert answer.json()["error"]["param"] == "tools"


async def test_calls_come_back_in_the_next_turn(server: Writing) -> None:
    made = {"id": "c1", "type": "custom", "custom": {"name": "run", "input": "pass"}}
    history = [
        *HI,
        {"role": "assistant", "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "c1", "content": "ok"},
    ]
    body = {"messages": history, "tools": chat_tools()}
    rendered = (await server.client.post("/chat_tokenize", json=body)).json()["templated_text"]
    assert '"name": "run"' in rendered and '{"input": "pass"}' in rendered and "ok" in rendered
    items = [
        {"role": "user", "content": "hi"},
        {"type": "custom_tool_call", "call_id": "c1", "name": "run", "input": "pass"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "ok"}]},
    ]
    tools = [{"type": "custom", **CUSTOM}, {"type": "function", "name": "get_weather", "parameters": WEATHER}]
    counted = await server.client.post("/v1/responses/input_tokens", json={"input": items, "tools": tools})
    tokens = (await server.client.post("/chat_tokenize", json=body)).json()["tokenize_response"]
    assert counted.json()["input_tokens"] == len(tokens)


async def test_a_response_calls_a_custom_tool(server: Writing) -> None:
    tool = {"type": "custom", **CUSTOM, "format": {"type": "text"}}
    body = {"input": "hi", "tools": [tool], "tool_choice": {"type": "custom", "name": "run"}}
    server.says(call(CODE))
    response = (await server.client.post("/v1/responses", json=body)).json()
    strictly(Response, response)
    (item,) = response["output"]
    assert item["type"] == "custom_tool_call" and item["input"] == CODE and item["name"] == "run"
    assert item["id"].startswith("ctc_") and item["call_id"].startswith("call_") and response["tools"] == [tool]
    streamed = chunks((await server.client.post("/v1/responses", json={**body, "stream": True})).text)
    for event in streamed:
        strictly(ResponseStreamEvent, event)
    deltas = [event["delta"] for event in streamed if event["type"] == "response.custom_tool_call_input.delta"]
    (done,) = (event for event in streamed if event["type"] == "response.custom_tool_call_input.done")
    assert "".join(deltas) == CODE == done["input"] and len(deltas) > 3
    assert streamed[-1]["response"]["output"][0]["input"] == CODE
    # What it asked for is known when its result comes.
    result = {"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "ok"}
    server.says("Good.")
    after = {"input": [result], "tools": [tool], "previous_response_id": response["id"]}
    final = (await server.client.post("/v1/responses", json=after)).json()
    assert final["output"][0]["content"][0]["text"] == "Good."


@pytest.mark.parametrize("text", ["", "a", CODE, '"\\" \\u0041 \x01 é', "\U0001f600" * 3])
def test_input_is_read_as_it_grows(text: str) -> None:
    for ensure_ascii in (True, False):
        arguments = json.dumps({"input": text}, ensure_ascii=ensure_ascii)
        for size in (1, 2, 3, 7, 1000):
            reader = InputReader()
            pieces = [arguments[i : i + size] for i in range(0, len(arguments), size)]
            assert "".join(map(reader.read, pieces)) == text
        assert all(text.startswith(input_of(arguments[:end])) for end in range(len(arguments)))
    assert input_of("no json") == input_of('{"input": 3}') == input_of('["input"]') == ""
