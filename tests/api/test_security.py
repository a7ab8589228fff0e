"""The gate: who may ask, from where, with what body; and that a refusal says nothing of the request."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tgi_local.api.security import SecurityGate, SecurityPolicy

KEY = "sk-correct-horse"
LOCAL = SecurityPolicy()
KEYED = SecurityPolicy(api_key=KEY, allowed_hosts=None)
PATHS = ["/v1/chat/completions", "/generate", "/", "/gradio_api/queue/join"]
JSON = {"content-type": "application/json"}
BEARER = {"authorization": f"Bearer {KEY}"}


class CountingApp:
    """A tiny app that counts what gets through to it."""

    def __init__(self) -> None:
        self.num_served = 0
        routes = [Route(path, self.echo, methods=["GET", "POST", "OPTIONS"]) for path in [*PATHS, "/health", "/info"]]
        routes.append(Route("/page", self.page))
        self._app = Starlette(routes=routes)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.num_served += scope["type"] != "lifespan"
        await self._app(scope, receive, send)

    async def echo(self, request: Request) -> Response:
        return JSONResponse({"length": len(await request.body())})

    async def page(self, request: Request) -> Response:
        headers = {"access-control-allow-origin": "*", "access-control-allow-credentials": "true"}
        return HTMLResponse("<p>page", headers=headers)


Client = Callable[[SecurityPolicy], httpx.AsyncClient]


@pytest.fixture
def app() -> CountingApp:
    return CountingApp()


@pytest.fixture
def client(app: CountingApp) -> Client:
    def make(policy: SecurityPolicy, base_url: str = "http://localhost:8080") -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(SecurityGate(app, policy)), base_url=base_url)

    return make


async def call(
    policy: SecurityPolicy,
    headers: Iterable[tuple[bytes, bytes]] = (),
    *,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    chunks: Iterable[bytes] = (b"{}",),
    app: Any = None,
    scope_type: str = "http",
) -> tuple[int, dict[bytes, bytes], bytes]:
    """One raw request: (status, headers, body); a refused websocket has the status of its close code."""
    parts = list(chunks)
    inbox = [{"type": "http.request", "body": part, "more_body": n + 1 < len(parts)} for n, part in enumerate(parts)]
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return inbox.pop(0) if inbox else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": scope_type, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": list(headers)}
    scope |= {"http_version": "1.1", "scheme": "http", "root_path": "", "server": ("x", 1), "client": ("x", 2)}
    if scope_type == "http":
        scope["method"] = method
    await asyncio.wait_for(SecurityGate(app or CountingApp(), policy)(scope, receive, send), 5)
    start = sent[0]
    assert sum(message["type"].endswith("start") for message in sent) <= 1
    return (
        start.get("status", start.get("code")),
        dict(start.get("headers", ())),
        b"".join(message.get("body", b"") for message in sent[1:]),
    )


HOSTS = [
    ([b"localhost"], True),
    ([b"localhost:8080"], True),
    ([b"LOCALHOST:1"], True),
    ([b"127.0.0.1"], True),
    ([b"127.0.0.1:65535"], True),
    ([b"[::1]"], True),
    ([b"[::1]:8080"], True),
    ([], False),
    ([b""], False),
    ([b"evil.com"], False),
    ([b"evil.com:8080"], False),
    ([b"127.0.0.1.evil.com"], False),
    ([b"localhost.evil.com"], False),
    ([b"evil.localhost"], False),
    ([b"localhost."], False),
    ([b"::1"], False),
    ([b"[::1"], False),
    ([b"[::ffff:127.0.0.1]"], False),
    ([b"0.0.0.0"], False),
    ([b"127.0.0.2"], False),
    ([b"127.1"], False),
    ([b"2130706433"], False),
    ([b"192.168.1.10:8080"], False),
    ([b"localhost/v1/models?"], False),
    ([b"x#"], False),
    ([b"localhost#"], False),
    ([b"localhost@evil.com"], False),
    ([b"user:pw@localhost"], False),
    ([b"http://localhost/"], False),
    ([b"localhost:"], False),
    ([b"localhost:port"], False),
    ([b"localhost:123456"], False),
    ([b" localhost"], False),
    ([b"localhost\t"], False),
    ([b"localhost,evil.com"], False),
    ([b"localhost\n"], False),
    ([b"l\xf6calhost"], False),
    ([b"localhost", b"localhost"], False),
    ([b"localhost", b"evil.com"], False),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("hosts", "is_served"), HOSTS)
async def test_hosts(hosts: list[bytes], is_served: bool, path: str) -> None:
    headers = [*((b"host", host) for host in hosts), (b"content-type", b"application/json")]
    for method in ("GET", "POST"):
        status, _, body = await call(LOCAL, headers, path=path, method=method)
        assert status == (200 if is_served else 421)
        if not is_served:
            assert json.loads(body)["error_type"] == "misdirected_request"


async def test_configured_hosts_are_compared_without_case_and_port() -> None:
    policy = SecurityPolicy(allowed_hosts=("My-Box.local", "::1"))
    for host in (b"my-box.local:7860", b"[::1]:1"):
        assert (await call(policy, [(b"host", host)], method="GET"))[0] == 200
    assert (await call(policy, [(b"host", b"localhost")], method="GET"))[0] == 421


ORIGINS = [
    ({}, 200),
    ({"origin": "http://localhost:8080"}, 200),
    ({"origin": "HTTP://LOCALHOST:8080"}, 200),
    ({"origin": "http://localhost:8080", "sec-fetch-site": "same-origin"}, 200),
    ({"sec-fetch-site": "same-origin"}, 200),
    ({"sec-fetch-site": "none"}, 200),
    ({"origin": "null", "sec-fetch-site": "same-origin"}, 200),
    ({"origin": "https://listed.example"}, 200),
    ({"origin": "https://listed.example", "sec-fetch-site": "cross-site"}, 200),
    ({"origin": "null"}, 403),
    ({"origin": ""}, 403),
    ({"origin": "null", "sec-fetch-site": "cross-site"}, 403),
    ({"origin": "http://localhost"}, 403),
    ({"origin": "http://localhost:8081"}, 403),
    ({"origin": "http://localhost:8080.evil.com"}, 403),
    ({"origin": "http://localhost:8080@evil.com"}, 403),
    ({"origin": "http://127.0.0.1:8080"}, 403),
    ({"origin": "https://evil.example"}, 403),
    ({"origin": "https://listed.example.evil.com"}, 403),
    ({"origin": "http://listed.example"}, 403),
    ({"origin": "file://"}, 403),
    ({"origin": "chrome-extension://abcdef"}, 403),
    ({"origin": "http://localhost:8080 https://evil.example"}, 403),
    ({"sec-fetch-site": "cross-site"}, 403),
    ({"origin": "http://localhost:8080", "sec-fetch-site": "cross-site"}, 403),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("headers", "status"), ORIGINS)
async def test_origins(app: CountingApp, client: Client, headers: dict[str, str], status: int, path: str) -> None:
    policy = SecurityPolicy(allowed_origins=("https://listed.example",))
    async with client(policy) as http:
        response = await http.post(path, headers={**JSON, **headers}, content=b"{}")
        assert response.status_code == status
        assert app.num_served == (status == 200)
        assert "access-control-allow-credentials" not in response.headers
        assert (await http.get(path, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
async def test_a_foreign_page_reaches_nothing(app: CountingApp, client: Client, content_type: str | None) -> None:
    headers = {"origin": "https://evil.example"} | ({"content-type": content_type} if content_type else {})
    async with client(LOCAL) as http:
        for path in [*PATHS, "/gradio_api/upload"]:
            assert (await http.post(path, headers=headers, content=b"{}")).status_code == 403
    assert app.num_served == 0


async def test_two_origins_are_cross_site() -> None:
    headers = [(b"host", b"localhost"), (b"origin", b"http://localhost"), (b"origin", b"http://localhost")]
    assert (await call(LOCAL, [*headers, (b"content-type", b"application/json")]))[0] == 403


@pytest.mark.parametrize(("origin", "status"), [(b"https://my.hf.space", 200), (b"http://my.hf.space", 200)])
async def test_a_proxy_may_end_tls(origin: bytes, status: int) -> None:
    headers = [(b"host", b"my.hf.space"), (b"origin", origin), (b"content-type", b"application/json")]
    assert (await call(SecurityPolicy(allowed_hosts=("my.hf.space",)), headers))[0] == status


SESSION = hmac.new(KEY.encode(), b"tgi-local session v1", hashlib.sha256).hexdigest().encode()
KEYS = [
    ([], False),
    ([(b"authorization", f"Bearer {KEY}".encode())], True),
    ([(b"authorization", f"bearer {KEY}".encode())], True),
    ([(b"x-api-key", KEY.encode())], True),
    ([(b"authorization", b"Basic dTpw"), (b"x-api-key", KEY.encode())], True),
    ([(b"cookie", b"a=b; tgi_local_session=" + SESSION)], True),
    ([(b"authorization", b"")], False),
    ([(b"authorization", b"Bearer")], False),
    ([(b"authorization", b"Bearer ")], False),
    ([(b"authorization", KEY.encode())], False),
    ([(b"authorization", f"Bearer  {KEY}".encode())], False),
    ([(b"authorization", f"Bearer {KEY} ".encode())], False),
    ([(b"authorization", f"Bearer {KEY[:-1]}".encode())], False),
    ([(b"authorization", f"Bearer {KEY}x".encode())], False),
    ([(b"authorization", f"Bearer {KEY.upper()}".encode())], False),
    ([(b"authorization", f"Basic {KEY}".encode())], False),
    ([(b"authorization", b"Bearer k\xc3\xb6\xff")], False),
    ([(b"authorization", b"Bearer " + b"k" * 60_000)], False),
    ([(b"authorization", f"Bearer {KEY}".encode())] * 2, False),
    ([(b"authorization", b"Bearer x"), (b"authorization", f"Bearer {KEY}".encode())], False),
    ([(b"x-api-key", b"")], False),
    ([(b"x-api-key", b"\xf0\x9f\x98\x80")], False),
    ([(b"x-api-key", KEY.encode()), (b"x-api-key", b"y")], False),
    ([(b"cookie", b"tgi_local_session=")], False),
    ([(b"cookie", b"tgi_local_session=" + KEY.encode())], False),
    ([(b"cookie", b"tgi_local_session=" + SESSION.upper())], False),
    ([(b"cookie", b"tgi_local_session=" + hashlib.sha256(KEY.encode()).hexdigest().encode())], False),
    ([(b"cookie", b"other=" + SESSION)], False),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate", "/info", "/gradio_api/queue/join", "/nothing"])
@pytest.mark.parametrize(("headers", "is_right"), KEYS)
async def test_keys(headers: list[tuple[bytes, bytes]], is_right: bool, path: str) -> None:
    app = CountingApp()
    status, answer, body = await call(
        KEYED, [*headers, (b"host", b"any.example"), (b"content-type", b"application/json")], path=path, app=app
    )
    assert app.num_served == is_right
    if is_right:
        assert status != 401
        return
    assert status == 401 and answer[b"www-authenticate"] == b"Bearer"
    if path.startswith("/v1"):
        error = json.loads(body)
        assert error["error"]["type"] == "authentication_error" and error["error_type"] == "authentication"
    else:
        assert body == b""


async def test_a_key_in_the_query_is_no_key(client: Client) -> None:
    async with client(KEYED) as http:
        assert (await http.get(f"/info?api_key={KEY}&authorization=Bearer%20{KEY}")).status_code == 401


async def test_a_megabyte_of_key_is_refused() -> None:
    headers = [(b"authorization", b"Bearer " + b"k" * 1_000_000)]
    assert (await call(KEYED, headers))[0] == 431


async def test_a_non_ascii_key_works() -> None:
    policy = SecurityPolicy(api_key="schlüssel", allowed_hosts=None)
    assert (await call(policy, [(b"x-api-key", "schlüssel".encode())], method="GET"))[0] == 200
    assert (await call(policy, [(b"x-api-key", b"schl\xfcssel")], method="GET"))[0] == 401


def test_an_empty_key_is_no_policy() -> None:
    with pytest.raises(ValueError, match="empty"):
        SecurityGate(CountingApp(), SecurityPolicy(api_key=""))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("HEAD", "/health", 200),
        ("GET", "/ping", 404),
        ("POST", "/health", 401),
        ("GET", "/health/", 401),
        ("GET", "/HEALTH", 401),
        ("GET", "//health", 401),
        ("GET", "/", 401),
        ("OPTIONS", "/generate", 200),  # says nothing, see below
        ("TRACE", "/generate", 401),
    ],
)
async def test_only_health_is_public(method: str, path: str, status: int) -> None:
    assert (await call(KEYED, [(b"host", b"x")], method=method, path=path))[0] == status


async def test_a_header_key_is_immune_to_origin_rules_and_a_cookie_is_not(client: Client) -> None:
    foreign = {**JSON, "origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    async with client(KEYED) as http:
        assert (await http.post("/generate", headers={**foreign, **BEARER}, content=b"{}")).status_code == 200
        assert (await http.post("/generate", headers=foreign, content=b"{}")).status_code == 401
        cookie = {"cookie": f"tgi_local_session={SESSION.decode()}"}
        assert (await http.post("/generate", headers={**foreign, **cookie}, content=b"{}")).status_code == 403
        assert (await http.post("/generate", headers={**JSON, **cookie}, content=b"{}")).status_code == 200


FORM = {"content-type": "application/x-www-form-urlencoded"}


async def test_a_browser_signs_in(app: CountingApp, client: Client) -> None:
    async with client(KEYED) as http:
        page = await http.get("/", headers={"accept": "text/html,*/*"})
        assert page.status_code == 401 and 'action="/sign-in"' in page.text
        assert "http" not in page.text and "script" not in page.text
        assert page.headers["content-security-policy"].endswith("frame-ancestors 'none'")
        origin = {"origin": "http://localhost:8080"}
        wrong = await http.post("/sign-in", data={"key": "<b>wrong"}, headers=origin)
        assert wrong.status_code == 401 and 'role="alert"' in wrong.text and "<b>wrong" not in wrong.text
        assert "set-cookie" not in wrong.headers and app.num_served == 0
        right = await http.post("/sign-in", data={"key": f" {KEY}\n"}, headers=origin)
        assert right.status_code == 303 and right.headers["location"] == "/"
        cookie = right.headers["set-cookie"]
        assert cookie == f"tgi_local_session={SESSION.decode()}; Path=/; HttpOnly; SameSite=Strict"
        assert KEY not in cookie and KEY not in page.text
        assert (await http.get("/", headers={"accept": "text/html"})).status_code == 200
        assert (await http.get("/sign-in")).headers["location"] == "/"


async def test_the_cookie_is_secure_over_https(app: CountingApp, client: Any) -> None:
    async with client(KEYED, "https://box.example") as http:
        response = await http.post("/sign-in", data={"key": KEY})
        assert response.headers["set-cookie"].endswith("; SameSite=Strict; Secure")


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"key=" + KEY.encode(), FORM | {"origin": "https://evil.example"}, 403),
        (b"key=" + KEY.encode(), FORM | {"origin": "null"}, 403),
        (b"key=" + KEY.encode(), FORM | {"origin": "null", "sec-fetch-site": "same-origin"}, 303),
        (b"key=" + KEY.encode(), {"content-type": "text/plain"}, 415),
        (b'{"key": 1}', JSON, 415),
        (b"key=" + b"x" * 9000, FORM, 413),
        (b"key=%ff%fe", FORM, 401),
        (b"key=\xff", FORM, 401),
        (b"", FORM, 401),
        (b"&".join([b"key=a"] * 100), FORM, 401),
    ],
)
async def test_sign_in_forms(client: Client, content: bytes, headers: dict[str, str], status: int) -> None:
    async with client(KEYED) as http:
        assert (await http.post("/sign-in", content=content, headers=headers)).status_code == status


async def test_sign_in_does_not_exist_without_a_key(app: CountingApp, client: Client) -> None:
    async with client(LOCAL) as http:
        assert (await http.get("/sign-in", headers={"accept": "text/html"})).status_code == 404
        assert (await http.post("/sign-in", content=b"key=a", headers=FORM)).status_code == 415


@pytest.mark.parametrize(
    ("path", "accept"), [("/v1/models", "text/html"), ("/gradio_api/info", "text/html"), ("/", "*/*"), ("/", "")]
)
async def test_scripts_get_no_page(client: Client, path: str, accept: str) -> None:
    async with client(KEYED) as http:
        response = await http.get(path, headers={"accept": accept})
        assert response.status_code == 401 and "html" not in response.text


CONTENT_TYPES = [
    ("application/json", 200),
    ("Application/JSON; charset=utf-8", 200),
    ("application/vnd.api+json", 200),
    ("application/cloudevents+json;q=1", 200),
    (None, 415),
    ("", 415),
    ("text/plain", 415),
    ("text/json", 415),
    ("application/jsonp", 415),
    ("application/json-seq", 415),
    ("application/x-www-form-urlencoded", 415),
    ("multipart/form-data; boundary=application/json", 415),
    ("text/plain; application/json", 415),
]


@pytest.mark.parametrize(("content_type", "status"), CONTENT_TYPES)
async def test_content_types(client: Client, content_type: str | None, status: int) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    async with client(LOCAL) as http:
        native = await http.post("/generate", content=b"{}", headers=headers)
        openai = await http.post("/v1/chat/completions", content=b"{}", headers=headers)
        page = await http.post("/gradio_api/queue/join", content=b"{}", headers=headers)
    assert (native.status_code, openai.status_code, page.status_code) == (status, status, 200)
    if status == 415:
        assert native.text == "Expected request with `Content-Type: application/json`"
        assert native.headers["content-type"] == "text/plain; charset=utf-8"
        error = openai.json()
        assert error["error"] == {
            "message": native.text,
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }


async def test_two_content_types_are_none() -> None:
    types = [(b"content-type", b"application/json"), (b"content-type", b"text/plain")]
    assert (await call(LOCAL, [(b"host", b"localhost"), *types]))[0] == 415


@pytest.mark.parametrize(
    ("encoding", "status"), [("identity", 200), ("gzip", 415), ("br", 415), ("identity, gzip", 415)]
)
async def test_compressed_bodies_are_refused(client: Client, encoding: str, status: int) -> None:
    async with client(LOCAL) as http:
        headers = {**JSON, "content-encoding": encoding}
        assert (await http.post("/generate", content=b"{}", headers=headers)).status_code == status


@pytest.mark.parametrize(
    "path", ["/gradio_api/upload", "/gradio_api/upload/", "/gradio_api/proxy=https://evil.example"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_uploads_and_the_proxy_are_closed(app: CountingApp, client: Client, path: str, method: str) -> None:
    async with client(KEYED) as http:
        assert (await http.request(method, path, headers=BEARER)).status_code == 403
    assert app.num_served == 0


SMALL = SecurityPolicy(max_body_bytes=100)
JSON_HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json")]


@pytest.mark.parametrize(
    ("length", "status"),
    [
        (b"2", 200),
        (b"100", 200),
        (b"101", 413),
        (b"9" * 5000, 413),
        (b"-1", 400),
        (b"1e3", 400),
        (b"", 400),
        (b"2 ", 400),
    ],
)
async def test_a_declared_length_is_checked_at_once(length: bytes, status: int) -> None:
    app = CountingApp()
    answer = await call(SMALL, [*JSON_HEADERS, (b"content-length", length)], path="/generate", app=app)
    assert answer[0] == status and app.num_served == (status == 200)
    if status == 413:
        assert answer[2] == b"Failed to buffer the request body: length limit exceeded"


async def test_two_lengths_are_refused() -> None:
    assert (await call(SMALL, [*JSON_HEADERS, (b"content-length", b"2"), (b"content-length", b"2")]))[0] == 400


@pytest.mark.parametrize(
    ("sizes", "status"), [([50, 50], 200), ([101], 413), ([50, 50, 1, 10_000], 413), ([1] * 101, 413)]
)
@pytest.mark.parametrize("declared", [None, b"5"])
async def test_a_body_is_counted_while_it_streams(sizes: list[int], status: int, declared: bytes | None) -> None:
    headers = JSON_HEADERS + ([(b"content-length", declared)] if declared else [])
    chunks = [b"x" * size for size in sizes]
    native = await call(SMALL, headers, path="/generate", chunks=chunks)
    openai = await call(SMALL, headers, chunks=chunks)
    assert native[0] == openai[0] == status
    if status == 413:
        assert native[2] == b"Failed to buffer the request body: length limit exceeded"
        assert json.loads(openai[2])["error"]["message"] == native[2].decode()
        assert native[1][b"connection"] == b"close"


async def test_a_body_that_grows_after_the_answer_began_is_cut() -> None:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (message := await receive())["type"] == "http.request":
            await send({"type": "http.response.body", "body": message["body"], "more_body": True})

    status, _, body = await call(SMALL, JSON_HEADERS, app=echo, chunks=[b"x" * 60, b"y" * 60, b"z"])
    assert status == 200 and body == b"x" * 60


async def test_an_app_that_hides_the_cut_does_not_answer_twice() -> None:
    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(3):
            try:
                await receive()
            except Exception:
                await PlainTextResponse("mine", 500)(scope, receive, send)

    status, _, body = await call(SMALL, JSON_HEADERS, chunks=[b"x" * 101], app=stubborn)
    assert status == 413 and b"mine" not in body


async def test_errors_of_the_app_are_its_own() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ExceptionGroup("broken", [ValueError()])

    with pytest.raises(ExceptionGroup):
        await call(LOCAL, JSON_HEADERS, app=broken)


@pytest.mark.parametrize(
    "headers", [[(b"a", b"b")] * 101, [(b"a", b"b" * 65_536)], [(b"a" * 1_000_000, b"")], [(b"a", b"b" * 700)] * 99]
)
async def test_header_limits(headers: list[tuple[bytes, bytes]]) -> None:
    assert (await call(LOCAL, [*JSON_HEADERS, *headers]))[0] == 431


@pytest.mark.parametrize(
    ("policy", "headers", "is_open"),
    [
        (LOCAL, {"host": "localhost"}, True),
        (LOCAL, {"host": "localhost", "origin": "http://localhost"}, True),
        (LOCAL, {"host": "evil.com"}, False),
        (LOCAL, {"host": "localhost", "origin": "https://evil.example"}, False),
        (KEYED, {"host": "x"}, False),
        (KEYED, {"host": "x", **BEARER}, True),
        (KEYED, {"host": "x", "cookie": f"tgi_local_session={SESSION.decode()}", "origin": "http://x"}, True),
        (KEYED, {"host": "x", "cookie": f"tgi_local_session={SESSION.decode()}", "origin": "http://y"}, False),
    ],
)
@pytest.mark.parametrize("path", ["/ws", "/health"])
async def test_websockets(policy: SecurityPolicy, headers: dict[str, str], is_open: bool, path: str) -> None:
    async def accept(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept", "code": 0})

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    status, _, _ = await call(policy, raw, path=path, app=accept, scope_type="websocket")
    assert status == (0 if is_open else 1008)


async def test_lifespan_passes_and_other_scopes_do_not() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    for scope_type in ("lifespan", "unknown"):
        await SecurityGate(app, KEYED)({"type": scope_type}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan"]


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}


@pytest.mark.parametrize(
    ("allowed", "origin", "expected"),
    [
        ((), "https://a.example", None),
        (("https://a.example",), "https://a.example", "https://a.example"),
        (("https://A.example/",), "https://a.example", "https://a.example"),
        (("https://a.example",), "https://a.example.evil", None),
        (("https://a.example",), "https://a.example:8443", None),
        (("https://a.example",), "null", None),
        (("https://a.example", "https://b.example"), "https://b.example", "https://b.example"),
        (("*",), "https://a.example", "*"),
        (("*",), "null", "*"),
    ],
)
async def test_cors(
    app: CountingApp, client: Client, allowed: tuple[str, ...], origin: str, expected: str | None
) -> None:
    async with client(SecurityPolicy(api_key=KEY, allowed_hosts=None, allowed_origins=allowed)) as http:
        preflight = await http.options("/generate", headers={"origin": origin, **PREFLIGHT})
        assert app.num_served == 0 and preflight.status_code == 200 and preflight.content == b""
        answers = [preflight, await http.get("/page", headers={"origin": origin, **BEARER})]
        answers += [
            await http.post("/generate", headers={"origin": origin}),
            await http.get("/v1/x", headers={"origin": origin}),
        ]
    for answer in answers:
        assert answer.headers.get("access-control-allow-origin") == expected
        assert "access-control-allow-credentials" not in answer.headers
        assert answer.headers.get("vary", "").startswith("origin, ") == bool(allowed)
        if expected is None:
            assert not any(name.startswith("access-control") for name in answer.headers)
    if expected:
        assert preflight.headers["access-control-allow-headers"] == PREFLIGHT.get(
            "access-control-request-headers", "authorization, content-type, x-api-key"
        )
        assert preflight.headers["access-control-allow-methods"] == "GET, POST, DELETE"


@pytest.mark.parametrize("policy", [LOCAL, KEYED])
async def test_options_are_answered_on_any_path_and_promise_nothing(
    app: CountingApp, client: Client, policy: SecurityPolicy
) -> None:
    async with client(policy) as http:
        for path in ("/generate", "/nothing", "/"):
            answer = await http.options(path, headers={"origin": "https://a.example", **PREFLIGHT})
            assert (answer.status_code, answer.content) == (200, b"")
            assert not any(name.startswith("access-control") for name in answer.headers)
    assert app.num_served == 0


async def test_any_origin_means_those_that_name_none_too(client: Client) -> None:
    async with client(SecurityPolicy(allowed_hosts=None, allowed_origins=("*",))) as http:
        answer = await http.get("/page")
    assert answer.headers["access-control-allow-origin"] == "*" == answer.headers["access-control-expose-headers"]


async def test_headers_of_every_answer(client: Client) -> None:
    async with client(SecurityPolicy(frame_ancestors="https://huggingface.co")) as http:
        page = await http.get("/page")
        answers = [page, await http.get("/v1/nothing"), await http.post("/generate"), await http.get("/health")]
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        assert answer.headers.get_list("referrer-policy") == ["no-referrer"]
    assert page.headers["content-security-policy"].endswith("; frame-ancestors https://huggingface.co")
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert "content-security-policy" not in answers[1].headers


@pytest.mark.parametrize("policy", [LOCAL, KEYED])
async def test_refusals_never_echo(policy: SecurityPolicy) -> None:
    canary = b"c4nary"
    for name in (
        b"host",
        b"origin",
        b"authorization",
        b"content-type",
        b"content-encoding",
        b"content-length",
        b"cookie",
    ):
        headers = [*(pair for pair in JSON_HEADERS if pair[0] != name), (name, canary * 100)]
        for path in ("/generate", "/v1/c4nary", "/gradio_api/upload/c4nary"):
            status, answer, body = await call(policy, headers, path=path)
            assert status >= 400 or name in (b"authorization", b"cookie")
            assert canary not in body and len(body) <= 2048
            assert not any(canary in value for value in answer.values())


@pytest.mark.parametrize(
    ("framed", "https", "scope"),
    [
        (False, False, "SameSite=Strict"),
        (False, True, "SameSite=Strict; Secure"),
        (True, True, "SameSite=None; Secure; Partitioned"),
    ],
)
def test_the_session_survives_the_frame_of_a_space(framed: bool, https: bool, scope: str) -> None:
    from tgi_local.api.sign_in import session_cookie

    cookie = session_cookie("k", is_https=https, is_framed=framed)
    assert cookie.endswith(f"; Path=/; HttpOnly; {scope}")
