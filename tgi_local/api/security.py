"""The one gate in front of every route and of the page: Host, Origin, API key, content type, body and header limits."""

import asyncio
import hashlib
import hmac
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tgi_local.api import sign_in
from tgi_local.api.cors import Cors
from tgi_local.api.error_responses import refusal_body
from tgi_local.api.operations import OPERATIONS
from tgi_local.settings import Settings

RawHeaders = list[tuple[bytes, bytes]]
Identity = Literal["none", "header", "cookie"]

_MAX_HEADERS: Final = 100
_MAX_HEADER_BYTES: Final = 65_536
_PAGE_API_PREFIX: Final = "/gradio_api/"
# How much of a body that is too large is still taken, and for how long.
_MAX_DISCARDED_BYTES: Final = 64 * 1024 * 1024
_DISCARD_S: Final = 2.0
# The chat is text only, so nothing is ever uploaded; the proxy fetches other addresses.
_REFUSED_PREFIXES: Final = ("/gradio_api/upload", "/gradio_api/proxy")
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?")
_ORIGIN: Final = re.compile(rb"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{1,5}))?")
_DEFAULT_PORTS: Final = {b"http": b"80", b"https": b"443"}
# Whoever posts something else than JSON elsewhere under /v1, uploads above all, looks for a route that is not here.
_V1_POSTS: Final = frozenset(operation.path for operation in OPERATIONS if operation.method == "post")
_JSON_TYPE: Final = re.compile(rb"application/([a-z0-9!#$&^_.+-]+\+)?json", re.IGNORECASE)
NOT_FRAMED: Final = "'none'"
# What the page needs and no more: Gradio's index has its configuration in an inline script, and images come from
# nowhere but here, whatever a model writes.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
_TEXT_401: Final = "Missing or wrong API key"
_TEXT_415: Final = "Expected request with `Content-Type: application/json`"
_TEXT_413: Final = "Failed to buffer the request body: length limit exceeded"


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


class Refusal(Exception):
    """A request that goes no further. `text` is empty for an empty body and never echoes the request."""

    def __init__(self, status: int, text: str, error_type: str = "validation", *, is_plain: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.error_type = error_type
        self.is_plain = is_plain  # plain text on native routes: TGI's form for what fails before a handler


class _BodyTooLarge(Exception):
    """Unwinds the app once the gate has answered 413."""


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
            await self._serve_http(scope, receive, send)

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
        exchange = _Exchange(
            scope,
            receive,
            send,
            self._policy,
            self._cors.headers(_values(headers, b"origin"), _values(headers, b"access-control-request-headers")),
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
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except (_BodyTooLarge, ExceptionGroup):
            if not exchange.is_cut_off:
                raise

    async def _serve_sign_in(self, exchange: "_Exchange", headers: RawHeaders, identity: Identity) -> None:
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
        if self._hosts is None:
            return
        hosts = _values(headers, b"host")
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
        if any(value.strip().lower() not in (b"", b"identity") for value in _values(headers, b"content-encoding")):
            raise Refusal(415, "Compressed request bodies are not accepted", is_plain=True)
        is_api_call = scope["method"] == "POST" and not path.startswith(_PAGE_API_PREFIX)
        if is_api_call and not _JSON_TYPE.fullmatch(_media_type(headers)):
            if path.startswith("/v1/") and path not in _V1_POSTS:
                raise Refusal(404, "No such route")
            raise Refusal(415, _TEXT_415, is_plain=True)
        lengths = _values(headers, b"content-length")
        if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
            raise Refusal(400, "Content-Length is not a number", is_plain=True)
        # Counted first: Python refuses to parse a number of thousands of digits.
        if lengths and (len(lengths[0]) > 18 or int(lengths[0]) > self._policy.max_body_bytes):
            raise Refusal(413, _TEXT_413, is_plain=True)

    def _identify(self, headers: RawHeaders) -> Identity:
        """How the request proves that it knows the key; every comparison is of digests, in constant time."""
        if self._policy.api_key is None:
            return "none"
        for name in (b"authorization", b"x-api-key"):
            values = _values(headers, name)
            candidate = _bearer(values[0]) if values and name == b"authorization" else b"".join(values[:1])
            if len(values) == 1 and hmac.compare_digest(_digest(candidate), self._key_digest):
                return "header"
        for cookie_header in _values(headers, b"cookie"):
            for token in sign_in.session_cookies(cookie_header):
                if hmac.compare_digest(_digest(token), self._session_digest):
                    return "cookie"
        return "none"

    def _is_cross_site(self, headers: RawHeaders) -> bool:
        """Whether a browser sent this for another site's page. What is no browser sends neither header."""
        origins = [origin.lower() for origin in _values(headers, b"origin")]
        if len(origins) == 1 and self._cors.is_listed(origins[0]):
            return False
        sites = _values(headers, b"sec-fetch-site")
        if len(origins) > 1 or b"cross-site" in sites:
            return True
        if not origins:
            return False
        if origins[0] == b"null":  # also what a form of our own page sends under `no-referrer`
            return sites != [b"same-origin"]
        return not _is_same_origin(origins[0], _values(headers, b"host"))


class _Exchange:
    """Owns one request's way through the gate: counts its body, completes the headers of its answer."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, policy: SecurityPolicy, cors_headers: RawHeaders
    ) -> None:
        self.scope = scope
        self.is_cut_off = False  # the gate has answered, whatever the app still sends
        self._receive = receive
        self._send = send
        self._policy = policy
        self._cors_headers = cors_headers
        self._is_started = False
        self._num_body_bytes = 0
        self._has_more_body = True

    async def receive(self) -> Message:
        """The app's `receive`; answers 413 itself when a body without a length grows over the limit."""
        if self.is_cut_off:
            raise _BodyTooLarge
        message = await self._receive_counted()
        if self._num_body_bytes <= self._policy.max_body_bytes:
            return message
        if self._is_started:
            return {"type": "http.disconnect"}
        await self.refuse(Refusal(413, _TEXT_413, is_plain=True))
        self.is_cut_off = True
        raise _BodyTooLarge

    async def send(self, message: Message) -> None:
        """The app's `send`, with our headers in every answer."""
        if self.is_cut_off:
            return
        if message["type"] == "http.response.start":
            self._is_started = True
            message = {**message, "headers": self._complete(message.get("headers", ()))}
        await self._send(message)

    async def read_body(self, max_bytes: int) -> bytes:
        """The whole body of a form. Raises `Refusal` when it is longer."""
        body = bytearray()
        while True:
            message = await self._receive()
            body += message.get("body", b"")
            if len(body) > max_bytes:
                raise Refusal(413, _TEXT_413)
            if not message.get("more_body", False):
                return bytes(body)

    async def respond(self, status: int, headers: RawHeaders | None = None, body: bytes = b"") -> None:
        length = (b"content-length", str(len(body)).encode())
        await self.send({"type": "http.response.start", "status": status, "headers": [*(headers or []), length]})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        if status == 413:
            await self._discard()
        await self.send({"type": "http.response.body", "body": b""})

    async def _discard(self) -> None:
        """Take what is still on its way, within bounds: a connection that is closed before is reset, the answer lost."""
        if _values(list(self.scope["headers"]), b"expect"):
            return  # nothing is on its way before it is asked for
        with suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_S):
                while self._has_more_body and self._num_body_bytes < _MAX_DISCARDED_BYTES:
                    await self._receive_counted()

    async def _receive_counted(self) -> Message:
        message = await self._receive()
        self._num_body_bytes += len(message.get("body", b""))
        self._has_more_body = message.get("more_body", False)
        return message

    async def respond_page(self, status: int, message: str | None = None) -> None:
        """The sign-in page."""
        headers = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
        await self.respond(status, [*headers, *_challenge(status)], sign_in.sign_in_page(message))

    async def refuse(self, refusal: Refusal) -> None:
        """The refusal in the form of the route that was asked."""
        if refusal.status == 401 and _wants_page(self.scope):
            await self.respond_page(401)
            return
        content_type, body = refusal_body(
            self.scope["path"], refusal.status, refusal.text, refusal.error_type, is_plain=refusal.is_plain
        )
        headers = [(b"content-type", content_type)] if body else []
        if refusal.status == 413:
            headers.append((b"connection", b"close"))
        await self.respond(refusal.status, [*headers, *_challenge(refusal.status)], body)

    def _complete(self, headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
        """An answer's headers with ours in place; the app has no say in CORS."""
        replaced = (b"x-content-type-options", b"referrer-policy")
        kept = [
            (name, value)
            for name, value in headers
            if name.lower() not in replaced and not name.lower().startswith(b"access-control-")
        ]
        kept += [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
        is_html = any(value.lower().startswith(b"text/html") for value in _values(kept, b"content-type"))
        if is_html and not _values(kept, b"content-security-policy"):
            policy = f"{CONTENT_SECURITY_POLICY}; frame-ancestors {self._policy.frame_ancestors}"
            kept.append((b"content-security-policy", policy.encode()))
        return [*kept, *self._cors_headers]


def _challenge(status: int) -> RawHeaders:
    return [(b"www-authenticate", b"Bearer")] if status == 401 else []


def _wants_page(scope: Scope) -> bool:
    """Whether a person's browser asks for a page, not a script for data."""
    if scope["method"] not in ("GET", "HEAD") or scope["path"].startswith(("/v1/", _PAGE_API_PREFIX)):
        return False
    return any(b"text/html" in accept.lower() for accept in _values(list(scope["headers"]), b"accept"))


def _values(headers: RawHeaders, name: bytes) -> list[bytes]:
    return [value for header, value in headers if header.lower() == name]


def _media_type(headers: RawHeaders) -> bytes:
    """The one content type without its parameters, in lower case; empty when there is none, or several."""
    types = _values(headers, b"content-type")
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
