"""Grammars and tools over HTTP: what a random model answers is valid all the same."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from huggingface_hub import InferenceClient
from pydantic import BaseModel, Field
from transformers import AutoTokenizer

from tests.checkpoints import make_checkpoint
from tests.serving import Server, running
from tests.text.schemas import SCHEMAS

HI: Any = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "temperature": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "note": {"type": "string", "maxLength": 4},
    },
    "required": ["unit", "temperature", "note"],
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop"}},
]
HERMES = (
    "{%- if tools %}{{ tools | tojson }} Answer with <tool_call></tool_call>{% endif %}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tool_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A random model with an EOS token and a template that writes tools, tool calls between tags of one token each."""
    folder = make_checkpoint(tmp_path_factory.mktemp("tools"), eos_token_id=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer.chat_template = HERMES
    tokenizer.save_pretrained(folder)
    with running("--model-id", str(folder), "--dtype", "float32", "--disable-ui") as server:
        yield server
        server.wait_idle()


def chat(server: Server, **body: Any) -> Any:
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json={"messages": HI, "max_tokens": 600, **body}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def generate(server: Server, grammar: Any, **parameters: Any) -> httpx.Response:
    parameters = {"max_new_tokens": 600, "details": True, "grammar": grammar, **parameters}
    return httpx.post(f"{server.url}/generate", json={"inputs": "hi", "parameters": parameters}, timeout=60)


FORMATS: list[dict[str, Any]] = [
    {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA, "strict": True}},
    {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}},
    {"type": "json_schema", "value": {"name": "w", "schema": SCHEMA}},
    {"type": "json_schema", "value": SCHEMA},
    {"type": "json_object", "value": SCHEMA},
    {"type": "json_object", "schema": SCHEMA},  # Together, Fireworks, llama.cpp
    {"type": "json_schema", "schema": SCHEMA},
    {"type": "json", "value": json.dumps(SCHEMA)},
]


@pytest.mark.parametrize("response_format", FORMATS)
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.5, "seed": 3}])
def test_every_form_of_a_schema(tool_server: Server, response_format: dict[str, Any], sampling: dict[str, Any]) -> None:
    choice = chat(tool_server, response_format=response_format, **sampling)
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
    if "value" in response_format:
        generated = generate(tool_server, response_format).json()
        jsonschema.validate(json.loads(generated["generated_text"]), SCHEMA)
        assert generated["details"]["finish_reason"] == "eos_token"
        assert generated["details"]["tokens"][-1]["id"] == 2


async def test_what_is_sampled_matches_its_schema(tool_server: Server) -> None:
    """All schemas at once through one batch, each more than once: whatever ended by itself is valid."""
    ended: dict[int, int] = {}
    limit = asyncio.Semaphore(24)  # as many as a CPU's batch serves well

    async def ask(client: httpx.AsyncClient, index: int, seed: int) -> None:
        schema = {"name": "s", "schema": SCHEMAS[index], "strict": True}
        body = {"messages": HI, "max_tokens": 80, "temperature": 2, "seed": 1000 * seed + index}
        body |= {"response_format": {"type": "json_schema", "json_schema": schema}}
        async with limit:
            answer = await client.post(f"{tool_server.url}/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        if choice["finish_reason"] != "stop":
            return
        validator = jsonschema.validators.validator_for(SCHEMAS[index], default=jsonschema.Draft202012Validator)
        checked = validator(SCHEMAS[index], format_checker=validator.FORMAT_CHECKER)
        checked.validate(json.loads(choice["message"]["content"]))
        ended[index] = ended.get(index, 0) + 1

    async with httpx.AsyncClient(timeout=120) as client:
        await asyncio.gather(*(ask(client, index, seed) for seed in range(2) for index in range(len(SCHEMAS))))
    assert len(ended) >= 150 and sum(ended.values()) >= 300


def test_a_model_without_an_end_token_ends_as_well(tiny_server: Server) -> None:
    generated = generate(tiny_server, {"type": "json", "value": SCHEMA}).json()
    jsonschema.validate(json.loads(generated["generated_text"]), SCHEMA)
    assert generated["details"]["finish_reason"] == "eos_token"


def test_regex_on_both_apis_and_in_streams(tool_server: Server) -> None:
    pattern = r"[a-c]{2,5}-\d{3}"
    grammar = {"type": "regex", "value": pattern}
    assert re.fullmatch(pattern, generate(tool_server, grammar).json()["generated_text"])
    for form in (grammar, {"type": "regex", "pattern": pattern}):
        assert re.fullmatch(pattern, chat(tool_server, response_format=form, seed=1)["message"]["content"])
    body = {"inputs": "hi", "parameters": {"grammar": grammar}}
    events = httpx.post(f"{tool_server.url}/generate_stream", json=body).text.strip().split("\n\n")
    assert re.fullmatch(pattern, json.loads(events[-1].removeprefix("data:"))["generated_text"])


def test_any_json_object(tool_server: Server) -> None:
    # A bias towards closing brackets and the end keeps the random model short.
    bias = {str(id): 100 for id in (2, *closing_ids(tool_server))}
    choice = chat(tool_server, response_format={"type": "json_object"}, logit_bias=bias, temperature=0)
    assert choice["finish_reason"] == "stop" and isinstance(json.loads(choice["message"]["content"]), dict)
    assert chat(tool_server, response_format={"type": "text"}, temperature=0, max_tokens=8)["message"]["content"]


def closing_ids(server: Server) -> list[int]:
    tokens = httpx.post(f"{server.url}/tokenize", json={"inputs": "}"}).json()
    return [token["id"] for token in tokens]


class Step(BaseModel):
    title: str = Field(max_length=5)
    kind: Literal["do", "wait"]
    minutes: int | None


class Plan(BaseModel):
    steps: list[Step] = Field(max_length=2)
    done: bool


def test_openai_s_client_parses_a_model(tool_server: Server) -> None:
    client = openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="none")
    for temperature in (0, 1):
        choice = client.chat.completions.parse(
            model="tgi", messages=HI, response_format=Plan, temperature=temperature, seed=1, max_tokens=900
        ).choices[0]
        assert isinstance(choice.message.parsed, Plan) and choice.finish_reason == "stop"


def test_the_hub_s_client(tool_server: Server) -> None:
    client = InferenceClient(base_url=tool_server.url)
    grammar: Any = {"type": "json", "value": SCHEMA}
    text = client.text_generation("hi", grammar=grammar, max_new_tokens=600, return_full_text=False)
    jsonschema.validate(json.loads(text), SCHEMA)
    for response_format in (FORMATS[0], grammar):
        answer = client.chat_completion(HI, response_format=response_format, max_tokens=600)
        jsonschema.validate(json.loads(answer.choices[0].message.content or ""), SCHEMA)
    tools: Any = TOOLS
    called = client.chat_completion(HI, tools=tools, tool_choice="get_weather", max_tokens=600).choices[0].message
    assert called.tool_calls is not None
    check_call(called.tool_calls[0].function.name, called.tool_calls[0].function.arguments)


def test_choices_are_constrained_each_for_itself(tool_server: Server) -> None:
    body = {"messages": HI, "max_tokens": 600, "n": 3, "temperature": 2, "seed": 1, "response_format": FORMATS[0]}
    choices = httpx.post(f"{tool_server.url}/v1/chat/completions", json=body, timeout=60).json()["choices"]
    answers = [choice["message"]["content"] for choice in choices]
    assert len(set(answers)) == 3
    for answer in answers:
        jsonschema.validate(json.loads(answer), SCHEMA)


BAD: list[Any] = [
    {"type": "json", "value": {"type": "objec"}},
    {"type": "json", "value": "{"},
    {"type": "json", "value": {"not": {}}},
    {"type": "json", "value": {"enum": ["x" * 70_000]}},
    {"type": "regex", "value": "(" * 5000},
    {"type": "regex", "value": "(?=a)"},
    {"type": "regex", "value": 5},
    {"type": "json"},
    {"type": "x" * 5000, "value": "x"},
    {},
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_what_is_no_grammar_is_the_clients_fault(tool_server: Server, bad: Any) -> None:
    native = generate(tool_server, bad)
    assert native.status_code == 422 and len(native.content) < 400
    body = {"messages": HI, "response_format": bad, "stream": True}
    refused = httpx.post(f"{tool_server.url}/v1/chat/completions", json=body)
    assert refused.status_code == 400 and len(refused.content) < 500
    assert refused.json()["error"]["param"] == "response_format"
    assert httpx.get(f"{tool_server.url}/health").status_code == 200
    assert generate(tool_server, {"type": "regex", "value": "ok"}).json()["generated_text"] == "ok"


def test_grammars_with_tools_and_switched_off(tool_server: Server, tiny_folder: Path) -> None:
    for tools in (TOOLS, []):
        body: dict[str, Any] = {"messages": HI, "tools": tools, "response_format": FORMATS[3]}
        both = httpx.post(f"{tool_server.url}/v1/chat/completions", json=body)
        assert both.status_code == 400 and both.json()["error_type"] == "tool_error"
        assert both.json()["error"]["message"] == "Tool error: Grammar and tools are mutually exclusive"
    with running("--model-id", str(tiny_folder), "--disable-ui", "--disable-grammar-support") as server:
        native = generate(server, {"type": "regex", "value": "ok"})
        assert native.status_code == 422
        assert native.json()["error"] == "Input validation error: grammar is not supported"
        forced = {"messages": HI, "tools": TOOLS, "tool_choice": "required"}
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=forced)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "tool_choice"
        assert chat(server, tools=TOOLS, max_tokens=3)["finish_reason"] == "length"


def check_call(name: str, arguments: str) -> None:
    schema = SCHEMA if name == "get_weather" else {"type": "object", "maxProperties": 0}
    jsonschema.validate(json.loads(arguments), schema)


NAMED: list[Any] = ["get_weather", {"type": "function", "function": {"name": "get_weather"}}]


@pytest.mark.parametrize("choice", ["required", *NAMED], ids=["required", "name", "function"])
@pytest.mark.parametrize("kind", ["tool_server", "tiny_server"], ids=["tags", "bare"])
def test_forced_tools_with_openai_s_client(request: pytest.FixtureRequest, choice: Any, kind: str) -> None:
    client = openai.OpenAI(base_url=f"{request.getfixturevalue(kind).url}/v1", api_key="none")
    arguments: dict[str, Any] = {
        "model": "tgi",
        "messages": HI,
        "tools": TOOLS,
        "tool_choice": choice,
        "max_tokens": 2000,
    }
    answer = client.chat.completions.create(**arguments, temperature=0).choices[0]
    assert answer.finish_reason == "tool_calls" and not answer.message.content
    calls = answer.message.tool_calls or []
    assert calls and (choice == "required" or [call.function.name for call in calls] == ["get_weather"])
    for call in calls:
        assert call.id.startswith("call_")
        check_call(call.function.name, call.function.arguments)
    streamed: dict[int, list[str]] = {}
    finish = None
    for chunk in client.chat.completions.create(**arguments, temperature=0, stream=True):
        delta = chunk.choices[0].delta
        finish = chunk.choices[0].finish_reason or finish
        assert not delta.content
        for part in delta.tool_calls or []:
            assert part.function is not None
            call = streamed.setdefault(part.index, ["", ""])
            call[0] += part.function.name or ""
            call[1] += part.function.arguments or ""
    assert finish == "tool_calls"
    assert list(streamed.values()) == [[call.function.name, call.function.arguments] for call in calls]


def test_one_call_at_a_time_where_asked(tool_server: Server) -> None:
    choice = chat(tool_server, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert len(choice["message"]["tool_calls"]) == 1


@pytest.mark.parametrize("name", ["other", "x" * 5000, {"type": "function"}, {"function": {"name": 5}}])
def test_an_unknown_tool_is_named(tool_server: Server, name: Any) -> None:
    body = {"messages": HI, "tools": TOOLS, "tool_choice": name}
    refused = httpx.post(f"{tool_server.url}/v1/chat/completions", json=body)
    assert refused.status_code == 400 and refused.json()["error_type"] == "tool_error"
    message = refused.json()["error"]["message"]
    assert len(message) < 200 and message.startswith("Tool error: Tool with name ")


def test_a_call_that_opens_in_auto_mode_is_valid(tool_server: Server) -> None:
    tag = httpx.post(f"{tool_server.url}/tokenize", json={"inputs": "<tool_call>"}).json()[0]["id"]
    choice = chat(tool_server, tools=TOOLS, logit_bias={str(tag): 100}, temperature=0, max_tokens=2000)
    assert choice["finish_reason"] == "tool_calls" and len(choice["message"]["tool_calls"]) == 8
    for call in choice["message"]["tool_calls"]:
        check_call(call["function"]["name"], call["function"]["arguments"])
    free = chat(tool_server, tools=TOOLS, temperature=0, max_tokens=20)
    assert free["message"]["content"] and "tool_calls" not in free["message"]


def test_a_strict_tool_that_can_not_be_followed_is_refused(tool_server: Server) -> None:
    texts = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": texts}}, "strict": True}
    body = {"messages": HI, "tools": [{"type": "function", "function": function}]}
    refused = httpx.post(f"{tool_server.url}/v1/chat/completions", json=body)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tools"
