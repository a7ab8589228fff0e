"""What clients send, as templates expect it."""

import copy
from typing import Any

import pytest

from tgi_local.errors import ValidationError
from tgi_local.text.messages import normalize_messages


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("hi", "hi"),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"text": "a"}, "b"], "ab"),
    ],
)
def test_content_is_one_string(content: Any, expected: str) -> None:
    assert normalize_messages([{"role": "user", "content": content}]) == [{"role": "user", "content": expected}]


@pytest.mark.parametrize("content", [3, [{"type": "image_url", "image_url": {"url": "x"}}], [{"type": "text"}], [7]])
def test_other_content_is_refused(content: Any) -> None:
    with pytest.raises(ValidationError):
        normalize_messages([{"role": "user", "content": content}])


@pytest.mark.parametrize("tool_calls", ["text", 3, [3], {"function": {}}])
def test_other_tool_calls_are_refused(tool_calls: Any) -> None:
    with pytest.raises(ValidationError):
        normalize_messages([{"role": "assistant", "content": "", "tool_calls": tool_calls}])


def test_developer_is_system_and_content_may_be_missing() -> None:
    assert normalize_messages([{"role": "developer"}]) == [{"role": "system", "content": ""}]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"b": 1, "a": [2]}', {"b": 1, "a": [2]}),
        ({"a": 1}, {"a": 1}),
        ("[1]", "[1]"),
        ("not json", "not json"),
        ('{"a": NaN}', '{"a": NaN}'),
        ('{"a":' * 100_000, '{"a":' * 100_000),
        ('{"a": ' + "9" * 5000 + "}", '{"a": ' + "9" * 5000 + "}"),
    ],
)
def test_tool_arguments_become_objects_where_they_are_objects(arguments: Any, expected: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    before = copy.deepcopy(message)
    (normalized,) = normalize_messages([message])
    assert normalized["tool_calls"][0]["function"] == {"name": "f", "arguments": expected}
    assert message == before
