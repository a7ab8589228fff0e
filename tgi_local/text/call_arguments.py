"""Reads the arguments of one call as they are generated, and gives them as JSON text."""

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from tgi_local.text.stop_strings import partial_match_len
from tgi_local.text.tool_formats import ParameterTags

_STRUCTURE = re.compile(r'["\\{}\[\]]')


class ArgumentsReader(Protocol):
    """Owns the arguments of one call."""

    @property
    def is_done(self) -> bool: ...

    def read(self, text: str) -> tuple[str, int]:
        """JSON text, and how many characters of `text` it was made of; the others must come again, with more."""
        ...

    def flush(self, text: str) -> str:
        """What to add to arguments that end unfinished, `text` being what was not read."""
        ...


class JsonArguments:
    """A JSON object, passed on as it is; ends with its closing bracket."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self.is_done = False

    def read(self, text: str) -> tuple[str, int]:
        position = 0
        while position < len(text):
            if self._is_escaped:
                self._is_escaped = False
                position += 1
                continue
            found = _STRUCTURE.search(text, position)
            if found is None:
                break
            position = found.end()
            self._step(found[0])
            if self.is_done:
                return text[:position], position
        return text, len(text)

    def flush(self, text: str) -> str:
        return text

    def _step(self, sign: str) -> None:
        if sign == '"':
            self._is_in_string = not self._is_in_string
        elif self._is_in_string:
            self._is_escaped = sign == "\\"
        elif sign in "{[":
            self._depth += 1
        elif sign in "}]":
            self._depth -= 1
            self.is_done = self._depth == 0


class TaggedArguments:
    """One element per parameter, up to `end`. `schema` tells which values are strings."""

    def __init__(self, tags: ParameterTags, end: str, schema: Any) -> None:
        self._tags = tags
        self._end = end
        self._properties = schema.get("properties", {}) if isinstance(schema, Mapping) else {}
        self._num_read = 0
        self._name: str | None = None
        self._is_string = False
        self.is_done = False

    def read(self, text: str) -> tuple[str, int]:
        made: list[str] = []
        position = 0
        while not self.is_done:
            used = (
                self._read_value(text[position:], made) if self._name is not None else self._open(text[position:], made)
            )
            position += used
            if not used:
                break
        return "".join(made), position

    def flush(self, text: str) -> str:
        if self._name is None:
            return ""
        rest = text[: len(text) - partial_match_len(text, self._tags.end)]
        return _escaped(rest) if self._is_string else rest

    def _open(self, text: str, made: list[str]) -> int:
        """The next parameter, or the end; `end` itself is left to who reads the call."""
        if text.startswith(self._end):
            made.append("}" if self._num_read else "{}")
            self.is_done = True
            return 0
        stop = text.find(self._tags.name_end)
        if not text.startswith(self._tags.begin) or stop < 0:
            return 0
        self._name = text[len(self._tags.begin) : stop]
        self._is_string = value_types(self._properties.get(self._name)) == {"string"}
        made.append(("{" if not self._num_read else ", ") + json.dumps(self._name, ensure_ascii=False) + ": ")
        made.append('"' if self._is_string else "")
        self._num_read += 1
        return stop + len(self._tags.name_end)

    def _read_value(self, text: str, made: list[str]) -> int:
        stop = text.find(self._tags.end)
        if stop >= 0:
            value = text[:stop]
            made.append(_escaped(value) + '"' if self._is_string else self._as_json(value))
            self._name = None
            return stop + len(self._tags.end)
        if not self._is_string:
            return 0
        num_safe = len(text) - partial_match_len(text, self._tags.end)
        made.append(_escaped(text[:num_safe]))
        return num_safe

    def _as_json(self, value: str) -> str:
        """JSON of another kind than a string stays; where the schema knows only strings, or it is no JSON, a string."""
        assert self._name is not None
        return as_json(value, self._properties.get(self._name))


def as_json(value: str, schema: Any) -> str:
    """The JSON text of a value that a model wrote without quotes."""
    try:
        parsed = json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(value, ensure_ascii=False)
    types = value_types(schema)
    if "string" in types and _type_of(parsed) not in types | ({"integer"} if "number" in types else set()):
        return json.dumps(value, ensure_ascii=False)
    return value


def value_types(schema: Any) -> set[str]:
    """The JSON types that a schema allows, as far as it says so at its top; empty where it does not."""
    if not isinstance(schema, Mapping):
        return set()
    declared = schema.get("type")
    if isinstance(declared, str):
        return {declared}
    if isinstance(declared, list):
        return {kind for kind in declared if isinstance(kind, str)}
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        return {_type_of(value) for value in values}
    branches = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(branches, list) and all(value_types(branch) for branch in branches):
        return set().union(*(value_types(branch) for branch in branches))
    return set()


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    kinds = {str: "string", int: "integer", float: "number", list: "array"}
    return kinds.get(type(value), "object")


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
