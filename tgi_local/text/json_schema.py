"""A client's JSON schema, bounded, checked and in the form that makes good grammars."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import validator_for

from tgi_local.text.schema_rewrites import MAPS_OF_SCHEMAS, NO_SCHEMAS, modernize, rewrite, subschemas

MAX_BYTES = 64 * 1024
MAX_NESTING = 64  # of the JSON text: two levels for each of 32 nested objects
# Checking that an intersection of patterns is not empty takes time exponential in their number.
MAX_INTERSECTED_PATTERNS = 8
# As TGI: at most one space between tokens. Without a bound, small models write white space for ever.
WHITESPACE = "[ ]?"
MAX_PATH_LEN = 100
UNKNOWN_KEYWORDS = "Unimplemented keys:"  # how the grammar compiler begins to name them

_ENFORCED_FORMATS = frozenset("date-time date time duration email hostname ipv4 ipv6 uri uuid".split())
_NO_ASSERTIONS = frozenset(
    "title description default example examples deprecated readOnly writeOnly discriminator "
    "$comment $defs definitions $schema $id $anchor".split()
)


def canonical(schema: object) -> bytes:
    """The schema as compact JSON in the client's order. Raises ValueError for what is no bounded object."""
    if isinstance(schema, str):
        if len(schema) > MAX_BYTES:
            raise ValueError(f"a schema may have at most {MAX_BYTES} bytes")
        try:
            schema = orjson.loads(schema)
        except ValueError:
            raise ValueError("the schema is not JSON") from None
    if not isinstance(schema, Mapping):
        raise ValueError("the schema must be an object")
    _check_nesting(schema)
    try:
        text = orjson.dumps(schema)
    except TypeError:
        raise ValueError("the schema is not JSON") from None
    if len(text) > MAX_BYTES:
        raise ValueError(f"a schema may have at most {MAX_BYTES} bytes")
    return text


def prepare(text: bytes, *, strict: bool) -> dict[str, Any]:
    """The canonical schema as the grammar compiler wants it. Raises ValueError that names the fault.

    An object with `properties` takes no others, as in TGI, wherever that only narrows what the schema allows.
    Formats that JSON Schema leaves to the application are annotations.
    """
    schema: dict[str, Any] = orjson.loads(text)
    if "$schema" not in schema:
        modernize(schema)
    _check_valid(schema)
    nodes = list(subschemas(schema))
    if all(str(node.get("$ref", "#")).startswith("#") for node in nodes):
        schema.pop("$id", None)  # nothing refers to it, and what clients write there need be no URI
    for node in nodes:
        if isinstance(node.get("format"), str) and node["format"] not in _ENFORCED_FORMATS:
            del node["format"]
    if any(_is_intersection(node) for node in nodes):
        _check_patterns(nodes)
    else:
        for node in nodes:
            if _can_be_closed(node):
                node["additionalProperties"] = False
    schema = rewrite(schema, strict=strict)
    if not isinstance(schema, dict):
        raise ValueError("the schema allows no value")
    schema["x-guidance"] = {"whitespace_pattern": WHITESPACE, "coerce_one_of": True, "lenient": not strict}
    return schema


def with_place(fault: str, schema: object) -> str:
    """What the grammar compiler says of a keyword it does not know, with where the schema has it."""
    found = re.match(UNKNOWN_KEYWORDS + r' \["([^"]+)"', fault)
    if found is None:
        return fault
    keyword = found[1]
    place = next((path for path, node in _placed(schema, "$") if keyword in node), "$")
    return f"`{keyword}` at {place[:MAX_PATH_LEN]} is not supported"


def _placed(schema: object, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schema and all schemas in it with their JSON paths."""
    pending: list[tuple[str, object, bool]] = [(path, schema, True)]
    while pending:
        path, node, is_schema = pending.pop()
        if isinstance(node, list):
            pending.extend((f"{path}[{index}]", item, True) for index, item in reversed(list(enumerate(node))))
        elif isinstance(node, Mapping):
            if is_schema:
                yield path, node
            for key, value in reversed(list(node.items())):
                if not is_schema or key not in NO_SCHEMAS:
                    pending.append((f"{path}.{key}", value, not (is_schema and key in MAPS_OF_SCHEMAS)))


def _check_nesting(schema: object) -> None:
    level = [schema]
    for _ in range(MAX_NESTING):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise ValueError("the schema is nested too deeply")


def _children(node: object) -> Iterator[Any]:
    if isinstance(node, Mapping):
        yield from node.values()
    elif isinstance(node, list | tuple):
        yield from node


def _check_valid(schema: dict[str, Any]) -> None:
    """Against the draft it names. One that nobody knows is dropped: it may not be fetched."""
    draft = Draft202012Validator
    if isinstance(name := schema.get("$schema"), str):
        draft = validator_for(schema, default=Draft202012Validator)
        if name.rstrip("#") != draft.META_SCHEMA["$schema"].rstrip("#"):
            del schema["$schema"]
    error = best_match(draft(draft.META_SCHEMA).iter_errors(schema))
    if error is not None:
        raise ValueError(f"{error.json_path[:MAX_PATH_LEN]} breaks the rule `{error.validator}` of JSON Schema")


def _is_intersection(node: dict[str, Any]) -> bool:
    """Whether several schemas must hold at once, so that closing one would close the others."""
    others = node.keys() - _NO_ASSERTIONS
    if not node.keys().isdisjoint(("allOf", "if", "not", "dependentSchemas")):
        return True
    return len(others) > 1 and not others.isdisjoint(("$ref", "$dynamicRef", "anyOf", "oneOf"))


def _can_be_closed(node: dict[str, Any]) -> bool:
    properties = node.get("properties")
    if not isinstance(properties, dict) or not set(node.get("required", ())) <= properties.keys():
        return False
    if node.get("minProperties", 0) > len(properties):
        return False
    return node.keys().isdisjoint(("additionalProperties", "unevaluatedProperties", "patternProperties"))


def _check_patterns(nodes: list[dict[str, Any]]) -> None:
    patterns = {node[key] for node in nodes for key in ("pattern", "format") if isinstance(node.get(key), str)}
    patterns.update(pattern for node in nodes for pattern in node.get("patternProperties", ()))
    if len(patterns) > MAX_INTERSECTED_PATTERNS:
        raise ValueError(
            f"a schema that combines schemas (`allOf`, ...) may hold at most {MAX_INTERSECTED_PATTERNS} different patterns"
        )
