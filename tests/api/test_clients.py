"""Clients of other kinds than those in `tests/clients`, and requests that only some of many clients send."""

import json
import re
from typing import Any

import httpx
import openai
import pytest

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


def test_vllms_benchmark_of_tgi_gets_every_token(demo_server: Server) -> None:
    parameters = {"best_of": 1, "do_sample": True, "temperature": 0.01, "top_p": 0.99, "truncate": 16, "seed": 1}

    def length(**more: bool) -> int:
        body = {"inputs": "Hello", "parameters": {**parameters, "max_new_tokens": 40, **more}}
        return demo_server.client.post(f"{demo_server.url}/generate_stream", json=body).text.count("data:")

    assert length(ignore_eos_token=True) == 40 > length(ignore_eos_token=False)


@pytest.mark.parametrize("server", ["demo_server", "tiny_server"])  # with a page and without
def test_uploads_are_told_that_there_is_no_such_route(server: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(server).url
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        for call in (
            lambda: client.files.create(file=("a.txt", b"text"), purpose="assistants"),
            lambda: client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"sound")),
            lambda: client.embeddings.create(model="tgi", input="text"),
        ):
            with pytest.raises(openai.NotFoundError, match="No such route") as caught:
                call()
            assert caught.value.type == "invalid_request_error"


def _offering(path: str, name: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {}}
    function = {"name": name, "parameters": schema}
    if path.endswith("/responses"):
        return {"input": "hi", "max_output_tokens": 1, "tools": [{"type": "function", **function}]}
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    if path.endswith("/messages"):
        return {**chat, "model": "tgi", "tools": [{"name": name, "input_schema": schema}]}
    return {**chat, "tools": [{"type": "function", "function": function}]}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_names_of_tools_are_as_long_as_anthropics(demo_server: Server, path: str) -> None:
    """Claude Code and editors join a server's and a tool's name of MCP: `mcp__server__tool`."""
    for length, status in ((128, 200), (129, 400)):
        answer = demo_server.client.post(demo_server.url + path, json=_offering(path, "m" * length))
        assert answer.status_code == status, answer.text


TOO_LONG = "count " * 3000  # of the 2048 tokens that fit


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("max_tokens", [None, 100])
def test_agents_are_told_of_a_full_context_in_words_they_know(
    demo_server: Server, path: str, max_tokens: int | None
) -> None:
    """OpenCode, pi, Continue, Qwen Code and Claude Code shorten the conversation when they read these, else give up."""
    prompts = {"/v1/completions": {"prompt": TOO_LONG}, "/v1/responses": {"input": TOO_LONG}}
    body: dict[str, Any] = dict(prompts.get(path, {"messages": [{"role": "user", "content": TOO_LONG}]}))
    limit = "max_output_tokens" if path.endswith("/responses") else "max_tokens"
    body |= {"model": "tgi", limit: max_tokens or (4 if path.endswith("/messages") else None)}
    answer = demo_server.client.post(demo_server.url + path, json=body)
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400
    if path.endswith("/messages"):
        assert re.fullmatch(r"prompt is too long: \d+ tokens > 2047 maximum", message)
    else:
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert message.startswith("Input validation error: `inputs` ")  # by TGI's words litellm tells
        assert message.endswith("This model's maximum context length is 2048 tokens.")


def test_a_prompt_that_fits_without_its_answer_is_told_so(demo_server: Server) -> None:
    """Claude Code reads the three numbers, and asks for fewer tokens."""
    long = {"model": "tgi", "max_tokens": 1000, "messages": [{"role": "user", "content": "count " * 1500}]}
    message = demo_server.client.post(f"{demo_server.url}/v1/messages", json=long).json()["error"]["message"]
    found = re.match(r"input length and `max_tokens` exceed context limit: (\d+) \+ (\d+) > (\d+)", message)
    assert found, message
    prompt, new, limit = map(int, found.groups())
    assert (new, limit) == (1000, 2048) and prompt < limit < prompt + new


def test_native_routes_say_it_in_tgis_words_alone(demo_server: Server) -> None:
    answer = demo_server.client.post(f"{demo_server.url}/generate", json={"inputs": TOO_LONG})
    assert answer.status_code == 422
    assert re.fullmatch(r"Input validation error: `inputs` [^.]+\. Given: \d+[^.]*", answer.json()["error"])
