"""The OpenAPI 3.0.3 document: our wire schemas and the table of routes, under the names that TGI's clients know."""

import re
from functools import cache
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tgi_local import __version__
from tgi_local.api.operations import CLOUD, OPERATIONS, SERVER, Operation
from tgi_local.protocol import schema_openai as v1
from tgi_local.protocol import schema_tgi as native

Schema = dict[str, Any]

REF: Final = "#/components/schemas/{model}"
_JSON: Final = "application/json"

# TGI's component names that no route needs, but generated clients have.
_NAMED: Final = (native.GrammarType, v1.Completion, v1.MessageBody, v1.MessageContent, v1.Prompt, v1.ToolChoice)
_ALSO: Final = (native.ErrorResponse, native.HealthError, v1.OpenAIError, v1.TextFormat)

_DESCRIPTIONS: Final = {
    200: "The answer",
    303: "Elsewhere",
    400: "The request is not valid",
    401: "The API key is missing or wrong",
    403: "Sent for another site's page",
    404: "Not here",
    408: "The body stopped coming",
    413: "The body is too large",
    415: "The body is not JSON",
    421: "Not a host name of this server",
    422: "Input validation error",
    424: "Generation error",
    429: "Model is overloaded",
    500: "Incomplete generation",
    503: "Not ready",
}
_GATE: Final = (401, 403, 421)
_GATE_BODY: Final = (400, 408, 413, 415)


@cache
def document_text() -> str:
    return orjson.dumps(document(), option=orjson.OPT_INDENT_2).decode()


def document() -> Schema:
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "Text Generation Inference",
            "description": "tgi-local: TGI's and OpenAI's HTTP APIs for one local model",
            "license": {"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "version": __version__,
        },
        "paths": paths,
        "components": {
            "schemas": _components(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        # A key is needed only where the server has one.
        "security": [{}, {"bearer": []}, {"key": []}],
        "tags": [{"name": group} for group in dict.fromkeys(operation.group for operation in OPERATIONS)],
    }


def _operation(operation: Operation) -> Schema:
    found: Schema = {"tags": [operation.group], "operationId": operation.id, "summary": operation.summary}
    if operation.is_public:
        found["security"] = []
    names = re.findall(r"{(\w+)}", operation.path)
    if names:
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if operation.body is not None:
        content: Schema = {"schema": _ref(operation.body)}
        if operation.example is not None:
            content["example"] = operation.example
        found["requestBody"] = {"required": True, "content": {_JSON: content}}
    found["responses"] = {
        str(status): {"description": _DESCRIPTIONS[status], **_content(operation, status)}
        for status in _statuses(operation)
    }
    return found


def _statuses(operation: Operation) -> list[int]:
    gate = () if operation.is_public else _GATE
    success = () if 303 in operation.statuses else (200,)
    return sorted({*success, *gate, *(_GATE_BODY if operation.body else ()), *operation.statuses})


def _content(operation: Operation, status: int) -> Schema:
    """The bodies a status can have, by media type."""
    content: Schema = {}
    if status == 404 and operation.group in (CLOUD, SERVER):
        return {}
    if status == 200:
        if isinstance(operation.answer, str):
            content[operation.answer] = {"schema": {"type": "object" if operation.answer == _JSON else "string"}}
        elif operation.answer is not None:
            content[_JSON] = {"schema": _ref(operation.answer)}
        if operation.event is not None:
            event = operation.event
            content["text/event-stream"] = {"schema": {"type": "object"} if isinstance(event, str) else _ref(event)}
    elif operation.error is not None:
        content[_JSON] = {"schema": _ref(operation.error)}
    elif status in _GATE_BODY or (status == 422 and operation.body is not None):
        content["text/plain"] = {"schema": {"type": "string"}}
    if status >= 402 and operation.error is None and status not in _GATE_BODY:
        content[_JSON] = {"schema": _ref(native.HealthError if status == 503 else native.ErrorResponse)}
    if operation.answer is None and operation.event is not None and status in (422, 424, 429, 500):
        content["text/event-stream"] = {"schema": _ref(native.ErrorResponse)}  # an event inside a 200 stream
    return {"content": content} if content else {}


def _ref(model: type[BaseModel]) -> Schema:
    return {"$ref": REF.format(model=model.__name__)}


def _components() -> dict[str, Schema]:
    models: dict[type[BaseModel], None] = dict.fromkeys((*_NAMED, *_ALSO))
    for operation in OPERATIONS:
        for model in (operation.body, operation.answer, operation.event, operation.error):
            if model is not None and not isinstance(model, str):
                models[model] = None
    _, found = models_json_schema([(model, "validation") for model in models], ref_template=REF)
    schemas: dict[str, Schema] = {name: _to_openapi_3_0(schema) for name, schema in sorted(found["$defs"].items())}
    for (component, name), schema in _refinements().items():
        schemas[component]["properties"][name] = schema
    return schemas


def _refinements() -> dict[tuple[str, str], Schema]:
    """What is parsed by hand has a closer schema than its type says; and what TGI's clients send and nobody reads."""
    ignored = {"type": "string", "nullable": True, "description": "Accepted and not used."}

    def nullable(*models: type[BaseModel]) -> Schema:
        return {"anyOf": [_ref(model) for model in models], "nullable": True}

    return {
        ("GenerateParameters", "grammar"): nullable(native.GrammarType),
        ("ChatRequest", "response_format"): nullable(native.GrammarType, v1.TextFormat),
        ("ChatRequest", "tool_choice"): nullable(v1.ToolChoice),
        ("ChatRequest", "tool_prompt"): ignored,
        ("Message", "content"): nullable(v1.MessageContent),
        ("CompletionRequest", "prompt"): _ref(v1.Prompt),
        ("FunctionCall", "description"): ignored,
    }


def _to_openapi_3_0(schema: Any) -> Any:
    """OpenAPI 3.0 has no null type, no const, and booleans for exclusive bounds."""
    if isinstance(schema, list):
        return [_to_openapi_3_0(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # A property may be called `title` or `default`, a keyword is never followed by an object of these.
    found = {
        key: _properties(value) if key == "properties" else _to_openapi_3_0(value)
        for key, value in schema.items()
        if key not in ("title", "const") and not (key == "default" and (value is None or isinstance(value, dict)))
    }
    if "const" in schema:
        found["enum"] = [schema["const"]]
    for bound in ("Minimum", "Maximum"):
        exclusive = f"exclusive{bound}"
        if exclusive in found:
            found[bound.lower()], found[exclusive] = found[exclusive], True
    return _nullable(found)


def _properties(properties: dict[str, Any]) -> Schema:
    return {name: _to_openapi_3_0(schema) for name, schema in properties.items()}


def _nullable(schema: Schema) -> Schema:
    """`anyOf: [x, null]` as `nullable`."""
    if schema.get("type") == "null":
        return {"nullable": True, "enum": [None]}
    choices = schema.get("anyOf", [])
    some = [choice for choice in choices if choice != {"nullable": True, "enum": [None]}]
    if len(some) == len(choices):
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    if len(some) > 1:
        return {**rest, "anyOf": some, "nullable": True}
    # Beside a reference other keywords count for nothing.
    inner = {"allOf": some} if "$ref" in some[0] else some[0]
    return {**inner, **rest, "nullable": True}
