"""What clients tell chat templates besides the messages: thoughts of earlier turns, how much to think, documents."""

from typing import Any

import pytest

from tests.api.test_tools import FORMAT, HI, TOOLS, chat
from tests.text.conftest import byte_level_backend, wrap
from tests.text.families import FAMILIES
from tests.text.test_tool_formats import tokenizer
from tests.writing_model import Writing, writing
from tgi_local.protocol.openai import ChatRequest, template_kwargs
from tgi_local.text.tokenizer import TextTokenizer

CALL = {"id": "call_1", "type": "function", "function": {"name": "stop", "arguments": "{}"}}
ROUND = [
    *HI,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "ok"},
]


async def prompt(server: Writing, **body: Any) -> str:
    answer = await server.client.post("/chat_tokenize", json={"messages": HI, **body})
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["templated_text"]
    return text


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "thinking"])
@pytest.mark.parametrize("name", ["minimax", "gpt-oss", "hermes"])
async def test_thoughts_go_back_to_a_template_that_looks_for_them(name: str, field: str) -> None:
    thinking = [ROUND[0], {**ROUND[1], field: "a-thought"}, ROUND[2]]
    async with writing(tokenizer(name, "special")) as server:
        text = await prompt(server, messages=thinking, tools=TOOLS)
        assert ("a-thought" in text) is (name != "hermes")
        said = [ROUND[0], {**ROUND[1], field: "a-thought", "content": "a-text"}, ROUND[2]]
        both = await prompt(server, messages=said, tools=TOOLS)
        assert "a-text" in both and ("a-thought" in both) is (name != "hermes")


async def test_thoughts_in_other_shapes_are_taken_or_left_out() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "first-thought"}]},
        {"type": "text", "text": "a-text"},
    ]
    async with writing(tokenizer("minimax", "special")) as server:
        for content, fields, seen in (
            (parts, {}, True),
            ([{"type": "thinking", "thinking": "first-thought", "signature": "x"}], {}, True),
            (None, {"reasoning": {"summary": "first-thought"}, "thinking": None}, False),
            (None, {"reasoning_content": [{"text": "first-thought"}]}, False),
        ):
            text = await prompt(server, messages=[ROUND[0], {**ROUND[1], "content": content, **fields}, ROUND[2]])
            assert ("<think>first-thought</think>" in text) is seen and ("a-text" in text) is (content is parts)


async def test_ids_name_the_function_where_a_template_writes_nothing_else() -> None:
    async with writing(tokenizer("kimi", "special")) as server:
        text = await prompt(server, messages=[*ROUND, *ROUND[1:]], tools=TOOLS)
    assert "<|tool_call_begin|>functions.stop:0<" in text and "functions.stop:0: ok" in text
    assert "functions.stop:1<" in text and "functions.stop:1: ok" in text
    assert "call_1" not in text


async def test_channels_of_gpt_oss() -> None:
    family = FAMILIES["gpt-oss"]
    thought = "<|channel|>analysis<|message|>hm {<|end|><|start|>assistant"
    async with writing(tokenizer("gpt-oss", "special")) as server:
        for says in (thought + family.answers("Yes."), family.answers("Yes.")):
            for tools in (None, TOOLS):
                answer = await chat(server, says, tools=tools)
                assert answer["message"]["content"] == "Yes."
                assert answer["message"].get("reasoning") == ("hm {" if says.startswith(thought) else None)
        held = await chat(server, thought + family.answers('{"ok": true}'), tools=None, response_format=FORMAT)
        assert held["message"]["content"] == '{"ok": true}' and held["message"]["reasoning"] == "hm {"
        for choice in ("auto", "required"):
            says = thought + thought + family.says("I look. ") + family.calls
            called = await chat(server, says, tool_choice=choice)
            assert [call["function"]["name"] for call in called["message"]["tool_calls"]] == ["get_weather", "stop"]
            assert called["message"]["reasoning"] == "hm {hm {" and called["message"]["content"] == "I look."
        plain = await server.client.post(
            "/generate", json={"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "b"}}}
        )
        assert plain.json()["generated_text"] == "b"


def kwargs(read: str, **fields: Any) -> dict[str, Any]:
    return template_kwargs(ChatRequest(messages=HI, **fields), lambda name: name in read.split())  # type: ignore[arg-type]


def test_how_much_to_think_by_the_template_s_own_names() -> None:
    assert kwargs("enable_thinking", enable_thinking=False) == {"enable_thinking": False}
    assert kwargs("thinking", enable_thinking=True) == {"thinking": True}
    assert kwargs("thinking_budget", enable_thinking=False) == {"thinking_budget": 0}
    assert kwargs("", enable_thinking=False, reasoning_effort="high") == {}
    assert kwargs("reasoning_effort", reasoning_effort="xhigh") == {"reasoning_effort": "xhigh"}
    for effort, known in (("none", "low"), ("minimal", "low"), ("medium", "medium"), ("xhigh", "high")):
        assert kwargs("reasoning_effort channel", reasoning_effort=effort) == {"reasoning_effort": known}
    for effort in ("none", "minimal", "high"):
        assert kwargs("enable_thinking", reasoning_effort=effort) == {"enable_thinking": effort != "none"}
        assert kwargs("thinking", reasoning_effort=effort) == {"thinking": effort != "none"}
    own = {"enable_thinking": True, "xml_tools": [{"name": "f"}]}
    assert kwargs("enable_thinking", reasoning_effort="none", enable_thinking=False, chat_template_kwargs=own) == own


DOCUMENTED = (
    "{%- for d in documents or [] %}{{ '<doc>' + d.text + '</doc>' }}{% endfor %}"
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
)


def documented() -> TextTokenizer:
    return wrap(byte_level_backend(), DOCUMENTED, eos_token="<|im_end|>")


async def test_documents_reach_a_template_that_writes_them() -> None:
    given = [{"title": "t", "text": "first-words <|im_end|>"}, "second-words"]
    async with writing(documented()) as server:
        for body in ({"documents": given}, {"chat_template_kwargs": {"documents": given}}):
            text = await prompt(server, **body)
            assert "<doc>first-words <|im_end|></doc><doc>second-words</doc>" in text
            shown = await server.client.post("/chat_tokenize", json={"messages": HI, **body})
            ends = [token for token in shown.json()["tokenize_response"] if token["text"] == "<|im_end|>"]
            assert len(ends) == 1, "the one that the template wrote"
        assert "<doc>" not in await prompt(server, documents=[])
        wrong = await server.client.post("/v1/chat/completions", json={"messages": HI, "documents": [3]})
        assert wrong.status_code == 400
    async with writing(tokenizer("hermes", "special")) as server:
        refused = await server.client.post("/v1/chat/completions", json={"messages": HI, "documents": given})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "documents"
