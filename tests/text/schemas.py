"""A table of JSON schemas, one for each thing that schemas can say."""

import itertools
from collections.abc import Iterator
from typing import Any

from tests.text.real_schemas import REAL_SCHEMAS


def string_schemas() -> Iterator[Any]:
    yield {"type": "string"}
    for low, high in ((0, 0), (0, 3), (2, 2), (3, 8), (1, 40)):
        yield {"type": "string", "minLength": low, "maxLength": high}
    for pattern in (
        r"^\d{3}-\d{4}$",
        "^[a-z]+$",
        "^(a|bc)*d?$",
        "x",
        "^[A-Z][a-z]{0,5}( [A-Z][a-z]{0,5})?$",
        r"^\S+@\S+$",
    ):
        yield {"type": "string", "pattern": pattern}
    yield {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 5}
    for name in ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"):
        yield {"type": "string", "format": name}
    yield {"type": "string", "format": "colour", "maxLength": 9}


def number_schemas() -> Iterator[Any]:
    for kind in ("integer", "number"):
        yield {"type": kind}
        for low, high in ((0, 9), (-5, 5), (1, 1), (-1000, -10), (7, 123456)):
            yield {"type": kind, "minimum": low, "maximum": high}
            if low < high:
                yield {"type": kind, "exclusiveMinimum": low, "exclusiveMaximum": high + 1}
        yield {"type": kind, "minimum": 3}
        yield {"type": kind, "exclusiveMaximum": 0}
    yield {"type": "integer", "multipleOf": 5}
    yield {"type": "number", "minimum": 0.25, "maximum": 1.5}


def scalar_schemas() -> Iterator[Any]:
    yield from string_schemas()
    yield from number_schemas()
    yield {"type": "boolean"}
    yield {"type": "null"}
    yield {"type": ["integer", "null"]}
    yield {"type": ["string", "boolean"], "maxLength": 4}
    for values in (["red", "green"], [1, 2, 3], ["a", 1, None, True], ['q"uote\\', "ünï", "\n"], [[1], {"a": []}]):
        yield {"enum": values}
    for value in ("x", 5, -2.5, None, False, "", ["a", {"b": 1}]):
        yield {"const": value}


def array_schemas() -> Iterator[Any]:
    items: list[Any] = [{"type": "integer", "maximum": 99, "minimum": 0}, {"enum": ["a", "b"]}, {"type": "boolean"}]
    for item, (low, high) in itertools.product(items, ((0, 0), (0, 2), (1, 1), (2, 4), (3, 3))):
        yield {"type": "array", "items": item, "minItems": low, "maxItems": high}
    yield {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "maxItems": 3}
    yield {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": 1}], "items": False, "minItems": 2}
    yield {"type": "array", "prefixItems": [{"type": "boolean"}], "items": {"type": "null"}, "maxItems": 3}


def object_schemas() -> Iterator[Any]:
    fields: dict[str, Any] = {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 2},
        "ok": {"type": "boolean"},
    }
    for count in range(5):
        for required in itertools.combinations(fields, count):
            yield {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}
            yield {"type": "object", "properties": fields, "required": list(required)}
    yield {
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9},
        "maxProperties": 2,
    }
    yield {"type": "object", "properties": {}, "additionalProperties": False}
    yield {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a", "b"], "maxProperties": 2}
    yield {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "null"}}, "additionalProperties": False}
    for depth in (2, 5, 15):
        nested: dict[str, Any] = {"type": "boolean"}
        for level in range(depth):
            nested = {"type": "object", "properties": {f"l{level}": nested}, "required": [f"l{level}"]}
        yield nested
    yield {"type": "object", "properties": {f"p{i}": {"type": "boolean"} for i in range(40)}}
    yield {"type": "object", "properties": {'é "q"\\': {"type": "boolean"}, "": {"type": "null"}}, "required": [""]}


def combined_schemas() -> Iterator[Any]:
    short, small = {"type": "string", "maxLength": 3}, {"type": "integer", "minimum": 0, "maximum": 9}
    for key in ("anyOf", "oneOf"):
        yield {key: [short, small]}
        yield {key: [small, {"type": "null"}]}
        yield {
            key: [
                {"type": "object", "properties": {"kind": {"const": "a"}, "x": small}, "required": ["kind", "x"]},
                {"type": "object", "properties": {"kind": {"const": "b"}, "y": short}, "required": ["kind"]},
            ]
        }
        yield {"type": "array", "items": {key: [{"const": 1}, {"const": "z"}]}, "maxItems": 3}
    yield {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 7}]}
    yield {"allOf": [{"type": "string", "pattern": "^[ab]+$"}, {"maxLength": 4}]}
    yield {
        "allOf": [
            {"type": "object", "properties": {"a": small}, "required": ["a"]},
            {"type": "object", "properties": {"b": short}, "required": ["b"]},
        ],
        "maxProperties": 2,
    }
    yield {
        "type": "object",
        "properties": {"a": small, "b": small},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        "additionalProperties": False,
    }
    node = {
        "type": "object",
        "properties": {"value": small, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    }
    node["required"] = ["value", "next"]  # type: ignore[assignment]
    yield {"$defs": {"node": node}, "$ref": "#/$defs/node"}
    yield {"$defs": {"s": short}, "type": "object", "properties": {"a": {"$ref": "#/$defs/s", "minLength": 1}}}
    yield {"definitions": {"s": small}, "type": "array", "items": {"$ref": "#/definitions/s"}, "maxItems": 2}
    yield {"type": "object", "properties": {"child": {"$ref": "#"}, "leaf": {"type": "boolean"}}, "required": ["leaf"]}
    yield {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [small, short],
        "maxItems": 2,
    }
    yield {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T", "description": "d", **small}


def made_schemas() -> Iterator[Any]:
    """As pydantic, zod and OpenAI's guides write them."""
    yield {  # pydantic: nested models, an enum, optional and nullable fields, a union told apart by a constant
        "$defs": {
            "Kind": {"enum": ["a", "b"], "title": "Kind", "type": "string"},
            "Cat": {
                "properties": {
                    "pet": {"const": "cat", "default": "cat", "title": "Pet", "type": "string"},
                    "lives": {"type": "integer", "minimum": 0, "maximum": 9},
                },
                "required": ["lives"],
                "title": "Cat",
                "type": "object",
            },
            "Dog": {
                "properties": {
                    "pet": {"const": "dog", "title": "Pet", "type": "string"},
                    "kind": {"$ref": "#/$defs/Kind"},
                },
                "required": ["pet", "kind"],
                "title": "Dog",
                "type": "object",
            },
        },
        "properties": {
            "kind": {"$ref": "#/$defs/Kind"},
            "nick": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}], "default": None, "title": "Nick"},
            "pet": {
                "discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}, "propertyName": "pet"},
                "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            },
            "counts": {
                "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9},
                "type": "object",
                "maxProperties": 0,
            },
            "pair": {
                "maxItems": 2,
                "minItems": 2,
                "prefixItems": [{"type": "boolean"}, {"$ref": "#/$defs/Kind"}],
                "type": "array",
            },
        },
        "required": ["kind", "pet"],
        "title": "Owner",
        "type": "object",
    }
    yield {  # zod: no other properties, safe integers, records, literals
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "id": {
                "type": "string",
                "format": "uuid",
                "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
            },
            "age": {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
            "role": {"anyOf": [{"type": "string", "const": "admin"}, {"type": "string", "const": "user"}]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 2}, "maxItems": 2},
        },
        "required": ["id", "age", "role", "tags"],
        "additionalProperties": False,
    }
    yield {
        "type": "object",
        "propertyNames": {"type": "string"},
        "additionalProperties": {"type": "boolean"},
        "maxProperties": 0,
    }
    yield {"type": "object", "propertyNames": {"pattern": "^k[0-9]$"}, "additionalProperties": {"type": "boolean"}}
    yield {
        "type": "object",
        "propertyNames": {"enum": ["x", "y"]},
        "additionalProperties": {"type": "null"},
        "required": ["x"],
    }
    yield {  # OpenAI's guide: recursive, everything required
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/node"}},
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "type": {"type": "string", "enum": ["div", "button"]},
                    "label": {"type": "string", "maxLength": 4},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
                },
                "required": ["type", "label", "children"],
                "additionalProperties": False,
            }
        },
        "required": ["tree"],
        "additionalProperties": False,
    }
    yield {  # steps of a calculation
        "type": "object",
        "properties": {
            "steps": {
                "type": "array",
                "maxItems": 2,
                "items": {
                    "type": "object",
                    "properties": {
                        "explanation": {"type": "string", "maxLength": 5},
                        "output": {"type": ["string", "null"], "maxLength": 5},
                    },
                    "required": ["explanation", "output"],
                    "additionalProperties": False,
                },
            },
            "final_answer": {"type": "number", "minimum": 0, "maximum": 100},
        },
        "required": ["steps", "final_answer"],
        "additionalProperties": False,
    }
    yield {
        "type": "object",
        "properties": {"when": {"type": "string", "format": "date-time"}, "who": {"type": "string", "format": "email"}},
        "required": ["when", "who"],
        "additionalProperties": False,
    }
    yield {
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "items": {
            "anyOf": [
                {"type": "null"},
                {
                    "type": "object",
                    "properties": {"n": {"type": "integer", "multipleOf": 4, "minimum": 0, "maximum": 64}},
                    "required": ["n"],
                    "additionalProperties": False,
                },
            ]
        },
    }
    yield {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "patternProperties": {"^x_": {"type": "integer", "minimum": 0, "maximum": 5}},
        "additionalProperties": False,
    }
    yield {
        "type": "object",
        "properties": {
            "free": {"type": "object", "maxProperties": 0},
            "any": True,
            "none": {"type": "array", "maxItems": 0},
        },
        "required": ["none"],
    }
    yield {
        "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"type": "boolean"}}, "required": ["b"]}],
        "$defs": {"base": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}},
        "maxProperties": 2,
    }


SCHEMAS = [
    *scalar_schemas(),
    *array_schemas(),
    *object_schemas(),
    *combined_schemas(),
    *made_schemas(),
    *REAL_SCHEMAS,
    *({"type": "object", "properties": {"value": s}, "required": ["value"]} for s in scalar_schemas()),
]
