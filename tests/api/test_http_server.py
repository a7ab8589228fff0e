"""The listening socket: what is in the way is named, and nothing delays small writes."""

import asyncio
import socket

import pytest
from fastapi import FastAPI

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


def test_idle_connections_are_left_to_the_client() -> None:
    """Closed here after uvicorn's 5 s, one that a pool of Node's takes up at that moment is reset under its request."""
    server = HttpServer(FastAPI(), Service(Metrics()), drain_s=0, behind_proxy=False)
    assert server.config.timeout_keep_alive > 600, "what the slowest load balancers keep"


def test_a_port_in_use_is_named() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(StartupError, match=f"{taken.getsockname()[1]} is in use"):
        bind("127.0.0.1", taken.getsockname()[1])
