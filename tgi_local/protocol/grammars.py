"""What clients write to constrain an answer: TGI's `grammar`, both dialects' `response_format`, and `tool_choice`."""

from collections.abc import Mapping
from typing import Any

from tgi_local.constraints import JsonGrammar, RegexGrammar
from tgi_local.errors import BodyShapeError

_KINDS = ("json", "json_object", "json_schema", "regex")


def parse_grammar(given: Mapping[str, Any], field: str) -> JsonGrammar | RegexGrammar:
    """TGI's `{"type", "value"}` and OpenAI's `json_object` and `json_schema`. Raises BodyShapeError.

    Schemas are checked later: in TGI's order everything else that may be wrong with a request comes first.
    """
    kind, value = given.get("type"), given.get("value")
    if kind is None:
        raise _shape_error(field, "missing field `type`")
    if kind not in _KINDS:
        raise _shape_error(field, f"unknown variant, expected one of {', '.join(f'`{known}`' for known in _KINDS)}")
    if kind == "json_schema" and value is None and "json_schema" in given:
        return _openai_schema(given["json_schema"], field)
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
