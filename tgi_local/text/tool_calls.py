"""Text increments to content and tool calls, for models that write `<tool_call>{"name", "arguments"}</tool_call>`."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from tgi_local.text.stop_strings import partial_match_len
from tgi_local.types import ToolCall

OPEN_TAG = "<tool_call>"
CLOSE_TAG = "</tool_call>"
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Content:
    """Text outside of tool calls."""

    text: str


class ToolCallParser:
    """Owns the tool calls of one sequence; one thread at a time.

    White space around calls is dropped. A call that does not parse is passed on as content, never dropped.
    """

    def __init__(self) -> None:
        self._held = ""
        self._is_in_call = False
        self._space_before_call = ""
        self._follows_call = False
        self._num_calls = 0
        self._num_scanned = 0

    def step(self, text: str) -> list[Content | ToolCall]:
        """The content and the calls this text completes."""
        self._held += text
        items: list[Content | ToolCall] = []
        while self._advance(items):
            pass
        return items

    def flush(self) -> list[Content | ToolCall]:
        """What is held back: a complete call that only lacks its close tag, or content."""
        items: list[Content | ToolCall] = []
        while self._is_in_call:
            if (call := self._parse(self._held[len(OPEN_TAG) :])) is not None:
                items.append(call)
                self._held, self._is_in_call = "", False
                return items
            self._give_up_call(items)
            while self._advance(items):
                pass
        if self._held and not (self._follows_call and self._held.isspace()):
            items.append(Content(self._held))
        self._held = ""
        return items

    def _advance(self, items: list[Content | ToolCall]) -> bool:
        """Move over one tag; False when the held text ends before the next one."""
        return self._close_call(items) if self._is_in_call else self._open_call(items)

    def _open_call(self, items: list[Content | ToolCall]) -> bool:
        if self._follows_call:
            self._held = self._held.lstrip()
        start = self._held.find(OPEN_TAG)
        if start >= 0:
            num_content = len(self._held[:start].rstrip())
            self._emit(items, self._held[:num_content])
            self._space_before_call = self._held[num_content:start]
            self._held = self._held[start:]
            self._is_in_call, self._num_scanned = True, len(OPEN_TAG)
            return True
        num_safe = len(self._held[: len(self._held) - partial_match_len(self._held, OPEN_TAG)].rstrip())
        self._emit(items, self._held[:num_safe])
        self._held = self._held[num_safe:]
        return False

    def _close_call(self, items: list[Content | ToolCall]) -> bool:
        end = self._held.find(CLOSE_TAG, self._num_scanned)
        if end < 0:
            self._num_scanned = max(len(OPEN_TAG), len(self._held) - len(CLOSE_TAG) + 1)
            return False
        body = self._held[len(OPEN_TAG) : end]
        call = self._parse(body)
        if call is not None:
            items.append(call)
            self._held = self._held[end + len(CLOSE_TAG) :]
            self._is_in_call, self._follows_call = False, True
        elif _ends_in_string(body):
            self._num_scanned = end + len(CLOSE_TAG)
        else:
            self._give_up_call(items)
        return True

    def _give_up_call(self, items: list[Content | ToolCall]) -> None:
        """Turn a call that does not parse into content, up to its first close tag; what follows is read anew."""
        end = self._held.find(CLOSE_TAG)
        stop = end + len(CLOSE_TAG) if end >= 0 else len(self._held)
        self._emit(items, self._space_before_call + self._held[:stop])
        self._held = self._held[stop:]
        self._is_in_call = False

    def _emit(self, items: list[Content | ToolCall], text: str) -> None:
        if text:
            items.append(Content(text))
            self._follows_call = False

    def _parse(self, body: str) -> ToolCall | None:
        call = _parse_call(body, self._num_calls)
        self._num_calls += call is not None
        return call


class BareCallParser:
    """For an answer that is one call as plain JSON, without tags. What does not parse is content."""

    def __init__(self) -> None:
        self._held = ""

    def step(self, text: str) -> list[Content | ToolCall]:
        self._held += text
        return []

    def flush(self) -> list[Content | ToolCall]:
        return [_parse_call(self._held, 0) or Content(self._held)]


def _parse_call(body: str, index: int) -> ToolCall | None:
    try:
        call = json.loads(body, parse_constant=_refuse_constant, parse_float=_finite)
        arguments = _compact_arguments(call)
        name = call["name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_name = isinstance(name, str) and name != "" and _is_unicode(name)
    return ToolCall(index, name, arguments) if is_name else None


def _compact_arguments(call: Any) -> str:
    if not isinstance(call, dict):
        raise TypeError("a call must be an object")
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):  # some models write the object as a string, as the API does
        arguments = json.loads(arguments, parse_constant=_refuse_constant, parse_float=_finite)
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
