"""What every wire schema shares: strict types, and errors that name the field; of values, only integers are echoed."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, ValidationError

from tgi_local.errors import BodyShapeError, RequestError

U32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
U64 = Annotated[int, Field(ge=0, le=2**64 - 1)]
I32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]

# An upper bound of tokens; -1 is none, as LM Studio and llama.cpp have it.
TokenLimit = Annotated[U32 | None, BeforeValidator(lambda given: None if given == -1 else given)]

MAX_FIELD_PATH = 80

# Pydantic's errors in the words that TGI's clients know.
_EXPECTED = {
    "string_type": "a string",
    "bool_type": "a boolean",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "f32",
    "list_type": "a sequence",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
}
# The bound that a number breaks, in pydantic's context of the error.
_BOUNDS = {"greater_than_equal": ("ge", "at least"), "less_than_equal": ("le", "at most")}
_KINDS = {bool: "boolean", int: "integer", float: "floating point", str: "string", list: "sequence", dict: "map"}

M = TypeVar("M", bound="WireModel")


def _stop_at_first_error(schema: Any) -> None:
    """Only one error is ever told; a body of half a million wrong items would make as many, for seconds."""
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "dict"):
            schema["fail_fast"] = True
        for part in schema.values():
            _stop_at_first_error(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _stop_at_first_error(part)


class WireModel(BaseModel):
    """A request body. Strict: no strings for numbers, no booleans for integers; unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True, hide_input_in_errors=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        schema = handler(source)
        _stop_at_first_error(schema)
        return schema


def parse(model: type[M], body: Any) -> M:
    """Raises BodyShapeError, which names the first field that is wrong."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise shape_error(error) from None


def shape_error(error: ValidationError) -> BodyShapeError:
    problem = error.errors(include_url=False)[0]
    path = param = _dotted([part for part in problem["loc"] if not _is_union_branch(part)])
    if problem["type"] == "missing":
        *parents, name = path.rsplit(".", 1)
        detail = f"missing field `{name}`"
        path = parents[0] if parents else ""
    elif problem["type"] in _EXPECTED:
        detail = f"invalid type: {_kind(problem['input'])}, expected {_EXPECTED[problem['type']]}"
    elif problem["type"] in _BOUNDS and isinstance(problem["input"], int):
        bound, words = _BOUNDS[problem["type"]]
        detail = f"invalid value: integer `{problem['input']}`, expected {words} {problem['ctx'][bound]}"
    elif problem["type"] == "too_short":
        detail = f"invalid length {problem['ctx']['actual_length']}, expected at least {problem['ctx']['min_length']}"
    elif problem["type"] == "value_error":
        detail = problem["msg"].removeprefix("Value error, ")
    else:
        detail = problem["msg"][0].lower() + problem["msg"][1:]
    prefix = f"{path}: " if path else ""
    return BodyShapeError(f"{prefix}{detail} at line 1 column 1", param=param or None)


@contextmanager
def renaming(names: Mapping[str, str]) -> Iterator[None]:
    """Errors that point at a native field point at the client's own, which `names` has for it.

    Their words stay TGI's: clients find out by them that a prompt was too long.
    """
    try:
        yield
    except RequestError as error:
        error.param = names.get(error.param, error.param) if error.param else None
        raise


def new_id(prefix: str, separator: str = "-") -> str:
    return f"{prefix}{separator}{secrets.token_hex(12)}"


def _kind(value: Any) -> str:
    """What JSON calls a value; the value itself is never echoed."""
    return "null" if value is None else _KINDS.get(type(value), "value")


def _dotted(location: list[int | str]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path[:MAX_FIELD_PATH]


def _is_union_branch(part: int | str) -> bool:
    """Pydantic names the branch of a union in the path (`str`, `list[str]`, `function-after[...]`); clients know none."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part)
