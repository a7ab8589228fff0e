"""Whom a request is for: by address, through the proxies that are ours and no others, and as the page says."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.in_process import InProcess, serving
from tgi_local.api.callers import VISITOR_HEADER, Callers
from tgi_local.api.http_server import HttpServer
from tgi_local.metrics import Metrics
from tgi_local.open_generation import OpenGeneration
from tgi_local.service import Admission, Service
from tgi_local.types import Caller, GenerationRequest
from ui import client as page_client


def scope(address: str | None, *headers: tuple[str, str]) -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return {"type": "http", "client": None if address is None else (address, 1234), "headers": raw}


def principal(address: str | None, *headers: tuple[str, str], callers: Callers | None = None) -> str:
    return (callers or Callers()).identify(scope(address, *headers), isolates=False).principal


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("203.0.113.5", "203.0.113.5"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::ffff:203.0.113.5", "203.0.113.5"),
        ("testclient", "testclient"),
        (None, ""),
    ],
)
def test_a_caller_is_an_address(address: str | None, expected: str) -> None:
    assert principal(address) == expected


def test_what_clients_write_about_themselves_is_not_believed() -> None:
    for name in ("x-forwarded-for", "x-real-ip", "forwarded", "user-agent", "authorization", "x-api-key"):
        assert principal("203.0.113.5", (name, "198.51.100.7")) == "203.0.113.5"


def test_the_page_names_its_visitors_and_nobody_else_does() -> None:
    callers = Callers()
    good = (VISITOR_HEADER, f"{callers.page_token} 198.51.100.7")
    assert principal("127.0.0.1", good, callers=callers) == "198.51.100.7"
    assert principal("127.0.0.1", (VISITOR_HEADER, f"{callers.page_token} 2001:db8::1"), callers=callers) == (
        "2001:db8::/64"
    )
    for bad in ("198.51.100.7", " 198.51.100.7", f"{callers.page_token[:-1]} 198.51.100.7", "", "é 198.51.100.7"):
        assert principal("127.0.0.1", (VISITOR_HEADER, bad), callers=callers) == "127.0.0.1"
    assert principal("127.0.0.1", good, good, callers=callers) == "127.0.0.1", "twice is once too often"
    assert principal("127.0.0.1", (VISITOR_HEADER, callers.page_token), callers=callers) == "127.0.0.1"
    assert callers.page_token != Callers().page_token
    assert VISITOR_HEADER == page_client.VISITOR_HEADER


def test_only_strangers_are_kept_apart_in_the_prefix_cache() -> None:
    for isolates, salt in ((False, ""), (True, "203.0.113.5")):
        assert Callers().identify(scope("203.0.113.5"), isolates=isolates) == Caller("203.0.113.5", salt)


# Through proxies.


@pytest.mark.parametrize(
    ("behind_proxy", "peer", "forwarded_for", "expected"),
    [
        (True, "10.16.3.80", "203.0.113.5", "203.0.113.5"),
        (True, "10.16.3.80", "203.0.113.5, 10.20.1.1", "203.0.113.5"),
        (True, "10.16.3.80", "198.51.100.7, 203.0.113.5, 10.20.1.1", "203.0.113.5"),  # the first is the client's own
        (True, "10.16.3.80", "127.0.0.1, 203.0.113.5", "203.0.113.5"),
        (True, "10.16.3.80", None, "10.16.3.80"),
        (True, "203.0.113.9", "198.51.100.7", "203.0.113.9"),
        (False, "10.16.3.80", "203.0.113.5", "10.16.3.80"),
        (False, "127.0.0.1", "203.0.113.5", "127.0.0.1"),
    ],
)
async def test_a_space_is_reached_through_proxies_of_its_own_network(
    behind_proxy: bool, peer: str, forwarded_for: str | None, expected: str
) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    server = HttpServer(app, Service(Metrics()), drain_s=0, behind_proxy=behind_proxy)
    server.config.load()
    headers = [] if forwarded_for is None else [("x-forwarded-for", forwarded_for)]
    request: Any = scope(peer, *headers, ("x-forwarded-proto", "https")) | {"scheme": "http"}
    await server.config.loaded_app(request, None, None)  # type: ignore[arg-type]
    assert Callers().identify(seen[0], isolates=False).principal == expected
    assert seen[0]["scheme"] == ("https" if behind_proxy and peer.startswith("10.") else "http")


# On every route.

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
NATIVE = {"inputs": "hi", "parameters": {"max_new_tokens": 2}}
ROUTES = [
    ("/generate", NATIVE),
    ("/generate_stream", NATIVE),
    ("/", NATIVE),
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", {"prompt": ["hi", "ho"], "max_tokens": 2, "n": 2}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 16}),
    ("/v1/messages", CHAT),
    ("/invocations", CHAT),
    ("/vertex", {"instances": [NATIVE, CHAT]}),
    (
        "/v2/models/m/versions/1/infer",
        {"id": "1", "inputs": [{"name": "text", "data": list(b"hi")}], "outputs": [{"name": "answer"}]},
    ),
]


@pytest.fixture
async def server(tiny_folder: Path) -> AsyncIterator[InProcess]:
    async with serving(tiny_folder) as running:
        yield running


@pytest.mark.parametrize(("path", "body"), ROUTES, ids=[path for path, _ in ROUTES])
async def test_every_route_says_whom_a_request_is_for(
    path: str, body: dict[str, Any], server: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[GenerationRequest] = []
    open_generation = server.service.open

    def note(requests: Sequence[GenerationRequest], admission: Admission | None = None) -> OpenGeneration:
        opened.extend(requests)
        return open_generation(requests, admission)

    monkeypatch.setattr(server.service, "open", note)
    async with server.client_at("203.0.113.5") as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert opened and {request.principal for request in opened} == {"203.0.113.5"}


async def cached(server: InProcess, address: str, prompt: list[int]) -> int:
    async with server.client_at(address) as client:
        answer = await client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1})
    number: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return number


@pytest.mark.parametrize("isolates_callers", [False, True])
async def test_what_a_stranger_has_sent_can_not_be_learned_from_the_cache(
    isolates_callers: bool, tiny_folder: Path
) -> None:
    secret = list(range(3, 44))
    async with serving(tiny_folder, isolates_callers=isolates_callers) as server:
        assert await cached(server, "203.0.113.5", secret) == 0
        assert await cached(server, "203.0.113.5", secret) == 40
        assert await cached(server, "198.51.100.7", secret) == (0 if isolates_callers else 40)
