"""The listening socket: what is in the way is named, and nothing delays small writes."""

import asyncio
import socket

import pytest
from fastapi import FastAPI
from httpx._config import DEFAULT_LIMITS

from tgi_local.api.http_server import HttpServer, bind
from tgi_local.errors import StartupError
from tgi_local.metrics import Metrics
from tgi_local.service import Service


async def test_small_writes_leave_at_once() -> None:
    """Nagle's algorithm would hold the first event of a stream until the client acknowledges the headers."""
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = bind("127.0.0.1", 0)
    server = await asyncio.start_server(on_connect, sock=listener)
    async with server:
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await accepted != 0
        writer.close()
        await writer.wait_closed()


def test_a_port_in_use_is_named() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(StartupError, match=f"{taken.getsockname()[1]} is in use"):
        bind("127.0.0.1", taken.getsockname()[1])


def test_a_client_closes_an_unused_connection_first() -> None:
    """Else the server may close it in the very moment in which a request comes, which is then reset."""
    server = HttpServer(FastAPI(), Service(Metrics()), drain_s=1.0, behind_proxy=False)
    load_balancer_s = 600
    assert server.config.timeout_keep_alive > max(DEFAULT_LIMITS.keepalive_expiry or 0, load_balancer_s)
