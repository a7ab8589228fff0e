"""Routes, methods and errors: statuses and bodies to the byte, before a handler runs, in it, and inside a stream."""

from typing import Any

import httpx
import pytest

from tests.api.conformance.conftest import KEY, fault_text
from tests.api.conformance.raw import Answer, call, connect, get, open_request, parse, pieces, post
from tests.faulty_server import Fault
from tests.serving import Server
from tgi_local.api.context import ApiContext
from tgi_local.api.server import create_app
from tgi_local.metrics import Metrics
from tgi_local.service import Service

HI = [{"role": "user", "content": "hi"}]
TEXT_PLAIN = "text/plain; charset=utf-8"
PARSE = "Failed to parse the request body as JSON: "
SHAPE = "Failed to deserialize the JSON body into the target type: "
NATIVE_POSTS = ["/", "/generate", "/generate_stream", "/tokenize", "/chat_tokenize", "/invocations", "/vertex"]
OPENAI_POSTS = ["/v1/chat/completions", "/v1/completions"]
GETS = ["/health", "/ping", "/info", "/metrics", "/v1/models", "/docs/", "/api-doc/openapi.json"]


# Routes.


@pytest.mark.parametrize("path", ["/", *GETS])
def test_get_and_head(tiny_server: Server, path: str) -> None:
    got, head = get(tiny_server, path), call(tiny_server, "HEAD", path)
    assert got.status == head.status == 200 and head.body == b""
    if path in ("/", "/health", "/ping"):
        assert got.body == b""
    elif path != "/metrics":
        assert got.header("content-length") == head.header("content-length") == str(len(got.body))
    types = {"/docs/": "text/html; charset=utf-8", "/metrics": TEXT_PLAIN}
    if got.body:
        assert got.header("content-type") == types.get(path, "application/json")


def test_docs_and_the_schema(tiny_server: Server) -> None:
    docs = get(tiny_server, "/docs")
    assert (docs.status, docs.header("location")) == (303, "/docs/")
    assert get(tiny_server, "/api-doc/openapi.json").json["openapi"] == "3.0.3"


@pytest.mark.parametrize(
    "path", ["/nothing", "/generate/", "/health/", "/v1/nothing", "/v1/chat/completions/", "/info/"]
)
def test_paths_are_exact(tiny_server: Server, path: str) -> None:
    for method, body in (("GET", None), ("POST", {}), ("HEAD", None)):
        answer = call(tiny_server, method, path, body)
        assert answer.status == 404 and answer.header("location") is None
        if path.startswith("/v1"):
            assert method == "HEAD" or answer.json["error"]["type"] == "invalid_request_error"
        else:
            assert answer.body == b"" and answer.header("content-type") is None


@pytest.mark.parametrize("path", NATIVE_POSTS[1:] + GETS)
def test_a_wrong_method_is_empty_and_names_the_right_one(tiny_server: Server, path: str) -> None:
    is_post = path in NATIVE_POSTS
    for method in ("GET", "DELETE", "PUT") if is_post else ("POST", "DELETE", "PATCH"):
        answer = call(tiny_server, method, path, b"{}" if method == "POST" else None)
        assert answer.status == 405 and answer.header("allow") == ("POST" if is_post else "GET, HEAD")
        assert answer.body == b"" or path.startswith("/v1")


@pytest.mark.parametrize("path", ["/", "/generate", "/v1/chat/completions", "/nothing"])
def test_options_anywhere(tiny_server: Server, limited_server: Server, path: str) -> None:
    for server in (tiny_server, limited_server):  # the second has a key, which is not asked for
        answer = call(server, "OPTIONS", path)
        assert (answer.status, answer.body) == (200, b"")


# Before a handler runs.


def assert_plain(answer: Answer, status: int, start: str) -> None:
    assert answer.status == status and answer.header("content-type") == TEXT_PLAIN, (answer.status, answer.body)
    assert answer.body.decode().startswith(start), answer.body


@pytest.mark.parametrize("path", NATIVE_POSTS)
@pytest.mark.parametrize(
    ("content", "status", "start"),
    [
        (b"", 400, PARSE),
        (b"{", 400, PARSE),
        (b"{'inputs':1}", 400, PARSE),
        (b'{"inputs":NaN}', 400, PARSE),
        (b"\xff", 400, PARSE),
        (b"null", 422, SHAPE),
        (b"[]", 422, SHAPE),
        (b'"x"', 422, SHAPE),
    ],
)
def test_what_can_not_be_read_is_plain_text(
    tiny_server: Server, path: str, content: bytes, status: int, start: str
) -> None:
    answer = post(tiny_server, path, content)
    assert_plain(answer, status, start)
    assert (b" at line " in answer.body and b" column " in answer.body) or path == "/invocations"


DETAILS: list[tuple[str, str]] = [
    ("{}", "missing field `inputs`"),
    ('{"inputs":3}', "inputs: invalid type: integer, expected a string"),
    ('{"inputs":null}', "inputs: invalid type: null, expected a string"),
    ('{"inputs":["x"]}', "inputs: invalid type: sequence, expected a string"),
    ('{"inputs":"x","stream":"true"}', "stream: invalid type: string, expected a boolean"),
    ('{"inputs":"x","parameters":null}', "parameters: invalid type: null, expected a map"),
    ('{"inputs":"x","parameters":[]}', "parameters: invalid type: sequence, expected a map"),
    ('{"inputs":"x","parameters":{"temperature":"1"}}', "parameters.temperature: invalid type: string, expected f32"),
    ('{"inputs":"x","parameters":{"temperature":true}}', "parameters.temperature: invalid type: boolean, expected f32"),
    ('{"inputs":"x","parameters":{"max_new_tokens":"20"}}', "parameters.max_new_tokens: invalid type: string"),
    ('{"inputs":"x","parameters":{"max_new_tokens":1.5}}', "parameters.max_new_tokens: invalid type: floating point"),
    ('{"inputs":"x","parameters":{"max_new_tokens":1.0}}', "parameters.max_new_tokens: invalid type: floating point"),
    ('{"inputs":"x","parameters":{"max_new_tokens":true}}', "parameters.max_new_tokens: invalid type: boolean"),
    ('{"inputs":"x","parameters":{"seed":-1}}', "parameters.seed: "),
    ('{"inputs":"x","parameters":{"seed":18446744073709551616}}', "parameters.seed: "),
    ('{"inputs":"x","parameters":{"max_new_tokens":4294967296}}', "parameters.max_new_tokens: "),
    ('{"inputs":"x","parameters":{"stop":"x"}}', "parameters.stop: invalid type: string, expected a sequence"),
    ('{"inputs":"x","parameters":{"stop":["a",1]}}', "parameters.stop[1]: invalid type: integer, expected a string"),
    ('{"inputs":"x","parameters":{"details":"yes"}}', "parameters.details: invalid type: string, expected a boolean"),
    ('{"inputs":"x","parameters":{"grammar":{"type":"x","value":"y"}}}', "grammar: unknown variant"),
    ('{"inputs":"x","parameters":{"grammar":{"type":"json"}}}', "grammar: missing field `value`"),
    ('{"inputs":"x","parameters":{"grammar":"x"}}', "parameters.grammar: invalid type: string, expected a map"),
]


@pytest.mark.parametrize(("content", "detail"), DETAILS)
def test_a_wrong_shape_names_the_place_and_echoes_nothing(tiny_server: Server, content: str, detail: str) -> None:
    for path in ("/generate", "/generate_stream", "/"):
        assert_plain(post(tiny_server, path, content.encode()), 422, SHAPE + detail)


def test_an_integer_is_a_number(tiny_server: Server) -> None:
    body = b'{"inputs":"x","parameters":{"temperature":1,"repetition_penalty":2,"max_new_tokens":1}}'
    assert post(tiny_server, "/generate", body).status == 200


def test_chat_shapes_are_named_on_native_routes(tiny_server: Server) -> None:
    answer = post(tiny_server, "/chat_tokenize", b'{"messages":[{"role":"user","content":5}]}')
    assert_plain(answer, 422, SHAPE + "messages[0]")
    for path in OPENAI_POSTS:
        for content in (b"", b"{", b"{}", b"[]"):
            refused = post(tiny_server, path, content)
            assert refused.status == 400 and set(refused.json) == {"error", "error_type"}
            assert set(refused.json["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", NATIVE_POSTS)
def test_content_types(tiny_server: Server, path: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""):
        answer = post(tiny_server, path, b"{}", content_type=kind)
        assert_plain(answer, 415, "Expected request with `Content-Type: application/json`")
        assert answer.body.endswith(b"json`"), "no trailing space"
    for kind in ("application/json", "application/json; charset=utf-8", "application/problem+json", "Application/JSON"):
        assert_plain(post(tiny_server, path, b"[]", content_type=kind), 422, SHAPE)


def test_no_content_type_at_all(tiny_server: Server) -> None:
    with connect(tiny_server) as connection:
        host = tiny_server.url.removeprefix("http://")
        head = f"POST /generate HTTP/1.1\r\nhost: {host}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n"
        connection.sendall(head.encode() + b"{}")
        assert_plain(parse(b"".join(pieces(connection))), 415, "Expected request with")


def test_bodies_over_the_limit(tiny_server: Server, limited_server: Server) -> None:
    def body(size: int) -> bytes:
        return b'{"inputs":"x","padding":"' + b"x" * (size - 27) + b'"}'

    want = "Failed to buffer the request body: length limit exceeded"
    assert_plain(post(limited_server, "/tokenize", body(1001), x_api_key=KEY), 413, want)
    assert post(limited_server, "/tokenize", body(1000), x_api_key=KEY).status == 200
    answer = post(tiny_server, "/generate", body(2_000_001))
    assert_plain(answer, 413, want)
    assert answer.body.decode() == want and post(tiny_server, "/tokenize", body(2_000_000)).status == 200


def test_a_client_that_asks_first_need_not_send_at_all(tiny_server: Server) -> None:
    host = tiny_server.url.removeprefix("http://")
    head = f"POST /generate HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    head += "content-length: 90000000\r\nexpect: 100-continue\r\n\r\n"
    with connect(tiny_server) as connection:
        connection.sendall(head.encode())
        answer = parse(b"".join(pieces(connection)))
    assert answer.status == 413 and answer.header("connection") == "close"


def test_a_body_that_does_not_say_how_long_it_is(limited_server: Server) -> None:
    host = limited_server.url.removeprefix("http://")
    head = f"POST /tokenize HTTP/1.1\r\nhost: {host}\r\nx-api-key: {KEY}\r\ncontent-type: application/json\r\n"
    head += "transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    for size, status in ((900, 200), (1100, 413)):
        content = b'{"inputs":"' + b"x" * (size - 13) + b'"}'
        with connect(limited_server) as connection:
            connection.sendall(head.encode() + f"{size:x}\r\n".encode() + content + b"\r\n0\r\n\r\n")
            assert parse(b"".join(pieces(connection))).status == status


# The key.


@pytest.mark.parametrize("path", [*NATIVE_POSTS, *OPENAI_POSTS, "/info", "/v1/models", "/nothing"])
def test_a_wrong_key_comes_before_everything_else(limited_server: Server, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"x-api-key": "wrong"}):
        answer = call(limited_server, "POST", path, b"{", {"content-type": "text/plain", **headers})
        assert answer.status == 401, headers
        assert answer.body == b"" or path.startswith("/v1")
    for headers in ({"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"x-api-key": KEY}):
        assert call(limited_server, "POST", path, b"{", headers).status in (400, 404, 405)


def test_health_needs_no_key(limited_server: Server) -> None:
    assert get(limited_server, "/health").status == get(limited_server, "/ping").status == 200


# From a handler.


def test_a_model_that_fails(slow_server: Server) -> None:
    failed = slow_server.metric("tgi_request_failure", err="generation")
    parameters = {"max_new_tokens": 9}
    body = {"inputs": fault_text(Fault.NAN, 3), "parameters": parameters}
    answer = post(slow_server, "/generate", body)
    assert answer.status == 424 and list(answer.json) == ["error", "error_type"]
    assert answer.json["error_type"] == "generation"
    assert answer.json["error"].startswith("Request failed during generation: Server error: ")
    *tokens, last = post(slow_server, "/generate_stream", body).events
    assert len(tokens) == 3 and last == answer.json, "in the stream, after what came before"
    completion = {"prompt": fault_text(Fault.NAN, 3), "max_tokens": 9}
    openai = post(slow_server, "/v1/completions", completion)
    assert (openai.status, openai.json["error"]["type"], openai.json["error_type"]) == (
        500,
        "server_error",
        "generation",
    )
    *chunks, error, done = post(slow_server, "/v1/completions", {**completion, "stream": True}).events
    assert done == b"[DONE]" and len(chunks) == 3 and list(error) == ["error"]
    assert error["error"]["http_status_code"] == 500 and error["error"]["message"] == answer.json["error"]
    assert get(slow_server, "/health").status == 200
    assert slow_server.metric("tgi_request_failure", err="generation") == failed + 4


def test_every_slot_is_taken(slow_server: Server) -> None:
    """Of three: a request takes one for each of its sequences, and tokenizing takes none."""
    overloaded = {"error": "Model is overloaded", "error_type": "overloaded"}
    failed, dropped = (slow_server.metric("tgi_request_failure", err=cause) for cause in ("overloaded", "dropped"))
    endless = {"prompt": [Fault.SLOW, 0], "max_tokens": 2000, "stream": True}
    native: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 1}}
    several: list[tuple[str, dict[str, Any]]] = [
        ("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 1, "best_of": 2, "do_sample": True}}),
        ("/v1/completions", {"prompt": ["x", "y"], "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": HI, "max_tokens": 1, "n": 2, "stream": True}),
    ]
    with open_request(slow_server, "POST", "/v1/completions", {**endless, "n": 2}) as two:
        assert two.recv(1)
        for path, body in several:
            assert_overloaded(post(slow_server, path, body), path)
        assert post(slow_server, "/generate", native).status == 200, "one is left"
        with open_request(slow_server, "POST", "/v1/completions", endless) as one:
            assert one.recv(1)
            assert_overloaded(post(slow_server, "/generate", native), "/generate")
            assert_overloaded(post(slow_server, "/v1/completions", {"prompt": "x", "stream": True}), "/v1/completions")
            assert post(slow_server, "/generate_stream", native).events == [overloaded]
            assert post(slow_server, "/", {**native, "stream": True}).events == [overloaded]
            assert post(slow_server, "/vertex", {"instances": [native]}).status == 500
            assert post(slow_server, "/tokenize", native).status == 200
            assert post(slow_server, "/chat_tokenize", {"messages": HI}).status == 200
            invalid = {"inputs": "x", "parameters": {"top_p": 1.0}}
            assert_overloaded(post(slow_server, "/generate", invalid), "/generate")  # as in TGI, before validation
    assert slow_server.metric("tgi_request_failure", err="overloaded") == failed + 9
    slow_server.wait_idle()
    assert slow_server.metric("tgi_request_failure", err="dropped") == dropped + 3, "those who went away"
    for path, body in several:
        assert post(slow_server, path, body).status == 200, "given back"


def assert_overloaded(answer: Answer, path: str) -> None:
    assert answer.status == 429 and int(answer.header("retry-after") or "") >= 1
    if path.startswith("/v1"):
        assert answer.json["error"]["type"] == "rate_limit_error" and answer.json["error_type"] == "overloaded"
    else:
        assert answer.json == {"error": "Model is overloaded", "error_type": "overloaded"}


BEFORE_IT_IS_READY: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"inputs": "x"}),
    ("/generate_stream", {"inputs": "x"}),
    ("/", {"inputs": "x", "stream": True}),
    ("/tokenize", {"inputs": "x"}),
    ("/chat_tokenize", {"messages": HI}),
    ("/invocations", {"prompt": "x", "stream": True}),
    ("/vertex", {"instances": [{"inputs": "x"}]}),
    ("/v1/chat/completions", {"messages": HI, "stream": True}),
    ("/v1/completions", {"prompt": "x"}),
]


async def test_before_the_model_is_there() -> None:
    """TGI refuses connections meanwhile; here a status says what is going on, in streams too."""
    service = Service(Metrics())
    service.report_loading("reading the weights")
    transport = httpx.ASGITransport(create_app(ApiContext(service, 2, None)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answers = [(path, await client.post(path, json=body)) for path, body in BEFORE_IT_IS_READY]
        health = await client.get("/health")
        assert (await client.get("/metrics")).status_code == 200 and (await client.get("/info")).status_code == 503
    assert health.status_code == 503 and health.headers["retry-after"] == "1"
    assert health.json() | {"state": "loading", "error_type": "healthcheck"} == health.json()
    for path, answer in answers:
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1", path
        assert answer.json()["error_type"] == "healthcheck" and "reading the weights" in answer.text
        assert isinstance(answer.json()["error"], dict) == path.startswith("/v1")


def test_refusals_are_counted_by_their_cause(tiny_server: Server) -> None:
    """In whichever dialect, and also what is refused before it is a request that can be served."""

    def counts() -> tuple[float, float]:
        text = get(tiny_server, "/metrics").body.decode()
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("tgi_request_"))
        failed = (float(value) for name, value in samples.items() if name.startswith("tgi_request_failure{"))
        return float(samples["tgi_request_count"]) - float(samples["tgi_request_success"]), sum(failed)

    refused: list[tuple[str, dict[str, Any]]] = [
        ("/generate", {"inputs": "x", "parameters": {"top_p": 1.0}}),
        ("/generate", {"inputs": ""}),
        ("/generate_stream", {"inputs": "x", "parameters": {"best_of": 2}}),
        ("/v1/chat/completions", {"messages": HI, "temperature": -1}),
        ("/v1/chat/completions", {"messages": HI, "top_p": 1.5, "stream": True}),
        ("/v1/chat/completions", {"messages": HI, "top_logprobs": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}),
        ("/v1/completions", {"prompt": ["x"] * 5}),
        ("/v1/messages", {"messages": HI, "max_tokens": 1, "container": "x"}),
        ("/v1/responses", {"input": "x", "temperature": -1}),
    ]
    for path, body in refused:
        before = counts()
        assert post(tiny_server, path, body).status in (200, 400, 422), path
        after = counts()
        assert (after[0] - before[0], after[1] - before[1]) == (1, 1), (path, body)


# The wire itself.


def test_two_lengths_of_one_body_are_refused(tiny_server: Server) -> None:
    """A proxy that goes by the other one would take what follows for a request of its own."""
    body = b'{"inputs":"x"}'
    framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    for headers, status in (({}, 200), ({"content-length": str(len(framed))}, 400)):
        with connect(tiny_server) as connection:
            head = {"host": "localhost", "content-type": "application/json", "transfer-encoding": "chunked", **headers}
            lines = ["POST /tokenize HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
            follows = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            connection.sendall("\r\n".join(lines).encode() + framed + follows)
            received = b"".join(iter(lambda: connection.recv(65_536), b""))
        assert parse(received).status == status
        assert received.count(b"HTTP/1.1 ") == (2 if status == 200 else 1)


@pytest.mark.parametrize(
    ("target", "status"),
    [("http://localhost/health", 200), ("HTTP://127.0.0.1:80/health", 200), ("http://evil.example/health", 421)],
)
def test_a_target_with_a_host_is_served_by_that_host(tiny_server: Server, target: str, status: int) -> None:
    assert call(tiny_server, "GET", target).status == status
    assert call(tiny_server, "GET", "/http://localhost/health").status == 404


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [("max_new_tokens", -1, "at least 0"), ("seed", -1, "at least 0"), ("top_k", 2**31, f"at most {2**31 - 1}")],
)
def test_numbers_out_of_range(tiny_server: Server, name: str, value: int, bound: str) -> None:
    answer = post(tiny_server, "/generate", {"inputs": "x", "parameters": {name: value}})
    assert_plain(answer, 422, f"{SHAPE}parameters.{name}: invalid value: integer `{value}`, expected {bound} at line ")


def test_an_empty_list_of_messages(tiny_server: Server) -> None:
    error = post(tiny_server, "/v1/chat/completions", {"messages": []}).json["error"]
    assert error["message"].startswith(f"{SHAPE}messages: invalid length 0, expected at least 1 at line ")


def test_no_route_of_openai_says_so_in_both_forms(tiny_server: Server) -> None:
    for method, path, status, kind in (
        ("GET", "/v1/models/", 404, "not_found"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("GET", "/v1/completions", 405, "validation"),
    ):
        answer = call(tiny_server, method, path, {} if method == "POST" else None)
        assert (answer.status, answer.json["error_type"]) == (status, kind)
        assert answer.json["error"]["message"]
