"""Schemas in the shapes that libraries and applications send, and keywords that the grammar compiler only knows in other words."""

import itertools
from collections.abc import Iterator
from typing import Any

SMALL: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 9}
SHORT: dict[str, Any] = {"type": "string", "maxLength": 3}
# zod 4's, and pydantic 2's Decimal.
EMAIL: dict[str, Any] = {
    "type": "string",
    "format": "email",
    "pattern": r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
}
DECIMAL: dict[str, Any] = {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}
FREE: dict[str, Any] = {"type": "object", "properties": {"a": SMALL, "b": SMALL, "c": {"type": "boolean"}}}


def negations() -> Iterator[Any]:
    for refused in ({"const": "ab"}, {"const": ""}, {"enum": ["a", "ab", "b", ""]}, {"enum": ["x.y", "x\\", "]"]}):
        yield {**SHORT, "not": refused}
    yield {"enum": ["a", "b", 1, None], "not": {"enum": ["a", None]}}
    yield {"not": {"type": ["object", "array", "string", "number"]}}
    yield {"type": ["integer", "null"], "maximum": 9, "minimum": 0, "not": {"type": "null"}}
    yield {"not": {"not": SMALL}}
    yield {**FREE, "not": {"required": ["a", "b"]}}
    yield {**FREE, "not": {"required": ["a"]}}
    yield {"type": "object", "properties": {"a": SMALL, "never": {"not": {}}}, "required": ["a"]}
    yield {"type": "object", "properties": {"a": SMALL}, "additionalProperties": {"not": {}}}
    yield {"not": {"required": ["a"]}, "maxProperties": 0}
    yield {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/small"}, "b": {"$ref": "#/$defs/small"}},
        "required": ["a"],
        "not": {"required": ["b"]},
        "$defs": {"small": SMALL},
    }
    yield {"enum": [{"a": 1}, "x", 2], "not": {"enum": [2, 3]}}
    yield {**FREE, "not": {"$ref": "#/$defs/no"}, "$defs": {"no": {"required": ["c"]}}}


def numbers_of_things() -> Iterator[Any]:
    for least in (1, 2, 3):
        yield {**FREE, "minProperties": least}
        yield {**FREE, "minProperties": least, "required": ["b"], "additionalProperties": False}
    for most in (1, 2):
        yield {**FREE, "maxProperties": most, "additionalProperties": False}
    yield {**FREE, "minProperties": 1, "maxProperties": 2, "additionalProperties": False}
    yield {"type": "object", "additionalProperties": SMALL, "minProperties": 1, "maxProperties": 3}
    yield {"type": "array", "items": SMALL, "contains": {"const": 3}, "maxItems": 3}
    yield {"type": "array", "items": SMALL, "contains": {"minimum": 7}, "minContains": 2, "maxItems": 4}
    yield {"type": "array", "contains": SHORT, "maxItems": 1}
    for values in (["a"], ["a", "b", "c"], list("abcdef"), [1, 2, 3, None, True]):
        yield {"type": "array", "items": {"enum": values}, "uniqueItems": True}
    yield {
        "type": "array",
        "items": {"$ref": "#/$defs/e"},
        "uniqueItems": True,
        "minItems": 2,
        "$defs": {"e": {"enum": list("wxyz")}},
    }
    yield {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "maxItems": 5}
    yield {"type": "array", "items": SHORT, "uniqueItems": True, "maxItems": 1}
    yield {"type": "array", "items": SHORT, "uniqueItems": False, "maxItems": 2}


def conditions() -> Iterator[Any]:
    kinds = {"kind": {"enum": ["a", "b"]}, "value": SMALL, "other": SHORT}
    for required, tested in itertools.product(([], ["kind"]), ([], ["kind"])):
        test = {"properties": {"kind": {"const": "a"}}, "required": tested}
        node = {"type": "object", "properties": kinds, "required": required, "if": test}
        yield {**node, "then": {"required": ["value"]}}
        yield {
            **node,
            "then": {"required": ["value"]},
            "else": {"required": ["other"], "properties": {"other": {"const": "x"}}},
        }
    yield {
        "type": "object",
        "properties": {"country": {"enum": ["US", "NL", "CA"]}, "code": {"type": "string"}},
        "required": ["country", "code"],
        "allOf": [
            {
                "if": {"properties": {"country": {"const": "US"}}},
                "then": {"properties": {"code": {"pattern": "^[0-9]{5}$"}}},
            },
            {
                "if": {"properties": {"country": {"const": "NL"}}},
                "then": {"properties": {"code": {"pattern": "^[0-9]{4} [A-Z]{2}$"}}},
            },
        ],
    }
    yield {
        "type": "object",
        "properties": {"mode": {"type": "string", "maxLength": 4}, "level": SMALL},
        "required": ["mode"],
        "if": {"properties": {"mode": {"enum": ["on", "dim"]}}},
        "then": {"required": ["level"]},
        "else": {"properties": {"level": False}},
    }
    yield {**FREE, "if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["c"]}}
    yield {**FREE, "dependentRequired": {"a": ["b"], "b": ["c"]}}
    yield {**FREE, "dependentSchemas": {"a": {"properties": {"b": {"const": 1}}, "required": ["b"]}}}
    yield {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **FREE,
        "dependencies": {"a": ["b"], "c": {"required": ["a"]}},
    }


def names_and_patterns() -> Iterator[Any]:
    for names in (
        {"type": "string", "minLength": 1, "maxLength": 2},
        {"$ref": "#/$defs/color"},
        {"anyOf": [{"const": "x"}, {"const": "y"}]},
        {"type": "string", "pattern": "^[a-z]{2}$"},
    ):
        yield {
            "type": "object",
            "propertyNames": names,
            "additionalProperties": SMALL,
            "$defs": {"color": {"enum": ["red", "green"], "title": "Color", "type": "string"}},
            "maxProperties": 2 if "enum" not in str(names) else 4,
        }
    yield EMAIL
    yield {"anyOf": [{"type": "number"}, DECIMAL]}
    yield {"type": "object", "properties": {"a": SMALL}, "required": ["a"], "unevaluatedProperties": False}
    yield {"type": "array", "prefixItems": [SMALL, SHORT], "unevaluatedItems": False}
    yield {
        "type": "object",
        "properties": {"größe": SMALL, "😀": SHORT, "日本 語": SMALL},
        "required": ["größe", "😀", "日本 語"],
    }
    yield {
        "$defs": {"n": {"$anchor": "node", "type": "object", "properties": {"v": SMALL}, "required": ["v"]}},
        "$ref": "#node",
    }
    yield {"enum": [f"value number {index}" for index in range(1200)]}
    yield {
        "type": "string",
        "contentMediaType": "application/json",
        "x-order": 3,
        "markdownDescription": "m",
        "nullable": True,
        "maxLength": 2,
    }


def applications() -> Iterator[Any]:
    """As instructor, LangChain, Home Assistant and agents write them."""
    yield {  # instructor: a list of extracted things with their places
        "$defs": {
            "Fact": {
                "properties": {
                    "fact": {"title": "Fact", "type": "string", "maxLength": 4},
                    "score": {"default": 0.5, "exclusiveMinimum": 0, "maximum": 1, "title": "Score", "type": "number"},
                    "tags": {
                        "items": {"enum": ["a", "b"], "type": "string"},
                        "title": "Tags",
                        "type": "array",
                        "uniqueItems": True,
                    },
                    "parent": {"anyOf": [{"$ref": "#/$defs/Fact"}, {"type": "null"}], "default": None},
                },
                "required": ["fact", "tags"],
                "title": "Fact",
                "type": "object",
            }
        },
        "description": "Correctly extracted `Facts`",
        "properties": {"facts": {"items": {"$ref": "#/$defs/Fact"}, "maxItems": 2, "title": "Facts", "type": "array"}},
        "required": ["facts"],
        "title": "Facts",
        "type": "object",
    }
    yield {  # LangChain: a choice of actions, told apart by a constant
        "title": "Act",
        "type": "object",
        "properties": {
            "action": {
                "anyOf": [{"$ref": "#/definitions/Response"}, {"$ref": "#/definitions/Plan"}],
                "title": "Action",
            }
        },
        "required": ["action"],
        "definitions": {
            "Response": {
                "title": "Response",
                "type": "object",
                "properties": {"response": SHORT},
                "required": ["response"],
            },
            "Plan": {
                "title": "Plan",
                "type": "object",
                "properties": {"steps": {"type": "array", "items": SHORT, "minItems": 1, "maxItems": 2}},
                "required": ["steps"],
            },
        },
    }
    yield {  # Home Assistant: turn something on, by name, area or kind
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "area": {"type": "string", "maxLength": 6},
            "floor": {"type": "string", "maxLength": 6},
            "domain": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
            "device_class": {
                "type": "array",
                "items": {"type": "string", "enum": ["outlet", "switch", "tv"]},
                "maxItems": 2,
            },
            "brightness": {"type": "integer", "minimum": 0, "maximum": 100, "description": "percent"},
        },
        "required": [],
    }
    yield {  # an agent's edit of files
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "path": {"type": "string", "minLength": 1, "maxLength": 8},
            "edits": {
                "type": "array",
                "minItems": 1,
                "maxItems": 2,
                "items": {
                    "type": "object",
                    "properties": {"old": SHORT, "new": SHORT, "all": {"type": "boolean", "default": False}},
                    "required": ["old", "new"],
                    "additionalProperties": False,
                },
            },
            "view_range": {"type": "array", "items": [SMALL, SMALL], "minItems": 2, "maxItems": 2},
        },
        "required": ["path", "edits"],
        "additionalProperties": False,
    }
    yield {  # OpenAI's guide: every field is there, some are null
        "type": "object",
        "properties": {
            "location": {"type": "string", "maxLength": 5},
            "unit": {"type": ["string", "null"], "enum": ["F", "C", None]},
            "days": {"anyOf": [{"type": "array", "items": SMALL, "maxItems": 2}, {"type": "null"}]},
        },
        "required": ["location", "unit", "days"],
        "additionalProperties": False,
    }
    yield {  # a screen, as in OpenAI's guide: recursive by the root
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["div", "button"]},
            "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1},
            "attributes": {
                "type": "array",
                "maxItems": 1,
                "items": {
                    "type": "object",
                    "properties": {"name": SHORT, "value": SHORT},
                    "required": ["name", "value"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["type", "children", "attributes"],
        "additionalProperties": False,
    }
    yield {  # zod 4: a discriminated union
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "oneOf": [
            {
                "type": "object",
                "properties": {"type": {"type": "string", "const": "ok"}, "data": SHORT},
                "required": ["type", "data"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"type": {"type": "string", "const": "no"}, "code": SMALL},
                "required": ["type", "code"],
                "additionalProperties": False,
            },
        ],
    }
    yield {
        "type": "array",
        "items": {"$ref": "#/$defs/P"},
        "maxItems": 1,
        "$defs": {"P": {"type": "object", "properties": {"x": SMALL}, "required": ["x"]}},
    }


REAL_SCHEMAS = [*negations(), *numbers_of_things(), *conditions(), *names_and_patterns(), *applications()]
