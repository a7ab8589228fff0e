"""TGI's native parameters on OpenAI's routes, where hub clients send them: honoured, or refused by name."""

import json
from typing import Any

import httpx
import pytest

from tests.serving import Server

PROMPT = "count"
HI = [{"role": "user", "content": "hi"}]
GREEDY = {"temperature": 0, "max_tokens": 12}


def complete(server: Server, **body: Any) -> httpx.Response:
    return server.client.post(f"{server.url}/v1/completions", json={"prompt": PROMPT, **body}, timeout=60)


def text(server: Server, **body: Any) -> str:
    response = complete(server, **body)
    assert response.status_code == 200, response.text
    found: str = response.json()["choices"][0]["text"]
    return found


def chat_text(server: Server, **body: Any) -> str:
    response = server.client.post(f"{server.url}/v1/chat/completions", json={"messages": HI, **body}, timeout=60)
    assert response.status_code == 200, response.text
    found: str = response.json()["choices"][0]["message"]["content"]
    return found


def test_return_full_text_is_echo(tiny_server: Server) -> None:
    continued = text(tiny_server, **GREEDY, return_full_text=False)
    assert text(tiny_server, **GREEDY, return_full_text=True) == text(tiny_server, **GREEDY, echo=True)
    assert text(tiny_server, **GREEDY, return_full_text=True) == PROMPT + continued
    first, *_ = complete(tiny_server, **GREEDY, return_full_text=True, stream=True).text.split("\n\n")
    assert json.loads(first.removeprefix("data: "))["choices"][0]["text"].startswith(PROMPT)


def test_do_sample_false_is_greedy_until_something_shapes_the_choice(tiny_server: Server) -> None:
    plain = {"max_tokens": 12, "do_sample": False}
    assert text(tiny_server, **plain) == text(tiny_server, **plain, temperature=1.0) == text(tiny_server, **GREEDY)
    assert chat_text(tiny_server, **plain) == chat_text(tiny_server, **GREEDY)
    # As on TGI, a temperature samples whatever the switch says.
    shaped = {**plain, "temperature": 5.0}
    assert len({text(tiny_server, **shaped, seed=seed) for seed in range(3)}) > 1
    assert len({text(tiny_server, max_tokens=12, do_sample=True, seed=seed) for seed in range(3)}) > 1


def test_typical_p_narrows_the_choice(tiny_server: Server) -> None:
    sampled = {"max_tokens": 12, "temperature": 1.0}
    narrow = {text(tiny_server, **sampled, typical_p=1e-6, seed=seed) for seed in range(3)}
    assert len(narrow) == 1
    response = complete(tiny_server, **sampled, typical_p=1.5)
    assert response.status_code == 400 and response.json()["error"]["param"] == "typical_p"


def test_stop_sequences_are_joined_to_stop(tiny_server: Server) -> None:
    whole = text(tiny_server, **GREEDY)
    wanted = whole[4:6]
    for given in ({"stop_sequences": [wanted]}, {"stop": "never said", "stop_sequences": [wanted]}):
        assert text(tiny_server, **GREEDY, **given) == whole[: whole.index(wanted)]


def test_watermark_changes_the_text(tiny_server: Server) -> None:
    assert text(tiny_server, **GREEDY, watermark=True) != text(tiny_server, **GREEDY)


def test_grammar_holds_the_text(tiny_server: Server) -> None:
    assert text(tiny_server, **GREEDY, grammar={"type": "regex", "value": "[0-9]{3}"}).isdecimal()


@pytest.mark.parametrize(
    ("body", "param"), [({"adapter_id": "x"}, "adapter_id"), ({"grammar": {"type": "sonnet", "value": ""}}, "grammar")]
)
def test_what_is_not_honoured_is_refused_by_name(tiny_server: Server, body: dict[str, Any], param: str) -> None:
    response = complete(tiny_server, max_tokens=3, **body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text


def test_nulls_and_what_the_answer_has_no_place_for_change_nothing(tiny_server: Server) -> None:
    names = ("do_sample", "typical_p", "watermark", "adapter_id", "return_full_text", "stop_sequences", "grammar")
    neutral = {**dict.fromkeys(names), "details": True, "decoder_input_details": True, "top_n_tokens": 2}
    assert text(tiny_server, **GREEDY, **neutral) == text(tiny_server, **GREEDY)
