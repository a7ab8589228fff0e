"""Arguments as Python or Gemma write them, `name=value, ...`, as they are generated, and as JSON text."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from tgi_local.text.call_arguments import as_json, value_types
from tgi_local.text.stop_strings import partial_match_len
from tgi_local.text.tool_formats import ParameterTags

_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[^xuU])", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
_BARE_KEY = re.compile(r"([{,]\s*)([^\W\d][\w.-]*)\s*:")
_LONGEST_ESCAPE = 10


class LiteralArguments:
    """Owns the arguments of one call, up to `end`. Strings come as they grow, other values when they are whole."""

    def __init__(self, tags: ParameterTags, end: str, schema: Any) -> None:
        self._tags = tags
        self._end = end
        self._stops = end[0] + tags.separator.strip()
        self._properties = schema.get("properties", {}) if isinstance(schema, Mapping) else {}
        self._num_read = 0
        self._name: str | None = None
        self._quote = ""  # of the string that is open
        self.is_done = False

    def read(self, text: str) -> tuple[str, int]:
        """JSON text, and how many characters of `text` it was made of; the others must come again, with more."""
        made: list[str] = []
        position = 0
        while not self.is_done:
            rest = text[position:]
            if self._quote:
                used = self._read_string(rest, made)
            elif self._name is not None:
                used = self._read_value(rest, made)
            else:
                used = self._open(rest, made)
            position += used
            if not used:
                break
        return "".join(made), position

    def flush(self, text: str) -> str:
        """What to add to arguments that end unfinished, `text` being what was not read."""
        return ""

    def _open(self, text: str, made: list[str]) -> int:
        """The next parameter, or the end; `end` itself is left to who reads the call."""
        start = len(text) - len(text.lstrip())
        if text.startswith(self._end, start):
            made.append("}" if self._num_read else "{}")
            self.is_done = True
            return start
        separator = self._tags.separator.strip()
        if self._num_read:
            if not text.startswith(separator, start):
                return 0
            start += len(separator)
        stop = text.find(self._tags.name_end, start)
        if stop < 0:
            return 0
        self._name = text[start:stop].strip()
        made.append(("{" if not self._num_read else ", ") + json.dumps(self._name, ensure_ascii=False) + ": ")
        self._num_read += 1
        return stop + len(self._tags.name_end)

    def _read_value(self, text: str, made: list[str]) -> int:
        for quote in self._tags.quotes:
            if text.startswith(quote):
                self._quote = quote
                made.append('"')
                return len(quote)
        if any(quote.startswith(text) for quote in self._tags.quotes):
            return 0
        stop = self._literal_len(text)
        if stop is None:
            return 0
        made.append(self._as_json(text[:stop].strip()))
        self._name = None
        return stop

    def _read_string(self, text: str, made: list[str]) -> int:
        """Some of the string that is open; its last quote closes it."""
        used = 0
        while used < len(text):
            if self._tags.is_python and text[used] == "\\":
                found = _ESCAPE.match(text, used)
                if found is None and len(text) - used < _LONGEST_ESCAPE:
                    return used
                escape = found[0] if found is not None else text[used]
                made.append(_escaped(_unescaped(escape)))
                used += len(escape)
            elif text.startswith(self._quote, used):
                made.append('"')
                used += len(self._quote)
                self._quote, self._name = "", None
                return used
            else:
                plain = self._plain_len(text, used)
                if not plain:
                    return used
                made.append(_escaped(text[used : used + plain]))
                used += plain
        return used

    def _plain_len(self, text: str, start: int) -> int:
        """How many characters from here on are neither an escape nor the beginning of the quote."""
        stops = [text.find(sign, start) for sign in (self._quote, "\\" if self._tags.is_python else self._quote)]
        ends = [stop for stop in stops if stop >= 0]
        if ends:
            return min(ends) - start
        return len(text) - partial_match_len(text[start:], self._quote) - start

    def _literal_len(self, text: str) -> int | None:
        """Up to the separator or the end that is in no string and no bracket of the value; None where more must come."""
        depth = position = 0
        while position < len(text):
            sign = text[position]
            if depth == 0 and sign in self._stops:
                return position
            quote = next((quote for quote in (*self._tags.quotes, '"') if text.startswith(quote, position)), None)
            if quote is not None:
                closing = _string_end(text, position + len(quote), quote)
                if closing is None:
                    return None
                position = closing
                continue
            depth += (sign in "([{") - (sign in ")]}")
            position += 1
        return None

    def _as_json(self, literal: str) -> str:
        assert self._name is not None
        schema = self._properties.get(self._name)
        if value_types(schema) == {"string"} and not literal.startswith('"'):
            return json.dumps(literal, ensure_ascii=False)
        return as_json(_json_of(literal, self._tags), schema)


def _json_of(literal: str, tags: ParameterTags) -> str:
    """A literal that is not JSON yet in JSON; what is none is left as it is."""
    try:
        json.loads(literal)
        return literal
    except (ValueError, RecursionError):
        pass
    try:
        if tags.is_python:
            return json.dumps(ast.literal_eval(literal), ensure_ascii=False, allow_nan=False)
        pieces = literal.split(tags.quotes[0])
        spelled = "".join(
            json.dumps(piece, ensure_ascii=False) if index % 2 else _BARE_KEY.sub(r'\1"\2":', piece)
            for index, piece in enumerate(pieces)
        )
        json.loads(spelled)
        return spelled
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return literal


def _string_end(text: str, start: int, quote: str) -> int | None:
    """Where a string that began before `start` ends, after its closing quote."""
    position = start
    while (stop := text.find(quote, position)) >= 0:
        num_slashes = len(text[start:stop]) - len(text[start:stop].rstrip("\\"))
        if len(quote) > 1 or num_slashes % 2 == 0:
            return stop + len(quote)
        position = stop + 1
    return None


def _unescaped(escape: str) -> str:
    kind = escape[1:2]
    if kind and kind in "xuU":
        number = int(escape[2:], 16)
        return chr(number) if number < 0x110000 else escape
    return _ESCAPES.get(kind, kind if kind in "'\"\\" else escape)


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=not _is_unicode(text))[1:-1]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
