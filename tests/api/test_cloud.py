"""SageMaker, Vertex AI and KServe: the shapes they send, what they get back, and what fails how."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes import expected_output
from tests.in_process import INFO, VOCAB_SIZE, InProcess, serving
from tgi_local.api.context import ApiContext
from tgi_local.api.security import SecurityGate, policy_for
from tgi_local.api.server import create_app
from tgi_local.errors import StartupError
from tgi_local.service import Service
from tgi_local.settings import load_settings

MESSAGES = [{"role": "user", "content": "hi"}]
MODEL = "/v2/models/any/versions/1"


async def post(server: InProcess, path: str, body: Any) -> httpx.Response:
    return await server.client.post(path, json=body)


def greedy(server: InProcess, prompt: str, num_tokens: int) -> str:
    ids = expected_output(server.tokenizer.encode(prompt), num_tokens, VOCAB_SIZE)
    return server.tokenizer.decode(ids, skip_special_tokens=True)


# Vertex AI.


async def test_vertex_answers_one_text_per_instance(tiny_folder: Path) -> None:
    instances = [
        {"inputs": "one", "parameters": {"max_new_tokens": 4, "seed": 1}},
        {"messages": MESSAGES, "max_tokens": 3, "temperature": 0},
        {"inputs": "two", "parameters": {"max_new_tokens": 2}},
    ]
    async with serving(tiny_folder) as server:
        answer = await post(server, "/vertex", {"instances": instances})
        want = greedy(server, "one", 4)
        chat = await post(server, "/v1/chat/completions", instances[1])
    assert answer.status_code == 200 and list(answer.json()) == ["predictions"]
    predictions = answer.json()["predictions"]
    assert predictions[0] == want, "the fake model draws what it would choose"
    assert predictions[1] == chat.json()["choices"][0]["message"]["content"]
    assert len(predictions) == 3
    assert not [name for name in answer.headers if name.startswith("x-")]


async def test_vertex_ignores_the_other_native_parameters(tiny_folder: Path) -> None:
    """As TGI does: sampling is always on, whatever else is asked for."""
    parameters = {"max_new_tokens": 2, "top_p": 7, "details": True, "best_of": 9}
    async with serving(tiny_folder) as server:
        answer = await post(server, "/vertex", {"instances": [{"inputs": "x", "parameters": parameters}]})
        sampled = server.runner.num_steps
    assert answer.status_code == 200 and sampled


async def test_vertex_does_not_stream_or_parse_tools(tiny_folder: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    instance = {"messages": MESSAGES, "max_tokens": 2, "stream": True, "tools": [tool], "tool_choice": "none"}
    async with serving(tiny_folder) as server:
        answer = await post(server, "/vertex", {"instances": [instance]})
    assert isinstance(answer.json()["predictions"][0], str)


FAILED = {"error": "Incomplete generation", "error_type": "Incomplete generation"}
REFUSED: list[tuple[Any, int, dict[str, str] | str]] = [
    ({"instances": []}, 422, {"error": "Input validation error", "error_type": "Input validation error"}),
    ({"instances": [{"inputs": "x", "parameters": {"max_new_tokens": 0}}]}, 500, FAILED),
    ({"instances": [{"inputs": "ok", "parameters": {"max_new_tokens": 1}}, {"inputs": ""}]}, 500, FAILED),
    ({"instances": [{"inputs": "x", "parameters": {"max_new_tokens": 1}}] * 17}, 500, FAILED),  # of 16 slots
    ({"instances": [{"messages": MESSAGES, "presence_penalty": 9.0}]}, 500, FAILED),
    ({}, 422, "missing field `instances`"),
    ({"instances": [{}]}, 422, "instances[0]: missing field `messages`"),
    ({"instances": ["x"]}, 422, "instances[0]: "),
    ({"instances": [{"inputs": 5}]}, 422, "instances[0].inputs: "),
    ({"instances": {"inputs": "x"}}, 422, "instances: "),
]


@pytest.mark.parametrize(("body", "status", "want"), REFUSED, ids=lambda value: str(value)[:60])
async def test_vertex_refuses(body: Any, status: int, want: dict[str, str] | str, tiny_folder: Path) -> None:
    async with serving(tiny_folder) as server:
        answer = await post(server, "/vertex", body)
        assert server.service._slots.num_taken == 0
    assert answer.status_code == status
    if isinstance(want, dict):
        assert answer.json() == want
    else:
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.text.startswith(f"Failed to deserialize the JSON body into the target type: {want}"), answer.text


async def test_vertex_keeps_the_status_of_template_errors(tiny_folder: Path) -> None:
    instance = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}
    async with serving(tiny_folder) as server:
        answer = await post(server, "/vertex", {"instances": [instance]})
    assert answer.status_code == 422 and answer.json()["error_type"] == "validation"


async def test_vertex_before_the_model_is_there() -> None:
    app = create_app(ApiContext(Service(_metrics()), 2, None), aliases={"/v1/endpoints/1:predict": "/vertex"})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path in ("/vertex", "/v1/endpoints/1:predict"):
            answer = await client.post(path, json={"instances": [{"inputs": "x"}]})
            assert answer.status_code == 503 and answer.json()["error_type"] == "healthcheck"


def _metrics() -> Any:
    from tgi_local.metrics import Metrics

    return Metrics()


async def test_vertex_paths_of_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_HTTP_PORT", "7070")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/predict")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/12/health")
    settings = load_settings(["--api-key", "secret", "--port", "9000"])
    assert settings.port == 7070
    app = create_app(ApiContext(Service(_metrics()), 2, None), aliases=settings.route_aliases)
    gate = SecurityGate(app, policy_for(settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://localhost") as client:
        assert (await client.get("/v1/endpoints/12/health")).status_code == 503, "no key, as /health"
        assert (await client.post("/predict", json={})).status_code == 401
        headers = {"authorization": "Bearer secret"}
        assert (await client.post("/predict", json={}, headers=headers)).status_code == 422
        assert (await client.get("/predict", headers=headers)).status_code == 405


async def test_a_path_that_is_served_already_keeps_its_meaning(tiny_folder: Path) -> None:
    """Google's containers may name an OpenAI route as the one to predict with."""
    app = create_app(ApiContext(Service(_metrics()), 2, None), aliases={"/v1/models": "/vertex"})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/v1/models")).json()["error"]["message"]


def test_a_health_route_does_not_open_another(tiny_folder: Path) -> None:
    with pytest.raises(StartupError, match="AIP_HEALTH_ROUTE"):
        create_app(ApiContext(Service(_metrics()), 2, None), aliases={"/metrics": "/health"})
    create_app(ApiContext(Service(_metrics()), 2, None), aliases={"/ping": "/health"})


@pytest.mark.parametrize("route", ["predict", "/", "/{x}", "/a b", "/" + "x" * 600])
def test_a_path_must_be_one(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_PREDICT_ROUTE", route)
    with pytest.raises(Exception, match="AIP_PREDICT_ROUTE"):
        load_settings([])


# KServe.


@pytest.mark.parametrize("data", [list("héllo".encode()), ["héllo"], ["hé", "llo"]])
async def test_kserve_infers(data: Any, tiny_folder: Path) -> None:
    body = {
        "id": "42",
        "parameters": {"max_new_tokens": 5},
        "inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": data}],
        "outputs": [{"name": "answer"}],
    }
    async with serving(tiny_folder) as server:
        answer = await post(server, f"{MODEL}/infer", body)
        text = greedy(server, "héllo", 5).encode()
    output = {"name": "answer", "shape": [1, len(text)], "datatype": "BYTES", "data": list(text)}
    assert answer.status_code == 200 and answer.json() == {"id": "42", "outputs": [output]}


async def test_kserve_needs_an_output_for_every_input(tiny_folder: Path) -> None:
    prompt = {"name": "a", "data": [104]}
    async with serving(tiny_folder) as server:
        answer = await post(server, f"{MODEL}/infer", {"id": "1", "inputs": [prompt], "outputs": []})
    assert answer.status_code == 422
    assert answer.json() == {"error": "Inputs and outputs length mismatch", "error_type": "length mismatch"}


@pytest.mark.parametrize(
    ("data", "status"), [([255], 422), ([256], 422), ([True], 422), ([], 500), ("hi", 422), ([1, "x"], 422)]
)
async def test_kserve_refuses(data: Any, status: int, tiny_folder: Path) -> None:
    body = {"id": "1", "inputs": [{"name": "a", "data": data}], "outputs": [{"name": "b"}]}
    async with serving(tiny_folder) as server:
        answer = await post(server, f"{MODEL}/infer", body)
    assert answer.status_code == status
    if status == 500:
        assert answer.json() == FAILED


async def test_kserve_metadata_and_health(tiny_folder: Path) -> None:
    async with serving(tiny_folder) as server:
        for path in ("/v2/health/live", "/v2/health/ready", f"{MODEL}/ready"):
            assert (await server.client.get(path)).json() == {"live": True}
            assert (await server.client.head(path)).status_code == 200
        answer = (await server.client.get("/v2")).json()
        assert answer["name"] == "text-generation-inference" and answer["extensions"] == ["health", "models", "metrics"]
        answer = (await server.client.get("/v2/models/owner/name/versions/3")).json()
        assert answer == {"name": "owner/name", "version": "3", "extensions": ["infer", "ready"]}
        assert (await server.client.get("/v2/")).status_code == 404
        assert (await server.client.get(f"{MODEL}/infer")).status_code == 405
        server.service.drain()
        answer = await server.client.get("/v2/health/ready")
        assert answer.status_code == 503 and answer.json() == {"live": False}
        assert (await server.client.get("/v2/health/live")).status_code == 200


# SageMaker.

BOTH = {"inputs": "x", "messages": MESSAGES, "prompt": "y", "max_tokens": 2, "parameters": {"max_new_tokens": 2}}
KINDS: list[tuple[dict[str, Any], bool, str]] = [
    (BOTH, False, "native"),
    (BOTH, True, "chat"),
    (BOTH | {"inputs": 5}, False, "chat"),
    (BOTH | {"messages": 5}, True, "native"),
    ({"inputs": "x", "parameters": {"max_new_tokens": 2}}, True, "native"),
    ({"prompt": "x", "max_tokens": 2}, True, "completion"),
    ({"prompt": "x", "messages": [], "max_tokens": 2}, False, "completion"),
]


@pytest.mark.parametrize(("body", "chat_first", "kind"), KINDS)
async def test_invocations_take_the_first_dialect_that_fits(
    body: dict[str, Any], chat_first: bool, kind: str, tiny_folder: Path
) -> None:
    async with serving(tiny_folder) as server:
        api = ApiContext(server.service, 2, None, chat_first)
        transport = httpx.ASGITransport(create_app(api))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = (await client.post("/invocations", json=body)).json()
    objects = {"chat.completion": "chat", "text_completion": "completion"}
    assert (objects[answer["object"]] if isinstance(answer, dict) else "native") == kind


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "did not match any variant of untagged enum SagemakerRequest"),
        ([], "did not match any variant of untagged enum SagemakerRequest"),
        ({"inputs": 5, "prompt": 5}, "did not match any variant of untagged enum SagemakerRequest"),
        ({"inputs": 5}, "inputs: "),
    ],
)
async def test_invocations_that_fit_nothing(body: Any, words: str, tiny_folder: Path) -> None:
    async with serving(tiny_folder) as server:
        answer = await post(server, "/invocations", body)
    assert answer.status_code == 422 and words in answer.text
    assert INFO.model_id not in answer.text


@pytest.mark.parametrize("variable", ["MESSAGES_API_ENABLED", "OAI_ENABLED"])
def test_both_variables_mean_chat_first(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not load_settings([]).chat_first
    monkeypatch.setenv(variable, "true")
    assert load_settings([]).chat_first


@pytest.mark.parametrize("path", ["/generate", "/health", "/vertex", "/v1/models/x/y", f"{MODEL}/infer"])
async def test_a_wrong_method_is_answered_by_the_api_and_not_by_the_page(path: str) -> None:
    """The page is mounted at /, and would take what no route takes."""
    app = create_app(ApiContext(Service(_metrics()), 2, None), has_page=True)
    app.mount("/", lambda scope, receive, send: pytest.fail("the page was asked"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.delete(path)
    assert answer.status_code == 405 and answer.headers["allow"] in ("POST", "GET, HEAD")
