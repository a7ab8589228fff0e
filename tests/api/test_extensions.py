"""Fields that vLLM's, llama.cpp's and LM Studio's users send on /v1: honoured, or refused by name."""

import json
from typing import Any

import httpx
import pytest

from tests.serving import Server

PROMPT = "one two three four five six"
HI = [{"role": "user", "content": "hi"}]
GREEDY = {"temperature": 0, "max_tokens": 12}


def complete(server: Server, **body: Any) -> httpx.Response:
    return server.client.post(f"{server.url}/v1/completions", json={"prompt": PROMPT, **GREEDY, **body})


def chat(server: Server, **body: Any) -> httpx.Response:
    return server.client.post(f"{server.url}/v1/chat/completions", json={"messages": HI, **GREEDY, **body})


def completed(server: Server, **body: Any) -> dict[str, Any]:
    response = complete(server, **body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def token_ids(server: Server, text: str) -> list[int]:
    tokens = server.client.post(f"{server.url}/tokenize", json={"inputs": text, "add_special_tokens": False}).json()
    return [token["id"] for token in tokens]


def test_stop_token_ids_end_an_answer(tiny_server: Server) -> None:
    plain = completed(tiny_server, logprobs=0)
    tokens = plain["logprobs"]["tokens"]
    stop = next(i for i, token in enumerate(tokens) if i and token.isalpha() and token not in tokens[:i])
    (stop_id,) = token_ids(tiny_server, tokens[stop])
    stopped = completed(tiny_server, stop_token_ids=[stop_id])
    assert stopped["text"] == "".join(tokens[: stop + 1]) and stopped["finish_reason"] == "stop"
    # `ignore_eos` leaves them alone, `min_tokens` puts them off.
    assert completed(tiny_server, stop_token_ids=[stop_id], ignore_eos=True)["text"] == stopped["text"]
    longer = completed(tiny_server, stop_token_ids=[stop_id], min_tokens=stop + 2)
    assert longer["text"].startswith("".join(tokens[:stop])) and len(longer["text"]) > len(stopped["text"])


@pytest.mark.parametrize("more", [{}, {"min_tokens": 2}])
def test_stop_token_ids_outside_the_vocabulary_are_refused(tiny_server: Server, more: dict[str, Any]) -> None:
    response = complete(tiny_server, stop_token_ids=[2**32 - 1], **more)
    assert response.status_code == 400 and response.json()["error"]["param"] == "stop_token_ids"


def test_a_stop_string_can_be_kept(tiny_server: Server) -> None:
    stop = completed(tiny_server)["text"][3:5]
    kept = completed(tiny_server, stop=stop, include_stop_str_in_output=True)
    assert kept["text"] == completed(tiny_server, stop=stop)["text"] + stop and kept["finish_reason"] == "stop"
    streamed = complete(tiny_server, stop=stop, include_stop_str_in_output=True, stream=True).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == kept["text"]
    said = chat_text(tiny_server)
    assert chat_text(tiny_server, stop=said[3:5], include_stop_str_in_output=True) == said[:5]


def chat_text(server: Server, **body: Any) -> str:
    response = chat(server, **body)
    assert response.status_code == 200, response.text
    found: str = response.json()["choices"][0]["message"]["content"]
    return found


def test_other_names_mean_the_same(tiny_server: Server) -> None:
    cut = completed(tiny_server, truncate=3)["text"]
    assert completed(tiny_server, truncate_prompt_tokens=3)["text"] == cut != completed(tiny_server)["text"]
    penalized = completed(tiny_server, repetition_penalty=1.9)["text"]
    assert completed(tiny_server, repeat_penalty=1.9)["text"] == penalized != completed(tiny_server)["text"]


def test_minus_one_is_no_bound(demo_server: Server) -> None:
    # LM Studio's own example sends it.
    for bound in ({"max_tokens": -1}, {"max_tokens": None, "max_completion_tokens": -1}):
        answer = chat(demo_server, **bound)
        assert answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"] == "stop"
    assert chat(demo_server, max_tokens=-2).json()["error"]["param"] == "max_tokens"


def test_a_native_grammar_holds_a_chat(tiny_server: Server) -> None:
    assert chat_text(tiny_server, grammar={"type": "regex", "value": "ab|cd"}) in ("ab", "cd")
    twice = {"grammar": {"type": "regex", "value": "ab"}, "response_format": {"type": "json_object"}}
    assert chat_text(tiny_server, grammar='root ::= "ab" | "cd"') in ("ab", "cd")
    for wrong in (twice, {"grammar": "root := a"}, {"grammar": ["a"]}):
        assert chat(tiny_server, **wrong).json()["error"]["param"].startswith("grammar")


@pytest.mark.parametrize(
    ("field", "value", "neutral"),
    [
        ("use_beam_search", True, False),
        ("bad_words", ["a"], []),
        ("allowed_token_ids", [5], None),
        ("prompt_logprobs", 1, None),
        ("skip_special_tokens", False, True),
        ("return_tokens_as_token_ids", True, False),
        ("mirostat", 2, 0),
        ("dry_multiplier", 0.8, 0.0),
        ("xtc_probability", 0.5, 0),
    ],
)
def test_what_changes_an_answer_is_refused_by_name(tiny_server: Server, field: str, value: Any, neutral: Any) -> None:
    for ask in (chat, complete):
        refused = ask(tiny_server, **{field: value})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == field, refused.text
        assert ask(tiny_server, **{field: neutral}).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [("chat_template", "{{ x }}"), ("documents", [{"text": "a"}]), ("echo", True), ("best_of", 2)],
)
def test_what_has_no_place_in_a_chat_is_refused_there(tiny_server: Server, field: str, value: Any) -> None:
    assert chat(tiny_server, **{field: value}).json()["error"]["param"] == field


def test_what_changes_no_answer_is_ignored(tiny_server: Server) -> None:
    hints = {"priority": 1, "request_id": "a", "keep_alive": "5m", "cache_prompt": True, "mm_processor_kwargs": {}}
    assert chat_text(tiny_server, **hints) == chat_text(tiny_server)


def test_a_neutral_model_name_is_the_served_model(tiny_server: Server) -> None:
    (served,) = tiny_server.client.get(f"{tiny_server.url}/v1/models").json()["data"]
    assert tiny_server.client.get(f"{tiny_server.url}/v1/models/tgi").json() == served
    assert tiny_server.client.get(f"{tiny_server.url}/v1/models/other").status_code == 404
