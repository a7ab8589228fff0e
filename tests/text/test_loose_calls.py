"""Calls come out whole; everything else comes out as text."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgi_local.text.loose_calls import LooseCallParser
from tgi_local.text.tool_calls import Content
from tgi_local.text.tool_formats import HERMES
from tgi_local.types import ToolCallDelta


def called(index: int, name: str, arguments: str) -> ToolCallDelta:
    return ToolCallDelta(index, name, arguments, is_last=True)


CALL = '<tool_call>\n{"name": "f", "arguments": {"b": 1, "a": [2, "x"]}}\n</tool_call>'
PARSED = called(0, "f", '{"b":1,"a":[2,"x"]}')


def run(increments: list[str]) -> list[Content | ToolCallDelta]:
    """All items, with neighbouring content joined."""
    parser = LooseCallParser(HERMES)
    items: list[Content | ToolCallDelta] = []
    for item in [item for text in increments for item in parser.step(text)] + parser.flush():
        if isinstance(item, Content) and items and isinstance(items[-1], Content):
            item = Content(items.pop().text + item.text)  # type: ignore[union-attr]
        items.append(item)
    return items


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" plain < text \n", [Content(" plain < text \n")]),
        (CALL, [PARSED]),
        (f"\n\n{CALL}\n", [PARSED]),
        (f"Let me see.\n\n{CALL}", [Content("Let me see."), PARSED]),
        (f"{CALL}\n{CALL}", [PARSED, called(1, "f", PARSED.arguments)]),
        (f"{CALL}\n\nDone.", [PARSED, Content("Done.")]),
        (CALL.removesuffix("</tool_call>"), [PARSED]),
        ('<tool_call>{"name": "f"}</tool_call>', [called(0, "f", "{}")]),
        ('<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', [called(0, "f", '{"a":1}')]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [called(0, "f", '{"a":1}')]),
        (
            '<tool_call>{"name": "f", "arguments": {"t": "</tool_call>"}}</tool_call>',
            [called(0, "f", '{"t":"</tool_call>"}')],
        ),
        ("a <tool_", [Content("a <tool_")]),
        ("<tool_call>", [Content("<tool_call>")]),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_and_content(text: str, expected: list[Content | ToolCallDelta], size: int) -> None:
    assert run([text[start : start + size] for start in range(0, len(text), size)]) == expected


@pytest.mark.parametrize(
    "body",
    [
        "not json",
        "[]",
        '"text"',
        '{"arguments": {}}',
        '{"name": ""}',
        '{"name": 3}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f", "arguments": {"a": 1e999}}',
        '{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}",
        '{"name": "f", "arguments": {"a": "unclosed}}',
        '{"name":' * 20_000,
        "",
    ],
)
def test_what_does_not_parse_is_content(body: str) -> None:
    text = f"before <tool_call>{body}</tool_call> after"
    assert run([text]) == [Content(text)]


def test_a_call_after_a_broken_one_is_found() -> None:
    assert run([f"<tool_call>{{</tool_call>{CALL}"]) == [Content("<tool_call>{</tool_call>"), PARSED]
    assert run([f'<tool_call>{{"a</tool_call>{CALL}']) == [Content('<tool_call>{"a</tool_call>'), PARSED]


def test_text_is_not_held_longer_than_needed() -> None:
    parser = LooseCallParser(HERMES)
    assert parser.step("hello <") == [Content("hello")]
    assert parser.step("b") == [Content(" <b")]
    assert parser.step(CALL) == [PARSED]


def test_lone_surrogates_stay_escaped() -> None:
    (call,) = run(['<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>'])
    assert isinstance(call, ToolCallDelta) and call.arguments == '{"a":"\\ud800"}'


PIECES = ["<tool_call>", "</tool_call>", CALL, '{"name": "f"}', '"', "{", "a", "<", "<tool", " ", "\n", "\\"]


@settings(max_examples=400)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=10), size=st.integers(1, 20))
def test_nothing_is_lost_however_the_text_is_cut(pieces: list[str], size: int) -> None:
    text = "".join(pieces)
    items = run([text[start : start + size] for start in range(0, len(text), size)])
    assert items == run([text])
    calls = [item for item in items if isinstance(item, ToolCallDelta)]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert all(isinstance(json.loads(call.arguments), dict) for call in calls)
    if not calls:
        assert items == ([Content(text)] if text else [])


def test_a_name_that_can_not_be_sent_is_content() -> None:
    text = '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'
    parser = LooseCallParser(HERMES)
    items = parser.step(text) + parser.flush()
    assert "".join(item.text for item in items if isinstance(item, Content)) == text
