"""The OpenAPI document: nothing of TGI's is missing, it is valid, and it tells the truth about routes and answers."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from tests.in_process import serving
from tests.serving import clean_environment
from tgi_local.api.openapi import document
from tgi_local.api.operations import OPERATIONS
from tgi_local.api.server import ROUTERS

ROOT = Path(__file__).parents[2]
TGI = json.loads((Path(__file__).parents[1] / "data" / "tgi-openapi.json").read_text())
OURS = document()
MAX_DEPTH = 12

Document = dict[str, Any]

# Where TGI's document is wrong about TGI itself, ours tells the truth.
MOVED = {
    "get /v1/models 200": ("data", "[]"),  # a list of models, not one
    "post /invocations 200": ("[]",),  # a native answer is a list here
    "component SagemakerResponse": ("[]",),
}
DIFFERENT = {  # OpenAI's legacy shape, which is an object; TGI has null there, always
    "post /v1/completions 200.choices.[].logprobs.[]",
    "post /invocations 200.choices.[].logprobs.[]",
}


def resolved(document: Document, schema: Document) -> Document:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def parts(document: Document, schema: Document) -> Iterator[Document]:
    """The schema and every alternative or part of it."""
    schema = resolved(document, schema)
    yield schema
    for key in ("allOf", "anyOf", "oneOf"):
        for part in schema.get(key, []):
            yield from parts(document, part)


def properties(document: Document, schemas: list[Document]) -> dict[str, list[Document]]:
    """Every property that some alternative has, with its schemas; `[]` for the items of a list."""
    found: dict[str, list[Document]] = {}
    for schema in schemas:
        for part in parts(document, schema):
            for name, value in part.get("properties", {}).items():
                found.setdefault(name, []).append(value)
            if "items" in part:
                found.setdefault("[]", []).append(part["items"])
    return found


def walk(theirs: list[Document], ours: list[Document], path: str, depth: int = 0) -> Iterator[tuple[str, bool]]:
    """(path of a property of TGI's, whether we have it)."""
    if depth > MAX_DEPTH:
        return
    mine = properties(OURS, ours)
    for name, schemas in properties(TGI, theirs).items():
        yield f"{path}.{name}", name in mine
        if name in mine:
            yield from walk(schemas, mine[name], f"{path}.{name}", depth + 1)


def moved(place: str, schemas: list[Document]) -> list[Document]:
    """With what stands deeper in our document than in TGI's."""
    for name in MOVED.get(place, ()):
        schemas = [*schemas, *properties(OURS, schemas)[name]]
    return schemas


def body_schemas(content: Document) -> list[Document]:
    return [media["schema"] for media in content.get("content", {}).values()]


def items() -> Iterator[tuple[str, bool]]:
    """Everything that TGI's document has, by name, and whether ours has it."""
    for path, methods in TGI["paths"].items():
        yield path, path in OURS["paths"]
        for method, theirs in methods.items():
            ours = OURS["paths"].get(path, {}).get(method)
            yield f"{method} {path}", ours is not None
            if ours is None:
                continue
            yield f"{method} {path} operationId", ours["operationId"] == theirs["operationId"]
            if "requestBody" in theirs:
                wanted, given = body_schemas(theirs["requestBody"]), body_schemas(ours.get("requestBody", {}))
                yield from walk(wanted, given, f"{method} {path} body")
            for status, response in theirs["responses"].items():
                answer = ours["responses"].get(status)
                yield f"{method} {path} {status}", answer is not None
                if answer is not None:
                    for media in response.get("content", {}):
                        yield f"{method} {path} {status} {media}", media in answer.get("content", {})
                    mine = moved(f"{method} {path} {status}", body_schemas(answer))
                    yield from walk(body_schemas(response), mine, f"{method} {path} {status}")
    for name, schema in TGI["components"]["schemas"].items():
        mine = OURS["components"]["schemas"].get(name)
        yield f"component {name}", mine is not None
        if mine is not None:
            yield from walk([schema], moved(f"component {name}", [mine]), f"component {name}", MAX_DEPTH)


def test_nothing_of_tgi_is_missing() -> None:
    found = list(items())
    missing = {name for name, is_here in found if not is_here}
    assert missing == DIFFERENT, f"of {len(found)}:\n" + "\n".join(sorted(missing ^ DIFFERENT))
    assert len(found) > 1000


def nodes(value: Any) -> Iterator[Document]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from nodes(item)


def test_it_is_openapi_3_0() -> None:
    assert OURS["openapi"] == "3.0.3"
    schemas = OURS["components"]["schemas"]
    names = [node["$ref"].rpartition("/")[2] for node in nodes(OURS) if "$ref" in node]
    assert set(names) <= set(schemas)
    assert all(len(node) == 1 for node in nodes(OURS) if "$ref" in node), "what stands beside a reference is ignored"
    for node in nodes(schemas):
        assert node.get("type") != "null" and not {"const", "$defs", "prefixItems"} & set(node)
        assert all(isinstance(node.get(name, True), bool) for name in ("exclusiveMinimum", "exclusiveMaximum"))
        assert not isinstance(node.get("type"), list)
        assert node.get("type") != "array" or "items" in node


def test_every_path_is_used_once_and_declares_its_parameters() -> None:
    operations = [(path, operation) for path, methods in OURS["paths"].items() for operation in methods.values()]
    assert len({operation["operationId"] for _, operation in operations}) == len(operations) == len(OPERATIONS)
    for path, operation in operations:
        assert re.findall(r"{(\w+)}", path) == [parameter["name"] for parameter in operation.get("parameters", [])]


def test_it_lists_every_route_and_no_other() -> None:
    served = {("get", "/")} | {
        (method.lower(), route.path.replace(":path}", "}"))
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods - {"HEAD"}
    }
    assert {(operation.method, operation.path) for operation in OPERATIONS} == served


MESSAGES = [{"role": "user", "content": "count"}]
DETAILS = {"details": True, "top_n_tokens": 2, "decoder_input_details": True, "max_new_tokens": 3}
CALLS: list[tuple[str, Document | None]] = [
    ("/", {"inputs": "count", "parameters": DETAILS | {"best_of": 2, "do_sample": True}}),
    ("/generate", {"inputs": "count", "parameters": DETAILS}),
    ("/generate", {"inputs": "count", "parameters": {"max_new_tokens": 1}}),
    ("/tokenize", {"inputs": "count"}),
    ("/chat_tokenize", {"messages": MESSAGES}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3, "logprobs": True, "top_logprobs": 2}),
    ("/v1/completions", {"prompt": ["count", "ten"], "max_tokens": 3, "logprobs": 2}),
    ("/v1/models", None),
    ("/v1/models/{model_id}", None),
    ("/info", None),
    ("/vertex", {"instances": [{"inputs": "count", "parameters": {"max_new_tokens": 2}}]}),
    ("/v2", None),
    ("/v2/health/ready", None),
    ("/v2/models/{model}/versions/{version}", None),
    (
        "/v2/models/{model}/versions/{version}/infer",
        {"id": "1", "inputs": [{"name": "i", "data": [104, 105]}], "outputs": [{"name": "o"}]},
    ),
]


@pytest.mark.parametrize(("path", "body"), CALLS)
async def test_answers_are_what_the_document_says(path: str, body: Document | None, tiny_folder: Path) -> None:
    """Key by key: an answer with a key that is not documented fails, too."""
    method = "get" if body is None else "post"
    operation = next(operation for operation in OPERATIONS if (operation.method, operation.path) == (method, path))
    assert operation.answer is not None and not isinstance(operation.answer, str)
    async with serving(tiny_folder) as server:
        url = path.format(model_id="fake", model="any", version="1") if "{" in path else path
        answer = await (server.client.get(url) if body is None else server.client.post(url, json=body))
    assert answer.status_code == 200, answer.text
    parsed = TypeAdapter(operation.answer).validate_python(answer.json())
    assert parsed.model_dump(exclude_unset=True, by_alias=True) == answer.json()


STREAMS: list[tuple[str, Document]] = [
    ("/generate_stream", {"inputs": "count", "parameters": {"max_new_tokens": 3, "details": True, "top_n_tokens": 1}}),
    (
        "/v1/chat/completions",
        {
            "messages": MESSAGES,
            "max_tokens": 3,
            "stream": True,
            "logprobs": True,
            "stream_options": {"include_usage": True},
        },
    ),
    ("/v1/completions", {"prompt": "count", "max_tokens": 3, "stream": True, "logprobs": 1}),
]


@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_events_are_what_the_document_says(path: str, body: Document, tiny_folder: Path) -> None:
    operation = next(operation for operation in OPERATIONS if operation.path == path)
    assert operation.event is not None
    async with serving(tiny_folder) as server:
        text = (await server.client.post(path, json=body)).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert len(events) >= 3
    for event in events:
        parsed = operation.event.model_validate(event)
        assert parsed.model_dump(exclude_unset=True, by_alias=True) == event


EXAMPLES = [operation for operation in OPERATIONS if operation.example is not None]


@pytest.mark.parametrize("operation", EXAMPLES, ids=[operation.id for operation in EXAMPLES])
async def test_examples_work(operation: Any, tiny_folder: Path) -> None:
    path = operation.path.format(model="any", version="1") if "{" in operation.path else operation.path
    async with serving(tiny_folder) as server:
        answer = await server.client.post(path, json=operation.example)
    assert answer.status_code == 200, answer.text


async def test_the_server_serves_it(tiny_folder: Path) -> None:
    async with serving(tiny_folder) as server:
        answer = await server.client.get("/api-doc/openapi.json")
    assert answer.headers["content-type"] == "application/json" and answer.json() == OURS


def test_print_schema_needs_no_model_and_no_torch() -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "app.py", "print-schema"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0 and json.loads(result.stdout) == OURS
    heavy = re.findall(r"\| +(torch|transformers|gradio|fastapi|uvicorn)$", result.stderr, flags=re.MULTILINE)
    assert not heavy


GETS = [operation.path for operation in OPERATIONS if operation.method == "get" and "{" not in operation.path]


@pytest.mark.parametrize("path", GETS)
async def test_head_follows_get(path: str, tiny_folder: Path) -> None:
    async with serving(tiny_folder) as server:
        got, head = await server.client.get(path), await server.client.head(path)
    assert got.status_code == head.status_code < 400


# The pages.


async def docs_client(tiny_folder: Path, path: str, **kwargs: Any) -> httpx.Response:
    async with serving(tiny_folder) as server:
        return await server.client.get(path, **kwargs)


async def test_docs_goes_on_to_its_pages(tiny_folder: Path) -> None:
    answer = await docs_client(tiny_folder, "/docs")
    assert (answer.status_code, answer.headers["location"]) == (303, "/docs/")


async def test_the_pages_fetch_nothing_from_elsewhere(tiny_folder: Path) -> None:
    async with serving(tiny_folder) as server:
        page = await server.client.get("/docs/")
        assert page.headers["content-type"].startswith("text/html")
        names = re.findall(r'(?:href|src)="([^"]+)"', page.text)
        assert len(names) == 3 and "//" not in page.text.replace("<!", "")
        for name in names:
            asset = await server.client.get(f"/docs/{name}")
            assert asset.status_code == 200 and len(asset.content) > 500, name


@pytest.mark.parametrize("name", ["index.html", "../app.py", "%2e%2e%2fapp.py", "swagger-ui-bundle.js.map", "x/y"])
async def test_no_other_file_is_served(name: str, tiny_folder: Path) -> None:
    assert (await docs_client(tiny_folder, f"/docs/{name}")).status_code == 404
