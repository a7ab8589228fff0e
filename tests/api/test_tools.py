"""Tools over HTTP, in each family's own format: whole and streamed answers, choices, rounds, and what is refused."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.text.conftest import byte_level_backend
from tests.text.families import FAMILIES, HERMES, WEATHER
from tests.text.test_tool_formats import CONVERSATION, tokenizer
from tests.writing_model import Writing, writing
from tgi_local.text.response_template import reads_calls
from tgi_local.text.tokenizer import TextTokenizer

HI = [{"role": "user", "content": "hi"}]
FUNCTIONS = [{"name": "get_weather", "description": "d", "parameters": WEATHER}, {"name": "stop"}]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
CALLS = [("get_weather", {"city": "Bonn", "days": 3}), ("stop", {})]
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}


async def chat(server: Writing, says: str, **body: Any) -> Any:
    """One choice; the streamed answer must be the same in pieces."""
    body = {"messages": HI, "tools": TOOLS, **body}
    server.says(says)
    answer = await server.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    streamed = await server.client.post("/v1/chat/completions", json={**body, "stream": True})
    assert folded(events(streamed.text)) == without_ids(choice)
    return choice


def events(text: str) -> list[Any]:
    blocks = [block.split("data: ", 1)[1] for block in text.strip().split("\n\n")]
    return [json.loads(block) for block in blocks if block != "[DONE]"]


def without_ids(choice: Any) -> Any:
    message = choice["message"]
    calls = [(call["type"], call["function"]) for call in message.get("tool_calls", [])]
    older = message.get("function_call")
    return message["content"] or "", message.get("reasoning") or "", calls, older, choice["finish_reason"]


def folded(chunks: list[Any]) -> Any:
    """What an OpenAI client makes of the chunks, and that they are such as it expects."""
    content = reasoning = finish = ""
    calls: dict[int, Any] = {}
    older: Any = None
    for chunk in chunks:
        (choice,) = chunk["choices"]
        assert not finish
        delta, finish = choice["delta"], choice["finish_reason"] or ""
        assert delta["role"] == "assistant"
        content += delta["content"] or ""
        reasoning += delta.get("reasoning") or ""
        for piece in delta.get("tool_calls", []):
            function = piece["function"]
            if "id" in piece:
                assert piece["id"].startswith("call_") and piece["index"] == len(calls) and function["name"]
                calls[piece["index"]] = (piece["type"], dict(function))
            else:
                assert "type" not in piece and "name" not in function
                calls[piece["index"]][1]["arguments"] += function["arguments"]
        if piece := delta.get("function_call"):
            older = older or {"name": piece["name"], "arguments": ""}
            older["arguments"] += piece["arguments"]
    return content, reasoning, list(calls.values()), older, finish


def called(choice: Any) -> list[Any]:
    calls = choice["message"].get("tool_calls", [])
    assert len({call["id"] for call in calls}) == len(calls)
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


@asynccontextmanager
async def family_server(name: str, **options: Any) -> AsyncIterator[Writing]:
    async with writing(tokenizer(name, "special"), **options) as server:
        yield server


@pytest.fixture
async def server() -> AsyncIterator[Writing]:
    async with family_server("hermes") as running:
        yield running


@pytest.mark.parametrize("name", FAMILIES)
async def test_each_family_s_calls(name: str) -> None:
    family = FAMILIES[name]
    async with family_server(name) as server:
        for choice in ("auto", "required"):
            answer = await chat(server, family.calls, tool_choice=choice)
            assert called(answer) == CALLS and answer["finish_reason"] == "tool_calls"
            assert answer["message"]["content"] is None
        named = {"type": "function", "function": {"name": "get_weather"}}
        assert called(await chat(server, family.calls, tool_choice=named)) == CALLS[:1]
        assert called(await chat(server, family.calls, parallel_tool_calls=False)) == CALLS[:1]
        text = await chat(server, family.answers("Fine { weather."))
        assert (text["message"]["content"], text["finish_reason"]) == ("Fine { weather.", "stop")
        # The next round: the calls made here come back with their ids.
        message = {**answer["message"]}
        results = [{"role": "tool", "tool_call_id": c["id"], "content": "rain"} for c in message["tool_calls"]]
        after = await chat(server, family.answers("Rain."), messages=[*HI, message, *results])
        assert after["message"]["content"] == "Rain."
        assert (await chat(server, family.answers("Done."), messages=CONVERSATION))["message"]["content"] == "Done."
    async with family_server(name, with_grammars=False) as unconstrained:
        answer = await chat(unconstrained, family.calls)
        assert called(answer) == CALLS and answer["finish_reason"] == "tool_calls"


async def test_arguments_come_as_they_are_generated(server: Writing) -> None:
    server.says("Let me see. " + FAMILIES["hermes"].calls)
    body = {"messages": HI, "tools": TOOLS, "stream": True}
    chunks = events((await server.client.post("/v1/chat/completions", json=body)).text)
    first = [piece for chunk in chunks for piece in chunk["choices"][0]["delta"].get("tool_calls", [])]
    first = [piece for piece in first if piece["index"] == 0]
    assert first[0]["function"] == {"name": "get_weather", "arguments": ""} and len(first) > 5
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_call_cut_by_the_limit(server: Writing) -> None:
    calls = FAMILIES["hermes"].calls
    length = len(server.tokenizer.encode(calls[: calls.index("days")]))
    cut = await chat(server, calls, max_tokens=length)
    (call,) = cut["message"]["tool_calls"]
    assert cut["finish_reason"] == "length" and call["function"]["arguments"].startswith('{"city": "Bonn"')
    head = await chat(server, calls, max_tokens=5)
    assert head["finish_reason"] == "length" and head["message"]["content"].startswith("<tool_call>")


async def test_tools_and_a_format_for_the_answer(server: Writing) -> None:
    both: dict[str, Any] = {"response_format": FORMAT}
    assert called(await chat(server, FAMILIES["hermes"].calls, **both)) == CALLS
    assert (await chat(server, '{"ok": true}', **both))["message"]["content"] == '{"ok": true}'
    assert json.loads((await chat(server, "no JSON at all", tools=[], **both))["message"]["content"]).keys() == {"ok"}
    assert called(await chat(server, FAMILIES["hermes"].calls, tool_choice="required", **both)) == CALLS
    none = await chat(server, '{"ok": false}', tool_choice="none", **both)
    assert none["message"]["content"] == '{"ok": false}'
    async with family_server("llama") as bare:
        assert called(await chat(bare, FAMILIES["llama"].calls, **both)) == CALLS
        assert (await chat(bare, '{"ok": true}', **both))["message"]["content"] == '{"ok": true}'


STOP: dict[str, Any] = {"type": "function", "function": {"name": "stop"}}
FLAT: dict[str, Any] = {"type": "function", "name": "stop"}


@pytest.mark.parametrize(
    "choice",
    [
        "stop",
        STOP,
        FLAT,
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [STOP]}},
        {"type": "allowed_tools", "mode": "required", "tools": [FLAT]},
    ],
)
async def test_forms_of_a_forced_choice(server: Writing, choice: Any) -> None:
    answer = await chat(server, FAMILIES["hermes"].calls, tool_choice=choice)
    assert {name for name, _ in called(answer)} == {"stop"} and answer["finish_reason"] == "tool_calls"


async def test_allowed_tools_in_auto_mode(server: Writing) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [STOP]}}
    assert (await chat(server, "No.", tool_choice=choice))["message"]["content"] == "No."
    assert {name for name, _ in called(await chat(server, FAMILIES["hermes"].calls, tool_choice=choice))} == {"stop"}


async def test_openai_s_older_functions(server: Writing) -> None:
    calls = FAMILIES["hermes"].calls
    older: dict[str, Any] = {"tools": None, "functions": FUNCTIONS}
    for choice in (None, "auto", {"name": "get_weather"}):
        answer = await chat(server, calls, function_call=choice, **older)
        function = answer["message"]["function_call"]
        assert (function["name"], json.loads(function["arguments"])) == CALLS[0]
        assert answer["finish_reason"] == "function_call" and "tool_calls" not in answer["message"]
    assert (await chat(server, "No.", function_call="none", **older))["message"]["content"] == "No."
    history = [
        *HI,
        {"role": "assistant", "content": None, "function_call": {"name": "stop", "arguments": "{}"}},
        {"role": "function", "name": "stop", "content": "stopped"},
    ]
    assert (await chat(server, "Good.", messages=history, **older))["finish_reason"] == "stop"


async def test_tgi_s_prompt_for_tools_follows_the_last_message(server: Writing) -> None:
    async def prompt(**body: Any) -> Any:
        answer = await server.client.post("/chat_tokenize", json={"messages": HI, "tools": TOOLS, **body})
        return answer.json()["templated_text"]

    assert (await prompt(tool_prompt="Use them.")) == (await prompt()).replace("hi<", "hi\n---\nUse them.<")
    assert "Use them." not in await prompt(tool_prompt="Use them.", tools=None)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"tools": [{"type": "custom"}]}, "tools", "missing field `custom`"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].custom.name", "missing field `name`"),
        ({"tools": [{"type": "web_search"}]}, "tools", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "missing field `function`"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "missing field `name`"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice", "x not found"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "some"}}}, "tool_choice", "mode"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "x"}]}}, "tool_choice", "x not"),
        ({"tool_choice": "unknown"}, "tool_choice", "Tool with name unknown not found"),
        ({"response_format": {"type": "json", "value": SCHEMA}}, "response_format", "mutually exclusive"),
        ({"tools": [], "response_format": {"type": "json", "value": SCHEMA}}, "response_format", "mutually exclusive"),
        ({"response_format": FORMAT, "guided_regex": "a"}, "response_format", "only one grammar"),
        ({"regex": "a", "json_schema": SCHEMA}, "regex", "only one grammar"),
        ({"guided_grammar": "root ::= x"}, "guided_grammar", "Rule 'x' not found"),
        ({"response_format": {"type": "structural_tag", "structures": []}}, "response_format", "not supported"),
        ({"response_format": {"type": "grammar", "grammar": 3}}, "response_format", "not a valid grammar"),
        ({"grammar": 'root ::= "a', "tools": None}, "grammar", "neither GBNF nor Lark"),
        ({"guided_choice": []}, "guided_choice", "not a valid choice"),
        ({"structured_outputs": {"regex": 3}}, "structured_outputs", "not a valid regex"),
    ],
)
async def test_what_is_refused_by_name(server: Writing, body: dict[str, Any], param: str, words: str) -> None:
    request = {"messages": HI, "tools": TOOLS, **body}
    answer = await server.client.post("/v1/chat/completions", json=request)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and words in error["message"], answer.text


@pytest.mark.parametrize(
    ("body", "says", "written"),
    [
        ({"guided_json": SCHEMA}, "x", {"ok"}),
        ({"guided_json": json.dumps(SCHEMA)}, "x", {"ok"}),
        ({"structured_outputs": {"json": SCHEMA}}, "x", {"ok"}),
        ({"guided_regex": "a{3}/b"}, "aaa/b", "aaa/b"),
        ({"structured_outputs": {"regex": "a{3}"}}, "x", "aaa"),
        ({"guided_choice": ["no.", "yes (1)"]}, "yes (2)", "yes (1)"),
        ({"structured_outputs": {"choice": ["no."]}}, "yes", "no."),
        ({"json_schema": SCHEMA, "regex": ""}, "x", {"ok"}),
        ({"regex": "a{3}", "json_schema": {}, "ebnf": None}, "x", "aaa"),
        ({"guided_grammar": 'root ::= "a" num\nnum ::= [0-9] [0-9]\n'}, "a42", "a42"),
        ({"structured_outputs": {"grammar": 'start: "a" NUM\nNUM: /[0-9]{2}/'}}, "a42", "a42"),
        ({"grammar": 'root ::= "no" | "yes."'}, "yes.", "yes."),
        ({"grammar": ""}, "as it likes", "as it likes"),
        ({"ebnf": 'root ::= "no"\n    | "yes."\n'}, "yes.", "yes."),
        ({"regex": "a{3}"}, "x", "aaa"),
        ({"json_schema": SCHEMA}, "x", {"ok"}),
        ({"json_schema": json.dumps(SCHEMA)}, "x", {"ok"}),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "x", {"ok"}),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, "x", {"ok"}),
        ({"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, "x", {"ok"}),
        ({"response_format": {"type": "grammar", "grammar": 'root ::= "no"'}}, "yes", "no"),
        ({"response_format": {"type": "regex", "pattern": "a{3}"}}, "x", "aaa"),
    ],
)
async def test_what_other_servers_clients_send(server: Writing, body: dict[str, Any], says: str, written: Any) -> None:
    chatted = (await chat(server, says, tools=None, **body))["message"]["content"]
    completed = await server.client.post("/v1/completions", json={"prompt": "x", "max_tokens": 50, **body})
    for text in (chatted, completed.json()["choices"][0]["text"]):
        assert text == written if isinstance(written, str) else set(json.loads(text)) == written


THINKING = HERMES.replace(
    "<|im_start|>assistant\\n' }}{% endif %}", "<|im_start|>assistant\\n' + OPENING }}{% endif %}"
)


def thinker(opening: str) -> TextTokenizer:
    words = FAMILIES["hermes"].tokenizer(special=False)
    words._transformers_tokenizer.chat_template = THINKING.replace("OPENING", f"'{opening}'") + "{#- <think> #}"
    return words


@pytest.mark.parametrize(
    ("opening", "says"), [("<think>\\n", "hm {\n</think>\n\n"), ("", "<think>\nhm {\n</think>\n\n"), ("", "")]
)
async def test_a_model_that_thinks_does_so_before_what_is_constrained(opening: str, says: str) -> None:
    thought = "hm {" if says else ""
    async with writing(thinker(opening)) as server:
        for body in ({"response_format": FORMAT, "tools": None}, {"response_format": FORMAT}):
            answer = (await chat(server, says + '{"ok": true}', **body))["message"]
            assert (answer.get("reasoning", "").strip(), answer["content"]) == (thought, '{"ok": true}')
        for choice in ("auto", "required"):
            answer = await chat(server, says + FAMILIES["hermes"].calls, tool_choice=choice)
            assert called(answer) == CALLS and answer["message"].get("reasoning", "").strip() == thought
        if opening:
            endless = await chat(server, "hm")
            assert endless["message"]["reasoning"] == "hm" and endless["finish_reason"] == "stop"


async def test_a_thought_that_the_template_closed_is_not_opened_again() -> None:
    async with writing(thinker("<think>\\n\\n</think>\\n\\n")) as server:
        answer = await chat(server, "<think>hm</think>" + '{"ok": true}', tools=None, response_format=FORMAT)
        assert "reasoning" not in answer["message"] and json.loads(answer["message"]["content"]).keys() == {"ok"}


async def test_calls_in_thoughts_are_thoughts() -> None:
    async with writing(thinker("<think>\\n")) as server:
        says = "I could <tool_call>\nwhatever</tool_call></think>No."
        answer = await chat(server, says)
        assert answer["message"]["content"] == "No." and "whatever" in answer["message"]["reasoning"]


OWN_FORMAT = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {},
        "tool_calls": {
            "open": "<|call|>",
            "close": "<|done|>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": {"name": "{content.fn}", "arguments": "{content.args}"}},
        },
    },
}


async def test_a_checkpoint_may_tell_how_its_calls_are_read() -> None:
    backend = Tokenizer.from_str(byte_level_backend().to_str().replace("tool_call>", "another>"))
    backend.add_tokens([AddedToken(token, special=True) for token in ("<|call|>", "<|done|>")])
    words = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", response_template=OWN_FORMAT)
    words.chat_template = (
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    call = '<|call|>{"fn": "get_weather", "args": {"city": "Bonn", "days": 3}}<|done|>'
    async with writing(TextTokenizer(words)) as server:
        answer = await chat(server, "I look. " + call + call.replace("get_weather", "stop"))
        assert called(answer) == [CALLS[0], ("stop", CALLS[0][1])] and answer["finish_reason"] == "tool_calls"
        assert answer["message"]["content"].strip() == "I look."
        assert (await chat(server, "Plain < text."))["message"]["content"] == "Plain < text."
        broken = await chat(server, "I look. <|call|>{no}<|done|> Yes.")
        assert "{no}" in broken["message"]["content"] and "Yes." in broken["message"]["content"]
        named = await chat(server, "x", tool_choice="stop")
        assert [name for name, _ in called(named)] == ["stop"]
    assert reads_calls(OWN_FORMAT) and not reads_calls({"fields": {"tool_calls": {"open_pattern": "("}}})
    assert not reads_calls(None) and not reads_calls({"fields": {"content": {}}})


async def test_responses_and_messages_stream_arguments_too(server: Writing) -> None:
    calls = FAMILIES["hermes"].calls
    server.says(calls)
    flat = [{"type": "function", "name": f["name"], "parameters": f.get("parameters")} for f in FUNCTIONS]
    body: dict[str, Any] = {"input": "hi", "tools": flat, "tool_choice": "required", "stream": True}
    found = events((await server.client.post("/v1/responses", json=body)).text)
    deltas = [event["delta"] for event in found if event["type"] == "response.function_call_arguments.delta"]
    items = [item for item in found[-1]["response"]["output"] if item["type"] == "function_call"]
    assert len(deltas) > 5 and "".join(deltas) == "".join(item["arguments"] for item in items)
    dones = [event["arguments"] for event in found if event["type"] == "response.function_call_arguments.done"]
    assert dones == [item["arguments"] for item in items] and [item["name"] for item in items] == [
        "get_weather",
        "stop",
    ]
    whole = (await server.client.post("/v1/responses", json={**body, "stream": False})).json()
    assert [item["arguments"] for item in whole["output"]] == dones
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "stop"}]}
    only = (await server.client.post("/v1/responses", json={**body, "stream": False, "tool_choice": choice})).json()
    assert {item["name"] for item in only["output"] if item["type"] == "function_call"} == {"stop"}

    tools = [{"name": f["name"], "input_schema": f.get("parameters")} for f in FUNCTIONS]
    ask: dict[str, Any] = {"messages": HI, "max_tokens": 300, "tools": tools, "tool_choice": {"type": "any"}}
    found = events((await server.client.post("/v1/messages", json={**ask, "stream": True})).text)
    deltas = [e["delta"]["partial_json"] for e in found if e.get("delta", {}).get("type") == "input_json_delta"]
    assert len(deltas) > 5 and found[-2]["delta"]["stop_reason"] == "tool_use"
    message = (await server.client.post("/v1/messages", json=ask)).json()
    assert [(block["name"], block["input"]) for block in message["content"]][:1] == CALLS[:1]
    assert "".join(deltas).startswith('{"city": "Bonn", "days": 3}')
    single = {"type": "auto", "disable_parallel_tool_use": True}
    message = (await server.client.post("/v1/messages", json={**ask, "tool_choice": single})).json()
    assert [block["name"] for block in message["content"]] == ["get_weather"]
    cut = (await server.client.post("/v1/messages", json={**ask, "max_tokens": 30})).json()
    assert cut["stop_reason"] == "max_tokens"
