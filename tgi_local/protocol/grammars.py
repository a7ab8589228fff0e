"""What clients write to constrain an answer: TGI's `grammar`, the `response_format` of many servers, and their own fields."""

import re
from collections.abc import Mapping
from typing import Any

from tgi_local.constraints import AnswerGrammar, JsonGrammar, RegexGrammar, TextGrammar
from tgi_local.errors import BodyShapeError, UnsupportedError, ValidationError
from tgi_local.protocol.wire import WireModel

_KINDS = ("json", "json_object", "json_schema", "regex")
_ANY_OBJECT = {"type": "object"}
_SCHEMA_KEYS = ("type", "properties", "$ref", "anyOf", "allOf", "oneOf", "enum", "const")


class GuidedFields(WireModel):
    """OpenAI's and TGI's `response_format`, and what clients of vLLM, SGLang and llama.cpp call the same."""

    response_format: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: dict[str, Any] | None = None
    grammar: str | dict[str, Any] | None = None  # llama.cpp's, TGI's
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None


_FIELDS = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
}
_OF_STRUCTURED_OUTPUTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
# What follows is each kind's key in a `response_format` of llama.cpp, Together, Fireworks or vLLM.
_VALUE_KEYS = {
    "json_object": ("json", ("schema",)),
    "json_schema": ("json", ("schema",)),
    "regex": ("regex", ("pattern", "regex")),
    "grammar": ("grammar", ("grammar",)),
    "structural_tag": ("structural_tag", ("structures", "format", "structural_tag")),
}


def parse_response_format(body: GuidedFields) -> AnswerGrammar | None:
    """What the answer's text must match, in whichever form it was asked for. Raises RequestError."""
    found = [
        _guided(kind, value, name)
        for name, kind in _FIELDS.items()
        # SGLang's clients send the empty ones, too.
        if (value := getattr(body, name)) is not None and (value or name.startswith("guided_"))
    ]
    for kind in _OF_STRUCTURED_OUTPUTS:
        value = (body.structured_outputs or {}).get(kind)
        if value is not None and value is not False:
            found.append(_guided(kind, value, "structured_outputs"))
    if body.response_format is not None and body.response_format.get("type") != "text":
        found.append(_response_format(body.response_format))
    if isinstance(body.grammar, str) and body.grammar:
        found.append(TextGrammar(body.grammar, "grammar"))
    elif isinstance(body.grammar, Mapping):
        found.append(parse_grammar(body.grammar, "grammar"))
    if len(found) > 1:
        raise ValidationError("only one grammar can be followed at a time", param=found[-1].field)
    return found[0] if found else None


def _response_format(given: Mapping[str, Any]) -> AnswerGrammar:
    kind, keys = _VALUE_KEYS.get(str(given.get("type")), ("", ()))
    for key in keys:
        if given.get(key) is not None:
            return _guided(kind, given[key], "response_format")
    return parse_grammar(given, "response_format")


def _guided(kind: str, value: Any, field: str) -> AnswerGrammar:
    if kind == "json" and isinstance(value, str | Mapping):
        return JsonGrammar(value, field)
    if kind == "json_object":
        return JsonGrammar(_ANY_OBJECT, field)
    if kind == "regex" and isinstance(value, str):
        return RegexGrammar(value, field)
    if kind == "grammar" and isinstance(value, str):
        return TextGrammar(value, field)
    if kind == "choice" and isinstance(value, list) and value and all(isinstance(option, str) for option in value):
        return RegexGrammar("|".join(map(re.escape, value)), field)
    if kind == "structural_tag":
        raise UnsupportedError(
            f"`{field}` with a {kind} is not supported; use tools, a schema or a grammar", param=field
        )
    raise ValidationError(f"`{field}` is not a valid {kind}", param=field)


def parse_grammar(given: Mapping[str, Any], field: str) -> JsonGrammar | RegexGrammar:
    """TGI's `{"type", "value"}` and OpenAI's `json_object` and `json_schema`. Raises BodyShapeError.

    Schemas are checked later: in TGI's order everything else that may be wrong with a request comes first.
    """
    kind, value = given.get("type"), given.get("value")
    if kind is None:
        raise _shape_error(field, "missing field `type`")
    if kind not in _KINDS:
        known = _KINDS if field == "grammar" else ("text", *_KINDS)
        raise _shape_error(field, f"unknown variant, expected one of {', '.join(f'`{name}`' for name in known)}")
    if kind == "json_schema" and value is None and "json_schema" in given:
        return _openai_schema(given["json_schema"], field)
    if kind == "json_object" and value is None:
        return JsonGrammar(_ANY_OBJECT, field)
    if value is None:
        raise _shape_error(field, "missing field `value`")
    if kind == "regex":
        if not isinstance(value, str):
            raise _shape_error(field, "invalid type, expected a string")
        return RegexGrammar(value, field)
    if kind == "json_schema" and isinstance(value, Mapping) and "schema" in value:
        value = value["schema"]
    return JsonGrammar(value, field)


def _openai_schema(given: Any, field: str) -> JsonGrammar:
    """Without a schema OpenAI takes any object; without `strict` it promises no more than its best.

    Some clients write the schema itself in its place.
    """
    if not isinstance(given, Mapping):
        raise _shape_error(f"{field}.json_schema", "invalid type, expected a map")
    schema = given.get("schema")
    if schema is None and "name" not in given and not given.keys().isdisjoint(_SCHEMA_KEYS):
        schema = given
    return JsonGrammar(_ANY_OBJECT if schema is None else schema, field, strict=given.get("strict") is True)


def _shape_error(field: str, detail: str) -> BodyShapeError:
    return BodyShapeError(f"{field}: {detail} at line 1 column 1", param=field)
