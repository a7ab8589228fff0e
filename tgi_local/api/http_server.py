"""Uvicorn on a socket that is bound already: drains before it closes, and ends with a meaningful exit status."""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from tgi_local.errors import StartupError
from tgi_local.service import Service

MAX_HEADER_BYTES = 65_536
# How long a connection may take to send the head of a request; half-sent bodies are the gate's.
HEAD_TIMEOUT_S = 30.0
# A Space's proxies reach it from addresses of their own network. Whoever else names a client's address is not believed:
# the client itself may have written it.
PROXY_NETWORKS = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,127.0.0.0/8,::1,fc00::/7"
# An idle connection is the client's to close, as in TGI: one that we close while its pool takes it up loses a request.
# Node's pools give it up after 4 or 5 s, proxies after 60, the slowest load balancers after 600.
KEEP_ALIVE_S = 620
# A connection that is still open after its stream got a terminal event is cut.
CLOSE_TIMEOUT_S = 2
FLUSH_S = 0.05
# After an error, an orderly shutdown gets so long; then the process ends without one.
FAILED_EXIT_S = 8.0


def bind(hostname: str, port: int) -> socket.socket:
    """Listen on an address before anything slow happens. Raises StartupError that names what is in the way."""
    family = socket.AF_INET6 if ":" in hostname else socket.AF_INET
    # Named, because asyncio switches Nagle's algorithm off only where it reads TCP here; left on, the first event of a
    # stream waits 40 ms for the client's acknowledgement of the headers.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((hostname, port))
        listener.listen(2048)
    except PermissionError as error:
        raise StartupError(f"port {port} needs privileges; choose one above 1023 with --port") from error
    except OSError as error:
        listener.close()
        reason = "is in use" if error.errno == 98 or "in use" in str(error) else f"can not be used ({error.strerror})"
        raise StartupError(f"{hostname}:{port} {reason}; choose another with --port, or stop what uses it") from error
    listener.set_inheritable(True)
    return listener


class Connection(H11Protocol):
    """Closed when it sends no whole head for `HEAD_TIMEOUT_S`: there are only so many files that a process may open."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        """The time does not begin again with every byte. Between requests `KEEP_ALIVE_S` holds."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class HttpServer(uvicorn.Server):
    """Owns the life of the process from bind to exit. A second signal ends it at once."""

    def __init__(self, app: ASGIApp, service: Service, *, drain_s: float, behind_proxy: bool) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            proxy_headers=behind_proxy,
            forwarded_allow_ips=PROXY_NETWORKS if behind_proxy else None,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
            **_parser_options(),
        )
        super().__init__(config)
        self._service = service
        self._drain_s = drain_s
        self.exit_status = 0
        self._has_window = False

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal or an error. After an error this does not return: see `_leave`."""
        super().run(sockets)
        if self.exit_status and not self._has_window:
            self._leave()

    def run_beside(self, listener: socket.socket, foreground: Callable[[], None]) -> int:
        """Serve from another thread while `foreground` has the main one, as windows need it; the exit status."""
        self._has_window = True
        thread = threading.Thread(target=self.run, args=([listener],), name="server")
        thread.start()
        try:
            foreground()
        finally:
            self.should_exit = True
            thread.join()
        return self.exit_status

    def fail(self, exit_status: int) -> None:
        """Shut down because of an error."""
        self.exit_status = exit_status
        self.should_exit = True
        if not self._has_window:  # a window stays until its owner has seen what it says
            backstop = threading.Timer(FAILED_EXIT_S, self._leave)
            backstop.daemon = True
            backstop.start()

    def _leave(self) -> None:
        """End the process at once: a model that hangs may keep the interpreter from ending, now or as it shuts down."""
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.exit_status)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not passed on to uvicorn's record of signals: it would raise them again and spoil the exit status.
        if self.should_exit:
            self.force_exit = True
            signal.signal(sig, signal.SIG_DFL)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain = asyncio.ensure_future(self._service.close(0.0 if self.exit_status else self._drain_s))
        while not drain.done() and not self.force_exit:
            await asyncio.wait([drain], timeout=0.1)
        drain.cancel()
        # By now every generation has had its terminal event. What is left are open pages, whose heartbeats never end.
        await asyncio.sleep(FLUSH_S)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.close()
        await super().shutdown(sockets)


def _parser_options() -> dict[str, Any]:
    """The pure-Python parser lets its header limit be set; httptools is faster and limits headers itself."""
    return {"http": Connection, "h11_max_incomplete_event_size": MAX_HEADER_BYTES}
