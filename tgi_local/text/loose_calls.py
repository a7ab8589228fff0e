"""Text increments to content and tool calls, of an answer that nothing constrains: calls come when they are whole."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from tgi_local.constraints import ToolSignature
from tgi_local.text.call_arguments import as_json
from tgi_local.text.literal_arguments import LiteralArguments
from tgi_local.text.stop_strings import partial_match_len
from tgi_local.text.tool_calls import Content, Item
from tgi_local.text.tool_formats import ToolFormat
from tgi_local.types import ToolCallDelta

_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SEPARATORS = re.compile(r"[\s,;]*")
# A name that stands outside of JSON; how it ends differs more than formats say, so that what follows is not looked at.
_NAME = re.compile(r"[\w.-]+")
_MAX_CALLS = 64


class LooseCallParser:
    """Owns the tool calls of one sequence; one thread at a time.

    White space around calls is dropped. A call that does not parse is passed on as content, never dropped.
    """

    def __init__(self, format: ToolFormat, tools: Sequence[ToolSignature] = ()) -> None:
        """The schemas of `tools` tell which values are strings where a format does not."""
        self._format = format
        self._schemas = {tool.name: tool.parameters for tool in tools}
        self._marker = format.marker or ""
        self._close_tag = format.close_tag
        self._held = ""
        self._is_in_call = False
        self._is_at_start = True
        self._space_before_call = ""
        self._follows_call = False
        self._num_calls = 0
        self._num_scanned = 0

    def step(self, text: str) -> list[Item]:
        """The content and the calls this text completes."""
        self._held += text
        items: list[Item] = []
        while self._advance(items):
            pass
        return items

    def flush(self) -> list[Item]:
        """What is held back: complete calls that only lack their close tag, or content."""
        items: list[Item] = []
        if self._may_be_bare():
            held, self._held = self._held, ""
            return self._parse(held) or [Content(held)]
        while self._is_in_call:
            if calls := self._parse(self._held[len(self._marker) :]):
                self._held, self._is_in_call = "", False
                return [*items, *calls]
            self._give_up_call(items)
            while self._advance(items):
                pass
        if self._held and not (self._follows_call and self._held.isspace()):
            items.append(Content(self._held))
        self._held = ""
        return items

    def _advance(self, items: list[Item]) -> bool:
        """Move over one tag; False when the held text ends before the next one."""
        if self._may_be_bare():
            return False
        return self._close_call(items) if self._is_in_call else self._open_call(items)

    def _may_be_bare(self) -> bool:
        """Whether the answer as a whole may be calls without a marker; known at its end."""
        is_first = self._format.is_bare and self._is_at_start and not self._is_in_call
        return is_first and self._held.lstrip().startswith((self._format.begin + self._format.call_begin)[0])

    def _open_call(self, items: list[Item]) -> bool:
        if self._follows_call:
            self._held = self._held.lstrip()
        start = self._held.find(self._marker) if self._marker else -1
        if start >= 0:
            num_content = len(self._held[:start].rstrip())
            self._emit(items, self._held[:num_content])
            self._space_before_call = self._held[num_content:start]
            self._held = self._held[start:]
            self._is_in_call, self._num_scanned = True, len(self._marker)
            return True
        held = partial_match_len(self._held, self._marker) if self._marker else 0
        num_safe = len(self._held[: len(self._held) - held].rstrip())
        self._emit(items, self._held[:num_safe])
        self._held = self._held[num_safe:]
        return False

    def _close_call(self, items: list[Item]) -> bool:
        tag = self._close_tag
        end = self._held.find(tag, self._num_scanned) if tag else -1
        if end < 0:
            self._num_scanned = max(len(self._marker), len(self._held) - len(tag) + 1)
            return False
        body = self._held[len(self._marker) : end]
        if calls := self._parse(body):
            items += calls
            self._held = self._held[end + len(tag) :]
            self._is_in_call, self._follows_call, self._is_at_start = False, True, False
        elif _ends_in_string(body):
            self._num_scanned = end + len(tag)
        else:
            self._give_up_call(items)
        return True

    def _give_up_call(self, items: list[Item]) -> None:
        """Turn a call that does not parse into content, up to its first close tag; what follows is read anew."""
        end = self._held.find(self._close_tag) if self._close_tag else -1
        stop = end + len(self._close_tag) if end >= 0 else len(self._held)
        self._emit(items, self._space_before_call + self._held[:stop])
        self._held = self._held[stop:]
        self._is_in_call = False

    def _emit(self, items: list[Item], text: str) -> None:
        if text:
            items.append(Content(text))
            self._follows_call = self._is_at_start = False

    def _parse(self, body: str) -> list[Item]:
        """All calls of what stands between marker and close tag; none when anything there is no call."""
        try:
            found = [(_checked_name(name), arguments) for name, arguments in _read(self._format, body, self._schemas)]
        except (ValueError, KeyError, TypeError, RecursionError):
            return []
        first, self._num_calls = self._num_calls, self._num_calls + len(found)
        return [
            ToolCallDelta(first + offset, name, arguments, is_last=True)
            for offset, (name, arguments) in enumerate(found)
        ]


def _read(format: ToolFormat, body: str, schemas: dict[str, Any]) -> list[tuple[Any, str]]:
    """Names and arguments as JSON text. Raises ValueError, KeyError or TypeError for what is no call."""
    if format.parameters is not None and format.parameters.quotes:
        return list(_read_literal(format, body, schemas))
    if format.parameters is not None:
        return [_read_tagged(format, text, schemas) for text in _tagged_calls(format, body)]
    if not format.call_begin.endswith('"'):
        return list(_read_named(format, body))
    values = _json_values(body.strip().removesuffix(format.end.rpartition("]")[2] or " "))
    calls = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    if not calls:
        raise ValueError("no call")
    if format.is_bare and not all("arguments" in call or "parameters" in call for call in calls):
        raise ValueError("an object with a name is not always a call")
    key = format.call_begin.split('"')[-3]
    arguments = [_compact_arguments(call) for call in calls]
    return [(call.get(key, call.get("name")), given) for call, given in zip(calls, arguments, strict=True)]


def _read_literal(format: ToolFormat, body: str, schemas: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """Calls as Python or Gemma write them."""
    tags = format.parameters
    assert tags is not None
    end = format.call_end[0]
    text = body.strip().removeprefix(format.after_marker.strip())
    text = text.strip().removesuffix(format.end.removesuffix(format.close_tag).strip())
    while text := text.lstrip(" \t\r\n,;"):
        name, found, text = text.partition(format.name_end)
        reader = LiteralArguments(tags, end, schemas.get(name.strip()))
        arguments, num_read = reader.read(text)
        if not found or not reader.is_done or not _NAME.fullmatch(name.strip()):
            raise ValueError("not a call")
        yield name.strip(), _compact_arguments({"arguments": arguments})
        text = text[num_read + len(end) :]


def _tagged_calls(format: ToolFormat, body: str) -> list[str]:
    """The text of each call, from its name on."""
    head = format.after_marker.strip()
    if format.opens_each_call or not head:
        return [body.strip().removeprefix(head)]
    return body.strip().removeprefix(head).split(head)


def _read_tagged(format: ToolFormat, text: str, schemas: dict[str, Any]) -> tuple[str, str]:
    assert format.parameters is not None
    tags = format.parameters
    closing = re.escape(format.call_end.strip().split("\n")[0])
    begin, end = tags.begin.strip(), tags.end.strip()
    name = re.split(rf"{re.escape(format.name_end.strip() or chr(10))}|{re.escape(begin)}|\s", text.strip())[0]
    pattern = rf"{re.escape(begin)}(.*?){re.escape(tags.name_end.strip())}\n?(.*?)\n?{re.escape(end)}\s*(?={re.escape(begin)}|{closing}|\Z)"
    properties = (schemas.get(name) or {}).get("properties") or {}
    pairs = [
        f"{json.dumps(key, ensure_ascii=False)}: {_as_json(value, properties.get(key))}"
        for key, value in re.findall(pattern, text, re.DOTALL)
    ]
    return name, "{" + ", ".join(pairs) + "}"


def _as_json(value: str, schema: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if schema == {"type": "string"} else as_json(value, schema)


def _read_named(format: ToolFormat, body: str) -> Iterable[tuple[str, str]]:
    """Calls whose names stand outside of the JSON."""
    opening = format.call_begin.strip()
    for text in [part for part in body.split(opening) if part.strip()]:
        name, arguments = _NAME.match(text.strip()), text.find("{")
        if name is None or arguments < 0:
            raise ValueError("no arguments")
        value, _ = _DECODER.raw_decode(text, arguments)
        yield name[0], _compact_arguments({"arguments": value})


def _json_values(text: str) -> list[Any]:
    """The JSON values of a text, between white space, commas and semicolons."""
    values: list[Any] = []
    position = _end_of_separators(text, 0)
    while position < len(text) and len(values) < _MAX_CALLS:
        value, position = _DECODER.raw_decode(text, position)
        values.append(value)
        position = _end_of_separators(text, position)
    return values


def _end_of_separators(text: str, position: int) -> int:
    found = _SEPARATORS.match(text, position)
    return found.end() if found else position


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name or not _is_unicode(name):
        raise ValueError("a function has a name")
    return name


def _compact_arguments(call: Any) -> str:
    if not isinstance(call, dict):
        raise TypeError("a call must be an object")
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):  # some models write the object as a string, as the API does
        arguments = _DECODER.decode(arguments)
    if not isinstance(arguments, dict):
        raise TypeError("arguments must be an object")
    text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate can be escaped in JSON but not be sent as UTF-8.
    return text if _is_unicode(text) else json.dumps(arguments, separators=(",", ":"))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _ends_in_string(body: str) -> bool:
    """Whether a JSON text ends inside a string, so that a tag found there is part of it."""
    return '"' in _JSON_STRING.sub("", body)


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError("a number beyond a float's range is not JSON")
    return number


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
