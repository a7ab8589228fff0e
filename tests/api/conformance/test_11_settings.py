"""A container that TGI's users start by variables alone: names, limits, key, origins, and what its log says."""

import itertools
import json
from typing import Any

import pytest

from tests.api.conformance.conftest import KEY
from tests.api.conformance.raw import Answer, call, get, post
from tests.serving import Server
from tgi_local.settings import load_settings

A, B, EVIL = "https://a.example", "https://b.example", "https://evil.example"


def test_limits_come_from_the_environment(limited_server: Server) -> None:
    info = get(limited_server, "/info", x_api_key=KEY).json
    assert (info["max_concurrent_requests"], info["max_best_of"], info["max_stop_sequences"]) == (2, 1, 1)
    assert (info["max_input_tokens"], info["max_input_length"], info["max_total_tokens"]) == (32, 32, 64)
    assert (info["max_client_batch_size"], info["validation_workers"]) == (1, 1)
    assert info["model_dtype"] == "float32"
    many = post(limited_server, "/v1/completions", {"prompt": ["x", "y"]}, x_api_key=KEY)
    want = "Number of prompts exceeds the maximum allowed batch size of 1"
    assert (many.status, many.json["error"]["message"], many.json["error_type"]) == (400, want, "batch size exceeded")


def test_the_length_of_an_answer_is_limited_by_the_context_alone(limited_server: Server) -> None:
    body = {"inputs": "x", "parameters": {"details": True, "ignore_eos": True}}
    details = post(limited_server, "/generate", body, x_api_key=KEY).json["details"]
    assert (details["finish_reason"], details["generated_tokens"]) == ("length", 62), "64 less BOS and one token"


def test_a_name_in_hostname_breaks_nothing(limited_server: Server) -> None:
    assert limited_server.url.startswith("http://127.0.0.1:"), "and opens nothing"
    assert "HOSTNAME a1b2c3d4e5f6 is no IP address: listening on 127.0.0.1" in limited_server.log


def test_what_changes_nothing_is_said_in_the_log(limited_server: Server) -> None:
    for flag in ("--waiting-served-ratio", "--prometheus-port", "--usage-stats"):
        assert f"{flag} ({flag[2:].replace('-', '_').upper()}) has no effect here" in limited_server.log
    lines = [line for line in limited_server.log.splitlines() if line]
    assert all(isinstance(json.loads(line), dict) for line in lines), "JSON_OUTPUT"
    assert KEY not in limited_server.log


# CORS_ALLOW_ORIGIN.


def answers(server: Server, **headers: str) -> list[Answer]:
    """One of each kind: fine, refused by a handler, before one, without a key, unknown, a stream, a preflight."""
    key = {"x-api-key": KEY, **headers}
    body: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 1}}
    return [
        get(server, "/health", **headers),
        call(server, "POST", "/generate", {"inputs": ""}, key),
        call(server, "POST", "/generate", b"{", key),
        call(server, "POST", "/generate", body, headers),
        call(server, "GET", "/nothing", None, key),
        call(server, "POST", "/generate_stream", body, key),
        call(server, "OPTIONS", "/generate", None, headers),
    ]


@pytest.mark.parametrize(("origin", "allowed"), [(A, A), (B, B), (EVIL, None), ("null", None), (None, None)])
def test_every_answer_names_a_listed_origin_and_no_other(
    limited_server: Server, origin: str | None, allowed: str | None
) -> None:
    for answer in answers(limited_server, **({} if origin is None else {"origin": origin})):
        assert answer.header("access-control-allow-origin") == allowed, answer
        assert answer.header("vary") == "origin, access-control-request-method, access-control-request-headers"
        assert answer.header("access-control-allow-credentials") is None
        # Better than TGI: pages may send a key, and read TGI's own headers.
        if allowed is not None:
            assert "authorization" in (answer.header("access-control-allow-headers") or "")
            assert answer.header("access-control-expose-headers") == "*"


def test_a_preflight_is_answered_for_what_it_asks(limited_server: Server) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-custom"}
    answer = call(limited_server, "OPTIONS", "/v1/chat/completions", None, {"origin": A, **asked})
    assert (answer.status, answer.body) == (200, b"")
    assert answer.header("access-control-allow-headers") == "authorization, x-custom"
    assert {"GET", "POST"} <= set((answer.header("access-control-allow-methods") or "").split(", "))


def test_nothing_is_said_where_no_origin_is_listed(tiny_server: Server) -> None:
    for headers in ({}, {"origin": EVIL}):
        for path in ("/health", "/nothing"):
            answer = call(tiny_server, "GET", path, None, headers)
            assert not any(name.startswith("access-control") or name == "vary" for name, _ in answer.headers)


# Flags that a single GPU's server should honour, in the spelling of TGI's launcher.
COMMAND_LINE = """
--model-id /data/model --revision main --tokenizer-config-path /data/t.json --dtype bfloat16 --quantize bitsandbytes-nf4
--max-concurrent-requests 7 --max-best-of 3 --max-stop-sequences 5 --max-top-n-tokens 6 --max-input-tokens 100
--max-total-tokens 200 --max-batch-prefill-tokens 300 --max-batch-total-tokens 4000 --max-batch-size 9
--max-client-batch-size 8 --validation-workers 3 --cuda-graphs 1,2,4 --cuda-memory-fraction 0.5 --hostname 127.0.0.1
-p 8081 --api-key k --cors-allow-origin https://a.example --cors-allow-origin https://b.example --payload-limit 5000
--disable-grammar-support --watermark-gamma 0.3 --watermark-delta 1.5 --huggingface-hub-cache /data
-g 12 --json-output --env
"""


def test_a_command_line_of_tgis_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(COMMAND_LINE.split())
    assert settings.notes == []
    assert (settings.port, settings.graceful_termination_timeout, settings.env) == (8081, 12, True)
    words = COMMAND_LINE.split()
    for flag, value in itertools.pairwise(words):
        if flag.startswith("--") and not value.startswith("-"):
            found = getattr(settings, flag.removeprefix("--").replace("-", "_"))
            shown = ",".join(map(str, found)) if isinstance(found, list) else str(found)
            assert value in shown, flag
            if flag != "--cors-allow-origin":
                monkeypatch.setenv(flag.removeprefix("--").replace("-", "_").upper(), value)
    from_environment = load_settings(["-p", "8081", "-g", "12", "--json-output", "--disable-grammar-support"])
    same = {"cors_allow_origin", "env"}
    assert from_environment.model_dump(exclude=same) == settings.model_dump(exclude=same)
