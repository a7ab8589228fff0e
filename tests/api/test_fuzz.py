"""The OpenAPI document against the server: whatever a client makes of it, the answer is one that it declares."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.serving import Server, running
from tgi_local.api.openapi import document
from tgi_local.api.operations import CLOUD, OPENAI, OPERATIONS, Operation
from tgi_local.protocol.schema_openai import OpenAIErrorDetail
from tgi_local.protocol.schema_tgi import ErrorResponse

SEED = 20_251_121
NUM_FEW, NUM_MANY = 12, 150
MAX_ERROR_BYTES = 2048
# TGI answers 500 for any instance that is refused or fails; the document says so.
MAY_FAIL = {operation.id for operation in OPERATIONS if operation.group == CLOUD and 500 in operation.statuses}
# The same handlers under other names.
ALIASES = {"compat_generate_v1", "compat_generate_v1_slash", "ping", "health_v1", "get_model_info_v1"}
DIFFERENT = [operation for operation in OPERATIONS if operation.id not in ALIASES]


@pytest.fixture(scope="module")
def server(tiny_folder: Path) -> Iterator[Server]:
    """Answers are short: every example may be generated to its end."""
    options = ("--model-id", str(tiny_folder), "--dtype", "float32", "--max-best-of", "4", "--disable-ui")
    with running(*options, "--max-total-tokens", "64", "--max-input-tokens", "48") as started:
        yield started


@pytest.fixture(scope="module")
def schema() -> Any:
    import schemathesis  # here, not above: it takes a second

    return schemathesis.openapi.from_dict(document())


def check(case: Any, operation: Operation, server: Server) -> httpx.Response:
    """Send one request and hold the answer against the document."""
    from schemathesis.specs.openapi import checks

    request = case.as_transport_kwargs(base_url=server.url)
    answer = server.client.request(
        request["method"],
        request["url"],
        json=request.get("json"),
        content=request.get("data"),
        headers=dict(request["headers"]),
        params=request.get("params"),
    )
    assert answer.status_code < 500 or operation.id in MAY_FAIL, answer.text
    assert answer.status_code == 200 or len(answer.content) <= MAX_ERROR_BYTES
    conformance = [checks.status_code_conformance, checks.content_type_conformance]
    if answer.headers.get("content-type") == "text/event-stream":
        check_events(answer.text, operation)
    else:
        conformance.append(checks.response_schema_conformance)
    case.validate_response(answer, checks=conformance)
    return answer


def check_events(text: str, operation: Operation) -> None:
    """Every event is of the declared kind, or the stream's error in the form of its dialect."""
    assert operation.event is not None and text.endswith("\n\n")
    events = [event for event in text.removesuffix("\n\n").split("\n\n") if event != ":"]
    if operation.group == OPENAI and not isinstance(operation.event, str):
        assert events.pop() == "data: [DONE]"
    elif operation.group == CLOUD and events[-1] == "data: [DONE]":
        events.pop()
    for event in events:
        *kind, data = event.split("\n")
        body = json.loads(data.removeprefix("data: "))
        if isinstance(operation.event, str):
            assert kind == [f"event: {body['type']}"]
        else:
            assert not kind
            model: type[BaseModel] = operation.event
            if isinstance(body.get("error"), dict):
                model, body = OpenAIErrorDetail, body["error"]
            elif "error" in body:
                model = ErrorResponse
            model.model_validate(body)


def fuzz(operation: Operation, schema: Any, server: Server, num_examples: int) -> set[int]:
    """The statuses that were seen."""
    from schemathesis import GenerationMode

    described = schema[operation.path][operation.method]
    seen = set()

    @seed(SEED)
    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(case=st.one_of(*(described.as_strategy(generation_mode=mode) for mode in modes(operation, GenerationMode))))
    def run(case: Any) -> None:
        seen.add(check(case, operation, server).status_code)

    run()
    return seen


def modes(operation: Operation, mode: Any) -> list[Any]:
    """What the document allows, and for bodies also what it does not."""
    return [mode.POSITIVE] if operation.body is None else [mode.POSITIVE, mode.NEGATIVE]


@pytest.mark.parametrize("operation", DIFFERENT, ids=[operation.id for operation in DIFFERENT])
def test_every_answer_is_a_declared_one(operation: Operation, schema: Any, server: Server) -> None:
    num_examples = NUM_FEW if operation.body is not None else 4
    with server.undisturbed():
        fuzz(operation, schema, server, num_examples)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("operation", OPERATIONS, ids=[operation.id for operation in OPERATIONS])
def test_every_answer_of_many_is_a_declared_one(operation: Operation, schema: Any, server: Server) -> None:
    with server.undisturbed():
        seen = fuzz(operation, schema, server, NUM_MANY if operation.body is not None else 50)
    if operation.body is not None:
        assert len(seen) > 1, "all examples were refused, or none"


def test_an_undeclared_answer_is_found(schema: Any, server: Server) -> None:
    """The negative control: a path that is there for one model only, under a document that declares no 404."""
    import schemathesis

    silent = document()
    del silent["paths"]["/v1/models/{model_id}"]["get"]["responses"]["404"]
    operation = next(operation for operation in OPERATIONS if operation.id == "openai_retrieve_model")
    with pytest.raises(BaseException, match=r"[Uu]ndocumented"):
        fuzz(operation, schemathesis.openapi.from_dict(silent), server, 4)
