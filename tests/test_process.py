"""The life of the process: signals, draining, keys, and what it says when it can not start."""

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faulty_server import Fault
from tests.serving import START_TIMEOUT_S, Server, running
from tests.waiting import PATIENCE_S, wait_until

KEY = "secret-key"


def test_sigterm_drains_tells_everyone_and_exits_zero(tiny_folder: Path) -> None:
    # Steps of 10 ms: the one has an end within the time to drain, the other has none on any machine.
    server = Server("--model-id", str(tiny_folder), "--disable-ui", "-g", "3", program=("-m", "tests.faulty_server"))
    server.wait_ready()
    texts: dict[str, str] = {}

    def stream(name: str, max_tokens: int) -> None:
        body = {"prompt": [Fault.SLOW, 0], "max_tokens": max_tokens, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
            texts[name] = "".join(response.iter_text())

    threads = [threading.Thread(target=stream, args=args) for args in (("short", 20), ("endless", 2000))]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.metric("tgi_request_input_length_count") == 2, every_s=0.001)
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.client.get(f"{server.url}/health").status_code == 503)
    assert server.client.get(f"{server.url}/health").json()["state"] == "draining"
    refused = server.client.post(f"{server.url}/v1/completions", json={"prompt": "x"})
    assert refused.status_code == 503 and refused.headers["retry-after"]
    assert server.process.wait(PATIENCE_S) == 0
    server.stop()
    for thread in threads:
        thread.join()
    short = [json.loads(line[6:]) for line in texts["short"].split("\n\n") if line.startswith("data: {")]
    assert short[-1]["choices"][0]["finish_reason"] == "length" and texts["short"].endswith("data: [DONE]\n\n")
    assert '"error":{"message":' in texts["endless"] and texts["endless"].endswith("data: [DONE]\n\n")
    assert "Traceback" not in server.log


def test_sigterm_while_loading(tiny_folder: Path) -> None:
    server = Server("--model-id", str(tiny_folder), "--disable-ui")
    wait_until(lambda: "Application startup complete" in server.log)
    assert httpx.get(f"{server.url}/health").json()["state"] == "loading"
    assert httpx.post(f"{server.url}/generate", json={"inputs": "x"}).status_code == 503
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_a_broken_checkpoint_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"<html>not weights</html>")
    server = Server("--model-id", str(tmp_path), "--disable-ui")
    assert server.process.wait(START_TIMEOUT_S) == 2
    server.stop()
    (line,) = [line for line in server.log.splitlines() if line.startswith("tgi-local: ")]
    assert str(tmp_path) in line and "Traceback" not in server.log


@pytest.fixture(scope="module")
def keyed(tiny_folder: Path) -> Iterator[Server]:
    with running("--model-id", str(tiny_folder), "--dtype", "float32", env={"API_KEY": KEY}) as server:
        yield server


def test_a_key_guards_every_route_and_the_page(keyed: Server) -> None:
    for path in ("/", "/info", "/metrics", "/v1/models", "/config", "/gradio_api/info", "/theme.css", "/nothing"):
        assert httpx.get(f"{keyed.url}{path}").status_code == 401, path
    for path in ("/", "/generate", "/v1/chat/completions", "/tokenize", "/gradio_api/queue/join"):
        assert httpx.post(f"{keyed.url}{path}", json={}).status_code == 401, path
    assert httpx.get(f"{keyed.url}/health").status_code == 200
    for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
        assert httpx.get(f"{keyed.url}/info", headers=headers).status_code == 200
    assert KEY not in keyed.log


def test_the_page_asks_for_the_key_once(keyed: Server) -> None:
    with httpx.Client(base_url=keyed.url, headers={"accept": "text/html"}) as browser:
        page = browser.get("/")
        assert page.status_code == 401 and "<form" in page.text
        assert browser.post("/sign-in", data={"key": "wrong"}).status_code == 401
        signed_in = browser.post("/sign-in", data={"key": KEY})
        assert signed_in.status_code == 303 and KEY not in signed_in.headers["set-cookie"]
        assert "gradio" in browser.get("/").text


def test_foreign_hosts_and_origins_are_refused(tiny_server: Server) -> None:
    assert httpx.get(f"{tiny_server.url}/info", headers={"host": "evil.example"}).status_code == 421
    body = {"inputs": "x", "parameters": {"max_new_tokens": 1}}
    foreign = httpx.post(f"{tiny_server.url}/generate", json=body, headers={"origin": "https://evil.example"})
    assert foreign.status_code == 403 and "access-control-allow-origin" not in foreign.headers
