"""The one gate in front of every route and of the page: Host, Origin, API key, content type, body and header limits."""

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final, Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from tgi_local.api import sign_in
from tgi_local.api.cors import Cors
from tgi_local.api.exchange import (
    NOT_FRAMED,
    PAGE_API_PREFIX,
    TEXT_413,
    BodiesOnTheWay,
    CutOff,
    Exchange,
    RawHeaders,
    Refusal,
    header_values,
)
from tgi_local.api.operations import OPERATIONS
from tgi_local.api.request_target import in_origin_form
from tgi_local.settings import Settings

Identity = Literal["none", "header", "cookie"]

_MAX_HEADERS: Final = 100
_MAX_HEADER_BYTES: Final = 65_536
# The chat is text only, so nothing is ever uploaded; the proxy fetches other addresses.
_REFUSED_PREFIXES: Final = ("/gradio_api/upload", "/gradio_api/proxy")
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?")
_ORIGIN: Final = re.compile(rb"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{1,5}))?")
_DEFAULT_PORTS: Final = {b"http": b"80", b"https": b"443"}
# Whoever posts something else than JSON elsewhere under /v1, uploads above all, looks for a route that is not here.
_V1_POSTS: Final = frozenset(operation.path for operation in OPERATIONS if operation.method == "post")
_JSON_TYPE: Final = re.compile(rb"application/([a-z0-9!#$&^_.+-]+\+)?json", re.IGNORECASE)
_TEXT_401: Final = "Missing or wrong API key"
_TEXT_415: Final = "Expected request with `Content-Type: application/json`"
_TEXT_FRAMING: Final = "A request has either a Content-Length or a Transfer-Encoding"


@dataclass(frozen=True, slots=True)
class SecurityPolicy:
    """What the gate lets through. `allowed_hosts` are names without a port; None serves any Host."""

    api_key: str | None = None
    allowed_hosts: tuple[str, ...] | None = ("localhost", "127.0.0.1", "[::1]")
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int = 2_000_000
    public_paths: frozenset[str] = frozenset({"/health", "/ping"})
    frame_ancestors: str = NOT_FRAMED


def policy_for(settings: Settings) -> SecurityPolicy:
    """Host names guard the keyless loopback case; with a key, or on a platform that guards us, any name is served."""
    is_keyless_loopback = settings.api_key is None and settings.is_loopback
    return SecurityPolicy(
        api_key=settings.api_key,
        allowed_hosts=("localhost", "127.0.0.1", "[::1]", settings.local_host) if is_keyless_loopback else None,
        allowed_origins=tuple(settings.cors_allow_origin),
        max_body_bytes=settings.payload_limit,
        public_paths=frozenset({"/health", "/ping", settings.aip_health_route or "/health"}),
        frame_ancestors="https://huggingface.co" if settings.is_space else NOT_FRAMED,
    )


class SecurityGate:
    """Owns the decision whether a request reaches the app. Pure ASGI; decides on `scope["path"]` only."""

    def __init__(self, app: ASGIApp, policy: SecurityPolicy) -> None:
        if policy.api_key == "":
            raise ValueError("an empty API key guards nothing")
        self._app = app
        self._policy = policy
        hosts = policy.allowed_hosts
        self._hosts = None if hosts is None else frozenset(_host_name(host) for host in hosts)
        self._cors = Cors(policy.allowed_origins)
        self._bodies = BodiesOnTheWay(policy.max_body_bytes)
        self._key_digest = self._session_digest = b""
        if policy.api_key is not None:
            self._key_digest = _digest(policy.api_key.encode())
            self._session_digest = _digest(sign_in.session_token(policy.api_key).encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve_http(in_origin_form(scope), receive, send)

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: RawHeaders = list(scope["headers"])
        try:
            self._check_headers(headers)
            identity = self._identify(headers)
            self._check_origin(scope, headers, identity)
            self._check_key(scope, identity)
        except Refusal:
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: RawHeaders = list(scope["headers"])
        exchange = Exchange(
            scope,
            receive,
            send,
            self._policy.max_body_bytes,
            self._policy.frame_ancestors,
            self._bodies,
            self._cors.headers(
                header_values(headers, b"origin"), header_values(headers, b"access-control-request-headers")
            ),
        )
        try:
            self._check_headers(headers)
            if scope["method"] == "OPTIONS":
                # As TGI, on any path. A browser goes on only if the answer names its page's origin.
                await exchange.respond(200)
                return
            identity = self._identify(headers)
            self._check_origin(scope, headers, identity)
            if self._policy.api_key is not None and scope["path"] == sign_in.SIGN_IN_PATH:
                await self._serve_sign_in(exchange, headers, identity)
                return
            self._check_key(scope, identity)
            self._check_body_headers(scope, headers)
        except Refusal as refusal:
            await exchange.refuse(refusal)
            return
        except CutOff:
            return
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except (CutOff, ExceptionGroup):
            if not exchange.is_cut_off:
                raise
        finally:
            exchange.end()

    async def _serve_sign_in(self, exchange: Exchange, headers: RawHeaders, identity: Identity) -> None:
        if exchange.scope["method"] == "POST":
            if _media_type(headers) != sign_in.FORM_CONTENT_TYPE:
                raise Refusal(415, "A sign-in is a posted form")
            key = sign_in.read_form_key(await exchange.read_body(sign_in.MAX_FORM_BYTES))
            if not hmac.compare_digest(_digest(key.encode()), self._key_digest):
                await exchange.respond_page(401, "That is not the key of this server.")
                return
            is_https = exchange.scope.get("scheme") == "https"
            is_framed = self._policy.frame_ancestors != NOT_FRAMED
            cookie = sign_in.session_cookie(self._policy.api_key or "", is_https=is_https, is_framed=is_framed)
            await exchange.respond(303, [(b"location", b"/"), (b"set-cookie", cookie.encode())])
        elif identity == "none":
            raise Refusal(401, _TEXT_401, "authentication")
        else:
            await exchange.respond(303, [(b"location", b"/")])

    def _check_headers(self, headers: RawHeaders) -> None:
        if len(headers) > _MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > _MAX_HEADER_BYTES:
            raise Refusal(431, "Request header fields are too large")
        if header_values(headers, b"transfer-encoding") and header_values(headers, b"content-length"):
            # A proxy before us may go by the other one, and take what follows for another request.
            raise Refusal(400, _TEXT_FRAMING, is_plain=True, closes=True)
        if self._hosts is None:
            return
        hosts = header_values(headers, b"host")
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None or match[1].lower() not in self._hosts:
            raise Refusal(421, "This server does not answer for this Host", "misdirected_request")

    def _check_origin(self, scope: Scope, headers: RawHeaders, identity: Identity) -> None:
        """Refuse what a foreign page makes a browser send; a key in a header proves that the page knows it."""
        is_safe = scope["type"] == "http" and scope["method"] in _SAFE_METHODS
        relies_on_browser = self._policy.api_key is None or identity == "cookie"
        if is_safe or not (relies_on_browser or scope["path"] == sign_in.SIGN_IN_PATH):
            return
        if self._is_cross_site(headers):
            raise Refusal(403, "Cross-site requests are not allowed", "forbidden")

    def _check_key(self, scope: Scope, identity: Identity) -> None:
        if self._policy.api_key is None or identity != "none":
            return
        if scope["path"] not in self._policy.public_paths or scope.get("method") not in ("GET", "HEAD"):
            raise Refusal(401, _TEXT_401, "authentication")

    def _check_body_headers(self, scope: Scope, headers: RawHeaders) -> None:
        path: str = scope["path"]
        if path.startswith(_REFUSED_PREFIXES):
            raise Refusal(403, "Uploads are not accepted", "forbidden")
        if any(
            value.strip().lower() not in (b"", b"identity") for value in header_values(headers, b"content-encoding")
        ):
            raise Refusal(415, "Compressed request bodies are not accepted", is_plain=True)
        is_api_call = scope["method"] == "POST" and not path.startswith(PAGE_API_PREFIX)
        if is_api_call and not _JSON_TYPE.fullmatch(_media_type(headers)):
            if path.startswith("/v1/") and path not in _V1_POSTS:
                raise Refusal(404, "No such route")
            raise Refusal(415, _TEXT_415, is_plain=True)
        lengths = header_values(headers, b"content-length")
        if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
            raise Refusal(400, "Content-Length is not a number", is_plain=True)
        # Counted first: Python refuses to parse a number of thousands of digits.
        if lengths and (len(lengths[0]) > 18 or int(lengths[0]) > self._policy.max_body_bytes):
            raise Refusal(413, TEXT_413, is_plain=True, closes=True)

    def _identify(self, headers: RawHeaders) -> Identity:
        """How the request proves that it knows the key; every comparison is of digests, in constant time."""
        if self._policy.api_key is None:
            return "none"
        for name in (b"authorization", b"x-api-key"):
            values = header_values(headers, name)
            candidate = _bearer(values[0]) if values and name == b"authorization" else b"".join(values[:1])
            if len(values) == 1 and hmac.compare_digest(_digest(candidate), self._key_digest):
                return "header"
        for cookie_header in header_values(headers, b"cookie"):
            for token in sign_in.session_cookies(cookie_header):
                if hmac.compare_digest(_digest(token), self._session_digest):
                    return "cookie"
        return "none"

    def _is_cross_site(self, headers: RawHeaders) -> bool:
        """Whether a browser sent this for another site's page. What is no browser sends neither header."""
        origins = [origin.lower() for origin in header_values(headers, b"origin")]
        if len(origins) == 1 and self._cors.is_listed(origins[0]):
            return False
        sites = header_values(headers, b"sec-fetch-site")
        if len(origins) > 1 or b"cross-site" in sites:
            return True
        if not origins:
            return False
        if origins[0] == b"null":  # also what a form of our own page sends under `no-referrer`
            return sites != [b"same-origin"]
        return not _is_same_origin(origins[0], header_values(headers, b"host"))


def _media_type(headers: RawHeaders) -> bytes:
    """The one content type without its parameters, in lower case; empty when there is none, or several."""
    types = header_values(headers, b"content-type")
    return types[0].partition(b";")[0].strip().lower() if len(types) == 1 else b""


def _bearer(authorization: bytes) -> bytes:
    scheme, _, credentials = authorization.partition(b" ")
    return credentials if scheme.lower() == b"bearer" else b""


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _host_name(host: str) -> bytes:
    """A configured name as it stands in a Host header: IPv6 in brackets."""
    name = host.lower()
    return (f"[{name}]" if ":" in name and not name.startswith("[") else name).encode()


def _is_same_origin(origin: bytes, hosts: list[bytes]) -> bool:
    """Whether the page came from this server; a proxy may have ended its TLS, so the scheme is not compared."""
    page = _ORIGIN.fullmatch(origin)
    host = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if page is None or host is None:
        return False
    default_port = _DEFAULT_PORTS[page[1]]
    return page[2] == host[1].lower() and (page[3] or default_port) == (host[2] or default_port)
