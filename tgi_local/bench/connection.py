"""HTTP/1.1 to one server: connections that are kept, and answers that are handed on as they come.

h11 on asyncio's transports instead of an HTTP client: the load generator shares its cores with the server, and a
client's work per event is what it takes away.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import h11

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens; `path` is what stands before `/v1`."""

    host: str
    port: int
    path: str = ""
    is_tls: bool = False

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{host}:{self.port}{self.path}"

    @property
    def authority(self) -> str:
        return self.url.split("/")[2]


class ConnectionLostError(Exception):
    """The server closed the connection, or spoke something that is not HTTP, before its answer was complete."""


class HttpClient:
    """Requests to one endpoint, over as many connections as there are requests in flight. `close` it at the end."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        self.endpoint = endpoint
        self._headers = [("host", endpoint.authority), ("accept", "*/*"), *headers.items()]
        self._idle: list[_Connection] = []
        self._tls = ssl.create_default_context() if endpoint.is_tls else None

    async def request(self, method: str, path: str, body: bytes, on_body: Callable[[bytes], None]) -> int:
        """The status of the answer, after all of its body has gone to `on_body`.

        Raises OSError when nobody listens, TimeoutError when connecting takes too long, and ConnectionLostError.
        """
        kept = self._kept()
        if kept is not None:
            try:
                return await self._exchange(kept, method, path, body, on_body)
            except ConnectionLostError:
                # A server may close an idle connection while the next request is on its way.
                if kept.has_answered:
                    raise
        return await self._exchange(await self._connect(), method, path, body, on_body)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _exchange(
        self, connection: "_Connection", method: str, path: str, body: bytes, on_body: Callable[[bytes], None]
    ) -> int:
        headers = [*self._headers, ("content-length", str(len(body)))]
        if body:
            headers.append(("content-type", "application/json"))
        request = h11.Request(method=method, target=f"{self.endpoint.path}{path}", headers=headers)
        try:
            status = await connection.exchange(request, body, on_body)
        except BaseException:
            connection.close()
            raise
        if connection.is_reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return status

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            endpoint = self.endpoint
            _, connection = await loop.create_connection(_Connection, endpoint.host, endpoint.port, ssl=self._tls)
        return connection

    def _kept(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
            connection.close()
        return None


class _Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._transport: asyncio.Transport | None = None
        self._ended: asyncio.Future[int] | None = None
        self._on_body: Callable[[bytes], None] = lambda piece: None
        self._status = 0
        self._is_closed = False
        self.has_answered = False  # whether any byte of the current answer has come

    @property
    def is_reusable(self) -> bool:
        return not self._is_closed and self._http.our_state is h11.IDLE

    async def exchange(self, request: h11.Request, body: bytes, on_body: Callable[[bytes], None]) -> int:
        """The status of the answer, once it has ended. Raises ConnectionLostError."""
        assert self._transport is not None
        self._ended = asyncio.get_running_loop().create_future()
        self._on_body, self._status, self.has_answered = on_body, 0, False
        if self._is_closed:
            raise ConnectionLostError("closed before the request")
        events = [request, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()]
        self._transport.write(b"".join(self._http.send(event) or b"" for event in events))
        return await self._ended

    def close(self) -> None:
        self._is_closed = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.has_answered = True
        try:
            self._http.receive_data(data)
            self._read_events()
        except h11.RemoteProtocolError as error:
            self._fail(f"not HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._is_closed = True
        try:
            # An answer without a length ends with its connection.
            self._http.receive_data(b"")
            self._read_events()
        except h11.RemoteProtocolError:
            pass
        self._fail(str(error) if error else "closed by the server before the answer was complete")

    def _read_events(self) -> None:
        while self._ended is not None and not self._ended.done():
            event = self._http.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            if isinstance(event, h11.Data):
                self._on_body(bytes(event.data))
            elif isinstance(event, h11.Response):
                self._status = event.status_code
            elif isinstance(event, h11.EndOfMessage):
                self._end()
            elif isinstance(event, h11.ConnectionClosed):
                self._fail("closed by the server before the answer was complete")

    def _end(self) -> None:
        assert self._ended is not None
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        self._ended.set_result(self._status)

    def _fail(self, reason: str) -> None:
        self._is_closed = True
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(ConnectionLostError(reason))
