"""Arguments as Python and Gemma write them become JSON, however the text is cut."""

import json
from typing import Any

import pytest

from tgi_local.text.literal_arguments import LiteralArguments
from tgi_local.text.tool_formats import FUNCTION_GEMMA, PYTHONIC, ToolFormat

SCHEMA: Any = {
    "properties": {
        "s": {"type": "string"},
        "n": {"type": "integer"},
        "x": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    }
}


def read(format: ToolFormat, text: str, size: int) -> Any:
    """The value; `text` is what follows the name, with the end of the call."""
    assert format.parameters is not None
    reader = LiteralArguments(format.parameters, format.call_end, SCHEMA)
    made = held = ""
    for start in range(0, len(text), size):
        held += text[start : start + size]
        piece, used = reader.read(held)
        made, held = made + piece, held[used:]
    assert reader.is_done and held == format.call_end, (made, held)
    return json.loads(made)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("s='Bonn', n=3", {"s": "Bonn", "n": 3}),
        ('s="it\'s", n = -1.5', {"s": "it's", "n": -1.5}),
        (r"s='a\'b\n\\ \u00e9\x41 \q'", {"s": "a'b\n\\ éA \\q"}),
        (r's="\ud83d\ude00)"', {"s": "😀)"}),
        ("s='a, b) c', x=None", {"s": "a, b) c", "x": None}),
        ("a=True,b=false, c=null", {"a": True, "b": False, "c": None}),
        ("a=['x', (1, 2), {'k': \")\"}], b={\"y\": [true]}", {"a": ["x", [1, 2], {"k": ")"}], "b": {"y": [True]}}),
        ("s=bare word", {"s": "bare word"}),
        ("s=12", {"s": "12"}),
    ],
)
def test_python(text: str, value: Any, size: int) -> None:
    assert read(PYTHONIC, text + ")", size) == value


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("s:<escape>Bonn, {x}<escape>,n:3", {"s": "Bonn, {x}", "n": 3}),
        (r"s:<escape>a\n<esc<escape>", {"s": r"a\n<esc"}),
        ("a:{k:[<escape>x:y,<escape>,true],m:{z:1}},n:2", {"a": {"k": ["x:y,", True], "m": {"z": 1}}, "n": 2}),
        ('a:{"k": "v}"}', {"a": {"k": "v}"}}),
        ("a:null,b:1.5", {"a": None, "b": 1.5}),
    ],
)
def test_gemma(text: str, value: Any, size: int) -> None:
    assert read(FUNCTION_GEMMA, text + "}<end_function_call>", size) == value


def test_a_string_comes_as_it_grows() -> None:
    assert PYTHONIC.parameters is not None
    reader = LiteralArguments(PYTHONIC.parameters, ")", SCHEMA)
    assert reader.read("s='Bo") == ('{"s": "Bo', 5)
    assert reader.read("nn\\") == ("nn", 2)
    assert reader.read("\\nn'") == ('\\nn"', 4)
    assert not reader.is_done
