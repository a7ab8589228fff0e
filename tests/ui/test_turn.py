"""A turn against the stand-in server over a real socket, without a browser."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tests.ui.stand_in import StandIn, bound_socket
from tests.waiting import until
from ui.client import VISITOR_HEADER, ApiClient, is_loopback
from ui.turn import Turns

SETTINGS: tuple[Any, ...] = ("", 0.5, 1.0, 64)


def turns(base_url: str, patience_s: float = 10.0, key: str | None = "the-key") -> Turns:
    return Turns(ApiClient(base_url, key), patience_s)


async def shown(base_url: str, **options: Any) -> list[tuple[list[dict[str, Any]], str]]:
    return [update async for update in turns(base_url, **options).respond("hi", [], *SETTINGS)]


def text_of(update: tuple[list[dict[str, Any]], str]) -> str:
    return "".join(block["text"] for message in update[0] for block in message["content"])


def title_of(update: tuple[list[dict[str, Any]], str]) -> str:
    return str(update[0][-1]["metadata"]["title"])


async def test_the_answer_grows_and_its_figures_follow(base_url: str, stand_in: StandIn) -> None:
    stand_in.pieces = [f"{n} " for n in range(100)]
    updates = await shown(base_url)
    assert text_of(updates[-1]) == "".join(stand_in.pieces)
    assert updates[-1][1].startswith("100 tokens · ")
    assert 3 < len(updates) < 60  # many tokens an update, and yet it streams
    assert stand_in.requests[0]["messages"] == [{"role": "user", "content": "hi"}]
    assert stand_in.requests[0]["max_tokens"] == 64
    assert "top_p" not in stand_in.requests[0]


async def test_code_arrives_as_it_was_written(base_url: str, stand_in: StandIn) -> None:
    stand_in.pieces = ["  two spaces\n", "\ttab\n\n", "    four"]
    assert text_of((await shown(base_url))[-1]) == "  two spaces\n\ttab\n\n    four"


async def test_reasoning_is_a_thought_beside_the_answer(base_url: str, stand_in: StandIn) -> None:
    stand_in.reasoning = ["let me ", "think"]
    last, _ = (await shown(base_url))[-1]
    assert [message.get("metadata", {}).get("title") for message in last] == ["Thinking", None]
    assert last[0]["metadata"]["status"] == "done"
    assert last[0]["content"][0]["text"] == "let me think"


async def test_only_our_key_is_sent_and_no_proxy_is_asked(
    base_url: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert text_of((await shown(base_url))[-1])
    assert text_of((await shown(base_url, key=None))[-1])
    assert [headers["authorization"] for headers in stand_in.headers] == ["Bearer the-key", "Bearer -"]


async def test_leaving_a_turn_closes_its_stream(base_url: str, stand_in: StandIn) -> None:
    stand_in.pieces, stand_in.delay_s = ["word "] * 1000, 0.02
    turn = turns(base_url).respond("hi", [], *SETTINGS)
    async for update in turn:
        if update[0]:
            break
    await turn.aclose()
    await until(lambda: len(stand_in.disconnected_at) == 1)


async def test_cancelling_a_turn_before_its_first_token_closes_its_stream(base_url: str, stand_in: StandIn) -> None:
    stand_in.pieces, stand_in.delay_s = ["", *["word "] * 10], 30.0
    task = asyncio.ensure_future(shown(base_url))
    await until(lambda: len(stand_in.requests) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: len(stand_in.disconnected_at) == 1)


async def test_a_message_waits_for_a_loading_model(base_url: str, stand_in: StandIn) -> None:
    stand_in.loads("reading weights")
    updates = []
    async for update in turns(base_url).respond("hi", [], *SETTINGS):
        updates.append(update)
        if "reading weights" in text_of(update):
            stand_in.health = None
    assert title_of(updates[1]) == "Waiting for the model"
    assert text_of(updates[-1]) == "".join(stand_in.pieces)


async def test_patience_ends_with_a_notice(base_url: str, stand_in: StandIn) -> None:
    stand_in.loads("reading weights")
    assert title_of((await shown(base_url, patience_s=0))[-1]) == "⚠️ The model is not ready"


async def test_a_model_that_failed_to_load_is_not_waited_for(base_url: str, stand_in: StandIn) -> None:
    stand_in.health = {"error": "failed", "error_type": "healthcheck", "state": "failed", "detail": "no weights"}
    assert title_of((await shown(base_url))[-1]) == "⚠️ The model is not ready"


async def test_a_refusal_becomes_a_notice(base_url: str, stand_in: StandIn) -> None:
    stand_in.refuse = (400, {"error": {"message": "maximum context length is 64", "code": "context_length_exceeded"}})
    updates = await shown(base_url)
    assert title_of(updates[-1]) == "⚠️ Too long for this model"
    assert "Maximum context length is 64" in text_of(updates[-1])


async def test_what_had_arrived_stays_when_the_engine_stumbles(base_url: str, stand_in: StandIn) -> None:
    stand_in.break_after = 2
    last = (await shown(base_url))[-1]
    assert last[0][0]["content"][0]["text"] == "Hello from"
    assert title_of(last) == "⚠️ The model failed to answer"
    assert "The engine stumbled" in text_of(last)


async def test_an_empty_answer_and_a_cut_one_are_said(base_url: str, stand_in: StandIn) -> None:
    stand_in.pieces = []
    assert title_of((await shown(base_url))[-1]) == "⚠️ An empty answer"
    stand_in.pieces, stand_in.finish_reason = ["much"], "length"
    assert "cut at the limit of 64 tokens" in (await shown(base_url))[-1][1]


async def test_the_api_is_told_whom_the_turn_is_for(base_url: str, stand_in: StandIn) -> None:
    visitor: Any = SimpleNamespace(client=SimpleNamespace(host="203.0.113.5"))
    for token, request in (("token", visitor), ("token", None), ("", visitor)):
        api = ApiClient(base_url, "the-key", token)
        async for _ in Turns(api, 10.0).respond("hi", [], *SETTINGS, request=request):
            pass
    assert [headers.get(VISITOR_HEADER) for headers in stand_in.headers] == ["token 203.0.113.5", None, None]
    assert {headers["authorization"] for headers in stand_in.headers} == {"Bearer the-key"}


async def test_no_server_is_said() -> None:
    listener = bound_socket()  # bound and not listening: nobody else takes the port, and nobody answers
    with listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert title_of((await shown(nobody))[-1]) == "⚠️ The server cannot be reached"
        assert (await ApiClient(nobody, None).health()).state == "unreachable"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://127.8.8.8", True),
        ("http://[::1]:8080/v1", True),
        ("http://localhost:3000", True),
        ("https://example.org", False),
        ("http://127.0.0.1.example.org", False),
    ],
)
def test_loopback(url: str, expected: bool) -> None:
    assert is_loopback(url) is expected
