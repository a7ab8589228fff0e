"""A client that goes away frees its sequence: streaming, waiting for a plain answer, and while queued."""

import json
import socket
import time
from urllib.parse import urlsplit

import pytest

from tests.serving import Server
from tests.waiting import wait_until


def send(server: Server, path: str, body: dict[str, object]) -> socket.socket:
    """A raw request; the caller closes the socket without ceremony."""
    address = urlsplit(server.url)
    client = socket.create_connection((address.hostname, address.port))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return client


def wait_for(server: Server, name: str, value: float, **labels: str) -> None:
    """Until a metric has `value`."""
    wait_until(
        lambda: server.metric(name, **labels) == value,
        lambda: f"{name} is {server.metric(name, **labels)}, not {value}",
    )


LONG = 4000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": LONG, "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": LONG}),
        ("/v1/completions", {"prompt": ["x", "y"], "max_tokens": LONG, "n": 2, "stream": True}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": LONG, "stream": True}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": LONG}),
        ("/v1/responses", {"input": "x", "max_output_tokens": LONG, "stream": True}),
        ("/v1/responses", {"input": "x", "max_output_tokens": LONG}),
        ("/generate", {"inputs": "x", "parameters": {"max_new_tokens": LONG}}),
        ("/generate_stream", {"inputs": "x", "parameters": {"max_new_tokens": LONG}}),
    ],
)
def test_client_gone(tiny_server: Server, path: str, body: dict[str, object]) -> None:
    dropped = tiny_server.metric("tgi_request_failure", err="dropped")
    client = send(tiny_server, path, body)
    num_sequences = 4 if body.get("n") else 1
    wait_for(tiny_server, "tgi_batch_current_size", num_sequences)
    if body.get("stream") or path == "/generate_stream":
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    client.close()
    # A request that ran to its end is not counted so.
    wait_for(tiny_server, "tgi_request_failure", dropped + num_sequences, err="dropped")
    wait_for(tiny_server, "tgi_batch_current_size", 0)
    assert tiny_server.metric("tgi_kv_blocks_used") == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate", "/v1/messages", "/invocations", "/vertex"])
@pytest.mark.parametrize("num_sent", [0, 20])
def test_client_gone_in_the_middle_of_its_request(tiny_server: Server, path: str, num_sent: int) -> None:
    """Nothing is counted, and the log says nothing of it: see what the fixture checks."""
    count = tiny_server.metric("tgi_request_count")
    address = urlsplit(tiny_server.url)
    with socket.create_connection((address.hostname, address.port)) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode() + b"x" * num_sent)
        time.sleep(0.05)
    time.sleep(0.05)
    assert tiny_server.metric("tgi_request_count") == count


def test_many_clients_gone_while_queued(tiny_server: Server) -> None:
    body: dict[str, object] = {"inputs": "x" * 2000, "parameters": {"max_new_tokens": 2000}}
    clients = [send(tiny_server, "/generate", body) for _ in range(60)]
    time.sleep(0.3)  # some run, some wait, some are still being tokenized
    for client in clients:
        client.close()
    wait_for(tiny_server, "tgi_batch_current_size", 0)
    wait_for(tiny_server, "tgi_queue_size", 0)
