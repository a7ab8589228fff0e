"""Clients of other kinds than those in `tests/clients`: Gradio's, and a connection kept as browsers keep it."""

import json

import httpx

from tests.serving import Server


def test_gradio_client_reaches_the_page(demo_server: Server) -> None:
    from gradio_client import Client

    client = Client(demo_server.url, verbose=False)
    answer = client.predict("Count to 5", api_name="/chat")
    assert "1, 2, 3, 4, 5" in json.dumps(answer)
    client.close()


def test_browser_like_keep_alive_connection(demo_server: Server) -> None:
    with httpx.Client(base_url=demo_server.url) as client:
        for path in ("/health", "/info", "/v1/models", "/metrics", "/"):
            assert client.get(path).status_code == 200
