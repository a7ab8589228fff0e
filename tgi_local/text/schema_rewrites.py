"""Keywords of JSON Schema that the grammar compiler does not know, in ones that it does.

What is rewritten allows the same values or fewer: whatever is written by it matches the schema as the client gave it. A keyword
that can not be told in other words stays as it is, and is refused by its name.
"""

import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

Schema = Any  # of JSON Schema: an object or a boolean

MAX_BRANCHES = 64
MAX_LISTS = 400
MAX_WORDS_LEN = 200
MAPS_OF_SCHEMAS = frozenset("properties patternProperties $defs definitions dependentSchemas".split())
NO_SCHEMAS = frozenset("const enum default example examples required type dependentRequired".split())
_TYPES = ("null", "boolean", "number", "string", "array", "object")
_SAME_OBJECT = frozenset("allOf then else dependentSchemas".split())

# Patterns with look-around, which libraries write for everyone who uses them, and what they mean without.
_KNOWN_PATTERNS = {
    # zod 4: z.email()
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": (
        r"^[A-Za-z0-9_'+\-]+(\.[A-Za-z0-9_'+\-]+)*[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
    ),
    # pydantic 2: Decimal
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)$",
}
_LOOK_AROUND = re.compile(r"\(\?<?[=!]")


def modernize(schema: dict[str, Any]) -> None:
    """In place: tuples and bounds as earlier drafts wrote them, in a schema that does not say which draft it is."""
    for node in subschemas(schema):
        if isinstance(node.get("items"), list):
            node["prefixItems"] = node.pop("items")
            if "additionalItems" in node:
                node["items"] = node.pop("additionalItems")
        for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if isinstance(node.get(exclusive), bool):
                is_exclusive = node.pop(exclusive)
                if is_exclusive and bound in node:
                    node[exclusive] = node.pop(bound)


def rewrite(schema: dict[str, Any], *, strict: bool) -> dict[str, Any]:
    """A schema that is valid in its draft. Not `strict`: patterns that can not be enforced are left out."""
    rewritten: dict[str, Any] = _Rewriter(schema, strict).rewrite(schema, {})
    return rewritten


def subschemas(schema: Schema) -> Iterator[dict[str, Any]]:
    """The schema and all schemas in it."""
    pending = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending.extend(node)
        elif isinstance(node, dict):
            yield node
            for key, value in node.items():
                if key in MAPS_OF_SCHEMAS:
                    pending.extend(value.values() if isinstance(value, dict) else ())
                elif key not in NO_SCHEMAS:
                    pending.append(value)


class _Rewriter:
    """Owns nothing but the root, to which references lead."""

    def __init__(self, root: Mapping[str, Any], strict: bool) -> None:
        self._root = root
        self._strict = strict

    def rewrite(self, node: Schema, outer: Mapping[str, Any]) -> Schema:
        """`outer` holds the properties that the same object has by the schema around this one."""
        if isinstance(node, list):
            return [self.rewrite(item, outer) for item in node]
        if not isinstance(node, dict):
            return node
        own = {**outer, **(node.get("properties") or {})}
        new: dict[str, Any] = {}
        for key, value in node.items():
            inner = own if key in _SAME_OBJECT else {}
            if key in MAPS_OF_SCHEMAS and isinstance(value, dict):
                new[key] = {name: self.rewrite(item, inner) for name, item in value.items()}
            else:
                new[key] = value if key in NO_SCHEMAS else self.rewrite(value, inner)
        return self._apply(new, own)

    def _apply(self, node: dict[str, Any], own: Mapping[str, Any]) -> Schema:
        self._pattern(node)
        _references(node)
        _unevaluated(node)
        self._property_names(node)
        _dependencies(node)
        _numbers_of_properties(node)
        _contains(node)
        self._unique(node)
        self._conditions(node, own)
        return self._negations(node)

    def _pattern(self, node: dict[str, Any]) -> None:
        pattern = node.get("pattern")
        if isinstance(pattern, str) and _LOOK_AROUND.search(pattern):
            if pattern in _KNOWN_PATTERNS:
                node["pattern"] = _KNOWN_PATTERNS[pattern]
            elif not self._strict:
                del node["pattern"]

    def _property_names(self, node: dict[str, Any]) -> None:
        """As zod and pydantic write them for records."""
        names = self._resolved(node.get("propertyNames", {}))
        if "propertyNames" not in node:
            return
        if names is True or (isinstance(names, dict) and names.keys() <= {"type", "title", "description"}):
            del node["propertyNames"]
            return
        if not isinstance(names, dict) or not node.keys().isdisjoint(("properties", "patternProperties")):
            return
        values, others = self._values(names), node.get("additionalProperties", True)
        if values is not None and all(isinstance(name, str) for name in values):
            node["properties"] = dict.fromkeys(values, others)
        elif names.keys() <= {"type", "pattern", "format", "title", "description"} and "pattern" in names:
            node["patternProperties"] = {names["pattern"]: others}
        elif names.keys() <= {"type", "minLength", "maxLength", "title", "description"}:
            low, high = names.get("minLength", 0), names.get("maxLength", "")
            node["patternProperties"] = {rf"^[\s\S]{{{low},{high}}}$": others}
        else:
            return
        del node["propertyNames"]
        node["additionalProperties"] = False

    def _unique(self, node: dict[str, Any]) -> None:
        """Lists of different values where there are few; in the schema's own order where those would be too many."""
        if node.get("uniqueItems") is False or node.get("maxItems", 2) <= 1:
            node.pop("uniqueItems", None)
        values = self._values(node.get("items")) if node.get("uniqueItems") and "prefixItems" not in node else None
        if values is None or any(isinstance(value, float | list | dict) for value in values):
            return
        low, high = node.get("minItems", 0), min(node.get("maxItems", len(values)), len(values))
        for choose in (itertools.permutations, itertools.combinations):
            lists = itertools.chain.from_iterable(choose(values, size) for size in range(low, high + 1))
            found = [list(chosen) for chosen in itertools.islice(lists, MAX_LISTS + 1)]
            if found and len(found) <= MAX_LISTS:
                for key in ("items", "minItems", "maxItems", "uniqueItems", "type"):
                    node.pop(key, None)
                node["enum"] = found
                return

    def _conditions(self, node: dict[str, Any], own: Mapping[str, Any]) -> None:
        """`if` as a choice between what holds with one value of a property and with its others."""
        if "if" not in node:
            return
        then, otherwise = node.get("then", True), node.get("else", True)
        condition = node["if"]
        if then is True and otherwise is True:
            branches: list[Schema] | None = []
        else:
            branches = self._branches(condition, then, otherwise, own)
        if branches is None:
            return
        for key in ("if", "then", "else"):
            node.pop(key, None)
        if branches:
            node["allOf"] = [*node.get("allOf", ()), {"anyOf": branches}]

    def _branches(
        self, condition: Schema, then: Schema, otherwise: Schema, own: Mapping[str, Any]
    ) -> list[Schema] | None:
        if not isinstance(condition, dict) or not condition.keys() <= {"properties", "required", "type"}:
            return None
        tested = condition.get("properties") or {}
        required = set(condition.get("required", ()))
        if condition.get("type", "object") != "object":
            return None
        if not tested and required:
            unmet = [_both(_object({name: False}), otherwise) for name in sorted(required)]
            return [_both(_object({}, required), then), *unmet]
        if not tested or not required <= tested.keys():
            return None
        values = {name: self._values(schema) for name, schema in tested.items()}
        others = {name: self._others(values[name], own.get(name, True)) for name in tested}
        if any(value is None for value in values.values()) or any(other is None for other in others.values()):
            return None
        branches = [_both(_object({name: {"enum": found} for name, found in values.items()}, tested), then)]
        for name, other in others.items():
            if other is not False:
                branches.append(_both(_object({name: other}, [name]), otherwise))
            if len(tested) == 1:
                branches.append(_both(_object({name: False}), otherwise if name in required else then))
        return branches

    def _others(self, values: list[Any] | None, schema: Schema) -> Schema | None:
        """What a property's schema allows besides some values; None where that can not be told."""
        if values is None:
            return None
        known = self._values(schema)
        if known is not None:
            refused = set(map(_spelled, values))
            rest = [value for value in known if _spelled(value) not in refused]
            return {"enum": rest} if rest else False
        return _other_than(values, self._resolved(schema))

    def _negations(self, node: dict[str, Any]) -> Schema:
        if "not" not in node:
            return node
        refused = self._resolved(node["not"])
        rest = {key: value for key, value in node.items() if key != "not"}
        if refused is False:
            return rest
        if refused is True or refused == {}:
            return False
        if not isinstance(refused, dict):
            return node
        kinds = refused.keys() - {"title", "description"}
        if kinds == {"not"} and isinstance(refused["not"], dict | bool):
            return _and(rest, refused["not"])
        if kinds == {"type"}:
            return self._of_other_types(node, rest, refused["type"])
        if kinds == {"required"} or kinds == {"required", "type"}:
            return _and(rest, {"anyOf": [_object({name: False}) for name in refused["required"]]})
        if kinds <= {"const", "enum", "type"}:
            values = self._values(refused)
            other = self._others(values, rest)
            return node if other is None else other and _and(rest, other)
        return node

    def _of_other_types(self, node: dict[str, Any], rest: dict[str, Any], refused: Any) -> Schema:
        types = [refused] if isinstance(refused, str) else refused
        if "integer" in types and "number" not in types:
            return node
        given = rest.get("type", list(_TYPES))
        left = [kind for kind in ([given] if isinstance(given, str) else given) if kind not in types]
        return {**rest, "type": left} if left else False

    def _resolved(self, schema: Schema) -> Schema:
        """What a reference within the schema leads to; the schema itself where there is none."""
        for _ in range(8):
            if not isinstance(schema, dict) or not isinstance(reference := schema.get("$ref"), str):
                return schema
            if not reference.startswith("#/"):
                return schema
            found: Any = self._root
            for part in reference[2:].split("/"):
                name = part.replace("~1", "/").replace("~0", "~")
                if not isinstance(found, Mapping) or name not in found:
                    return schema
                found = found[name]
            schema = found
        return schema

    def _values(self, schema: Schema) -> list[Any] | None:
        """All that a schema allows, where it says so value by value."""
        schema = self._resolved(schema)
        if not isinstance(schema, dict):
            return None
        if "const" in schema:
            return [schema["const"]]
        if isinstance(schema.get("enum"), list):
            return list(schema["enum"])
        if schema.get("type") in ("boolean", "null"):
            return [True, False] if schema["type"] == "boolean" else [None]
        branches = schema.get("anyOf") or schema.get("oneOf")
        if isinstance(branches, list):
            found = [self._values(branch) for branch in branches]
            return None if None in found else [value for values in found for value in values or ()]
        return None


def _references(node: dict[str, Any]) -> None:
    """References of later drafts that only lead elsewhere where schemas extend others."""
    for key, plain in (("$recursiveRef", "$ref"), ("$dynamicRef", "$ref"), ("$dynamicAnchor", "$anchor")):
        if key in node and plain not in node:
            node[plain] = node.pop(key)
    if node.get("$recursiveAnchor") is not None:
        del node["$recursiveAnchor"]


def _unevaluated(node: dict[str, Any]) -> None:
    """The same as the older keywords where one schema says all."""
    if not node.keys().isdisjoint(("allOf", "anyOf", "oneOf", "$ref", "if", "not", "dependentSchemas", "contains")):
        return
    for key, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if key in node:
            value = node.pop(key)
            node.setdefault(plain, value)


def _dependencies(node: dict[str, Any]) -> None:
    for name, needed in (node.pop("dependencies", None) or {}).items():
        kind = "dependentRequired" if isinstance(needed, list) else "dependentSchemas"
        node.setdefault(kind, {})[name] = needed
    for kind in ("dependentRequired", "dependentSchemas"):
        for name, needed in (node.pop(kind, None) or {}).items():
            present = {"required": [name, *needed]} if isinstance(needed, list) else _both({"required": [name]}, needed)
            if name not in node.get("required", ()):
                present = {"anyOf": [{"properties": {name: False}}, present]}
            node["allOf"] = [*node.get("allOf", ()), present]


def _numbers_of_properties(node: dict[str, Any]) -> None:
    """Of named properties: which must be there, and which must not."""
    names = list(node.get("properties") or ())
    free = [name for name in names if name not in node.get("required", ())]
    if not free:
        return
    least, most = node.get("minProperties", 0) - (len(names) - len(free)), node.get("maxProperties", len(names))
    is_closed = node.get("additionalProperties") is False and "patternProperties" not in node
    most -= len(names) - len(free)
    branches: list[Schema] = [{}]
    if least > 0:
        branches = [{"required": list(chosen)} for chosen in _few(free, least)]
    if most < len(free) and is_closed:
        left_out = [dict.fromkeys(chosen, False) for chosen in _few(free, len(free) - most)] if most >= 0 else []
        branches = [
            {**branch, "properties": absent}
            for branch in branches
            for absent in left_out
            if absent.keys().isdisjoint(branch.get("required", ()))
        ]
    elif "maxProperties" in node and not is_closed:
        return
    if branches and branches != [{}] and len(branches) <= MAX_BRANCHES:
        node["allOf"] = [*node.get("allOf", ()), {"anyOf": branches}]
    elif branches != [{}]:
        return
    node.pop("minProperties", None)
    node.pop("maxProperties", None)


def _few(names: Sequence[str], count: int) -> list[tuple[str, ...]]:
    return list(itertools.islice(itertools.combinations(names, count), MAX_BRANCHES + 1))


def _contains(node: dict[str, Any]) -> None:
    """The first items are those that must be there."""
    if "contains" not in node:
        return
    count = node.get("minContains", 1)
    if count == 0 and "maxContains" not in node:
        node.pop("contains")
        node.pop("minContains")
    if "contains" not in node or "maxContains" in node or "prefixItems" in node or count > MAX_BRANCHES:
        return
    wanted, items = node.pop("contains"), node.get("items", True)
    node.pop("minContains", None)
    node["prefixItems"] = [wanted if items is True else {"allOf": [wanted, items]}] * count
    node["minItems"] = max(node.get("minItems", 0), count)


def _both(first: Schema, second: Schema) -> Schema:
    if first in (True, {}):
        return second
    return first if second in (True, {}) else {"allOf": [first, second]}


def _and(node: dict[str, Any], other: Schema) -> dict[str, Any]:
    """The same node, so that references to places in it still fit."""
    return {**node, "allOf": [*node.get("allOf", ()), other]}


def _object(properties: Mapping[str, Schema], required: Collection[str] = ()) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": sorted(required)}


def _spelled(value: Any) -> str:
    """Equal for what JSON calls equal; `true` is not 1."""
    return json.dumps(value, sort_keys=True)


def _other_than(values: Sequence[Any], schema: Schema) -> Schema | None:
    """Strings but these, as a pattern; None where more than strings are allowed."""
    words = [value for value in values if isinstance(value, str)]
    is_string = isinstance(schema, dict) and schema.get("type") == "string" and "pattern" not in schema
    if not is_string or sum(map(len, words)) > MAX_WORDS_LEN:
        return None
    return {"type": "string", "pattern": f"^{_other_words(words)}$"} if words else {"type": "string"}


def _other_words(words: Sequence[str]) -> str:
    """An expression of every text but these: by first letters, of which one goes on as no word does."""
    if not words:
        return r"[\s\S]*"
    firsts = sorted({word[0] for word in words if word})
    branches = [] if "" in words else [""]
    for first in firsts:
        branches.append(re.escape(first) + _other_words([word[1:] for word in words if word[:1] == first]))
    branches.append(rf"[^{''.join(map(re.escape, firsts))}][\s\S]*" if firsts else r"[\s\S]+")
    return f"({'|'.join(branches)})"
