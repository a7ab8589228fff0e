"""An HTTP/1.1 client of a dozen lines that hides nothing: the exact header and body bytes of an answer."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.serving import Server

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Answer:
    """`headers` as they came, names in lower case; `body` without chunked framing."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for header, value in self.headers if header == name]

    def header(self, name: str) -> str | None:
        """The one value; None when there is none."""
        values = self.values(name)
        assert len(values) <= 1, f"{name}: {values}"
        return values[0] if values else None

    @property
    def x_headers(self) -> set[str]:
        """TGI's own; not those that browsers ask for."""
        return {name for name, _ in self.headers if name.startswith("x-") and name != "x-content-type-options"}

    @property
    def json(self) -> Any:
        assert self.header("content-type") == "application/json", self.headers
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of a stream, each frame exactly as TGI writes it; `[DONE]` stays text."""
        assert self.status == 200 and self.header("content-type") == "text/event-stream", (self.status, self.body)
        *frames, rest = self.body.split(b"\n\n")
        assert rest == b""
        data = [frame for frame in frames if frame != b":"]
        assert all(frame.startswith(b"data: ") and b"\n" not in frame for frame in data)
        return [item if (item := frame[6:]) == b"[DONE]" else json.loads(item) for frame in data]


def request_bytes(method: str, path: str, host: str, headers: dict[str, str], body: bytes | None) -> bytes:
    if body is not None:
        headers = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in {"host": host, **headers}.items())]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1") + (body or b"")


def connect(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname or "", address.port or 0), TIMEOUT_S)


def open_request(
    server: Server, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> socket.socket:
    """A connection on which the request is sent. `body`: bytes as they are, anything else as JSON."""
    encoded = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection = connect(server)
    connection.sendall(request_bytes(method, path, urlsplit(server.url).netloc, headers or {}, encoded))
    return connection


def pieces(connection: socket.socket) -> Iterator[bytes]:
    """What comes, as it comes."""
    with connection:
        while piece := connection.recv(65_536):
            yield piece


def call(server: Server, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    received = b"".join(pieces(open_request(server, method, path, body, headers)))
    return parse(received)


def post(server: Server, path: str, body: Any, **headers: str) -> Answer:
    return call(server, "POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})


def get(server: Server, path: str, **headers: str) -> Answer:
    return call(server, "GET", path, None, {name.replace("_", "-"): value for name, value in headers.items()})


def parse(received: bytes) -> Answer:
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    answer = Answer(int(status_line.split(" ")[1]), [(name.lower(), value) for name, value in pairs], body)
    if answer.header("transfer-encoding") == "chunked":
        return Answer(answer.status, answer.headers, _joined(body))
    return answer


def _joined(chunked: bytes) -> bytes:
    body = b""
    while chunked:
        size, _, rest = chunked.partition(b"\r\n")
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n"
        body, chunked = body + rest[:length], rest[length + 2 :]
    return body
