"""What clients write to constrain an answer: TGI's `grammar`, both dialects' `response_format`, and `tool_choice`."""

import re
from collections.abc import Mapping
from typing import Any

from tgi_local.constraints import JsonGrammar, RegexGrammar
from tgi_local.errors import BodyShapeError, UnsupportedError, ValidationError
from tgi_local.protocol.wire import WireModel

_GUIDED = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_BARE = {"json_schema": "json", "regex": "regex", "ebnf": "grammar"}
_KINDS = ("json", "json_object", "json_schema", "regex")


class GuidedFields(WireModel):
    """OpenAI's and TGI's `response_format`, and the names that clients of vLLM, SGLang and llama.cpp use for the same."""

    response_format: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: dict[str, Any] | None = None
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None
    grammar: dict[str, Any] | None = None  # TGI's native one


def parse_response_format(body: GuidedFields) -> JsonGrammar | RegexGrammar | None:
    """What the answer's text must match, in whichever form it was asked for. Raises RequestError."""
    found = [
        _guided(kind, value, f"guided_{kind}")
        for kind in _GUIDED[:4]
        if (value := getattr(body, f"guided_{kind}")) is not None
    ]
    found += [_guided(kind, value, name) for name, kind in _BARE.items() if (value := getattr(body, name))]
    for kind in _GUIDED:
        value = (body.structured_outputs or {}).get(kind)
        if value is not None and value is not False:
            found.append(_guided(kind, value, "structured_outputs"))
    if body.response_format is not None and body.response_format.get("type") != "text":
        found.append(parse_grammar(body.response_format, "response_format"))
    if body.grammar is not None:
        found.append(parse_grammar(body.grammar, "grammar"))
    if len(found) > 1:
        raise ValidationError("only one grammar can be followed at a time", param=found[-1].field)
    return found[0] if found else None


def _guided(kind: str, value: Any, field: str) -> JsonGrammar | RegexGrammar:
    if kind == "json" and isinstance(value, str | Mapping):
        return JsonGrammar(value, field)
    if kind == "json_object":
        return JsonGrammar({"type": "object"}, field)
    if kind == "regex" and isinstance(value, str):
        return RegexGrammar(value, field)
    if kind == "choice" and isinstance(value, list) and value and all(isinstance(option, str) for option in value):
        return RegexGrammar("|".join(map(re.escape, value)), field)
    if kind in ("grammar", "structural_tag"):
        raise UnsupportedError(
            f"`{field}` with a {kind} is not supported; use a schema or a regular expression", param=field
        )
    raise ValidationError(f"`{field}` is not a valid {kind}", param=field)


def parse_grammar(given: Mapping[str, Any], field: str) -> JsonGrammar | RegexGrammar:
    """TGI's `{"type", "value"}`, OpenAI's `json_object` and `json_schema`, and Together's `schema` and `pattern`, which
    Fireworks and llama.cpp share. Raises BodyShapeError.

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
    if value is None:
        value = given.get("pattern" if kind == "regex" else "schema")
    if kind == "json_object" and value is None:
        return JsonGrammar({"type": "object"}, field)
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
    """Without a schema OpenAI takes any object; without `strict` it promises no more than its best."""
    if not isinstance(given, Mapping):
        raise _shape_error(f"{field}.json_schema", "invalid type, expected a map")
    schema = given.get("schema")
    return JsonGrammar({"type": "object"} if schema is None else schema, field, strict=given.get("strict") is True)


def _shape_error(field: str, detail: str) -> BodyShapeError:
    return BodyShapeError(f"{field}: {detail} at line 1 column 1", param=field)
