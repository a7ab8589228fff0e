"""OpenAI's routes on a real socket: objects, chunks, statuses."""

import json
from typing import Any

import httpx
import pytest

from tests.serving import Server

HI = [{"role": "user", "content": "hi"}]


def chat(server: Server, **body: Any) -> httpx.Response:
    return server.client.post(
        f"{server.url}/v1/chat/completions", json={"messages": HI, "max_tokens": 6, **body}, timeout=60
    )


def complete(server: Server, **body: Any) -> httpx.Response:
    return server.client.post(
        f"{server.url}/v1/completions", json={"prompt": "count", "max_tokens": 6, **body}, timeout=60
    )


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def test_stop_string_is_left_out_wherever_it_stands(tiny_server: Server) -> None:
    text = complete(tiny_server, temperature=0, max_tokens=40).json()["choices"][0]["text"]
    stop = text[7:10]
    for given in (stop, [stop, "never"]):
        answer = complete(tiny_server, temperature=0, max_tokens=40, stop=given).json()
        (choice,) = answer["choices"]
        assert choice["text"] == text[: text.index(stop)] and choice["finish_reason"] == "stop"
        streamed = chunks(complete(tiny_server, temperature=0, max_tokens=40, stop=given, stream=True))
        assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == choice["text"]
        assert streamed[-1]["choices"][0]["finish_reason"] == "stop"


def test_n_choices_share_a_prompt_and_differ(tiny_server: Server) -> None:
    answer = chat(tiny_server, n=3, temperature=1.0, seed=5).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    texts = {choice["message"]["content"] for choice in answer["choices"]}
    assert len(texts) == 3
    assert answer["usage"]["completion_tokens"] == 18
    single = chat(tiny_server, temperature=1.0, seed=5).json()
    assert single["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert single["choices"][0]["message"] == answer["choices"][0]["message"]
    streamed = chunks(chat(tiny_server, n=3, temperature=1.0, seed=5, stream=True))
    for index, choice in enumerate(answer["choices"]):
        parts = [c["choices"][0]["delta"]["content"] for c in streamed if c["choices"][0]["index"] == index]
        assert "".join(parts) == choice["message"]["content"]


def test_template_switches(tiny_server: Server) -> None:
    # A template that knows no thinking ignores both; what names the server's own variables is refused.
    plain = chat(tiny_server, temperature=0).json()["choices"]
    switched = chat(
        tiny_server, temperature=0, reasoning_effort="none", chat_template_kwargs={"enable_thinking": False}
    )
    assert switched.json()["choices"] == plain
    reserved = chat(tiny_server, chat_template_kwargs={"add_generation_prompt": False})
    assert reserved.status_code == 400 and reserved.json()["error"]["param"] == "chat_template_kwargs"


def test_a_page_does_not_answer_for_the_api(demo_server: Server) -> None:
    for path in ("/v1/embeddings", "/v1/nothing/at/all"):
        missing = demo_server.client.post(f"{demo_server.url}{path}", json={})
        assert missing.status_code == 404 and missing.json()["error"]["type"] == "invalid_request_error"
    assert demo_server.client.get(f"{demo_server.url}/v2/nothing").content == b""


def test_penalties_and_bias_are_honoured(tiny_server: Server) -> None:
    plain = complete(tiny_server, temperature=0, max_tokens=24).json()["choices"][0]["text"]
    for changed in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 3.0}):
        assert complete(tiny_server, temperature=0, max_tokens=24, **changed).json()["choices"][0]["text"] != plain
    biased = complete(tiny_server, temperature=0, max_tokens=3, logit_bias={"70": 100}, logprobs=1).json()
    assert len(set(biased["choices"][0]["logprobs"]["tokens"])) == 1


def test_content_parts_and_developer_role(tiny_server: Server) -> None:
    parts = [{"role": "developer", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    plain = [{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}]
    one, two = (
        tiny_server.client.post(f"{tiny_server.url}/chat_tokenize", json={"messages": messages}).json()[
            "templated_text"
        ]
        for messages in (parts, plain)
    )
    assert one == two


def test_completions_accept_token_ids(tiny_server: Server) -> None:
    ids = [t["id"] for t in tiny_server.client.post(f"{tiny_server.url}/tokenize", json={"inputs": "count"}).json()]
    want = complete(tiny_server, temperature=0).json()["choices"][0]["text"]
    assert complete(tiny_server, prompt=ids, temperature=0).json()["choices"][0]["text"] == want
    assert complete(tiny_server, prompt=[ids], temperature=0).json()["choices"][0]["text"] == want
    assert complete(tiny_server, prompt=[10**6]).status_code == 400


def test_echo_with_logprobs_scores_the_prompt(tiny_server: Server) -> None:
    answer = complete(tiny_server, prompt="count to ten", echo=True, logprobs=1, max_tokens=1, temperature=0).json()
    (choice,) = answer["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith("count to ten")
    assert logprobs["token_logprobs"][0] is None and all(value < 0 for value in logprobs["token_logprobs"][1:])
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert [
        choice["text"][o : o + len(t)] for o, t in zip(logprobs["text_offset"], logprobs["tokens"], strict=True)
    ] == (logprobs["tokens"])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_new_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_new_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": True}, "min_tokens"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"stop": list("abcde")}, "stop"),
        ({"stop": ""}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"response_format": {"type": "regex", "value": "("}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "grammar", "value": "x"}}, "response_format"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "<|im_start|>", "content": "x"}]}, "messages[0].role"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_fields_are_400_and_named_before_any_stream(
    tiny_server: Server, body: dict[str, Any], param: str, stream: bool
) -> None:
    response = chat(tiny_server, **{"stream": stream, **body})
    assert response.status_code == 400
    answer = response.json()
    assert answer["error_type"] == "validation"
    error = answer["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == param
    assert set(error) == {"message", "type", "param", "code"}


def test_a_least_number_of_tokens_and_an_end_that_is_not_one(demo_server: Server) -> None:
    def length(**fields: Any) -> tuple[int, str]:
        answer = chat(demo_server, temperature=0, **{"max_tokens": 60, **fields}).json()
        return answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]

    usual, reason = length()
    assert usual < 40 and reason == "stop"
    longer, reason = length(min_tokens=usual + 5)
    assert longer > usual + 5 or (longer, reason) == (60, "length")
    assert length(min_tokens=3) == (usual, "stop"), "enough as it is"
    assert length(ignore_eos=True) == (60, "length")
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    plain = complete(demo_server, prompt=prompt, temperature=0, max_tokens=60).json()["usage"]["completion_tokens"]
    at_least = complete(demo_server, prompt=prompt, temperature=0, max_tokens=60, min_tokens=plain + 5).json()
    assert at_least["usage"]["completion_tokens"] > plain


def test_an_answer_in_a_format_ends_when_it_is_complete(demo_server: Server) -> None:
    format = {"type": "json_schema", "json_schema": {"schema": {"enum": [7]}, "name": "seven"}}
    answer = chat(demo_server, response_format=format, max_tokens=60, min_tokens=50).json()
    assert json.loads(answer["choices"][0]["message"]["content"]) == 7
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_completions_refusals(tiny_server: Server) -> None:
    suffix = complete(tiny_server, suffix="x")
    assert suffix.status_code == 400 and suffix.json()["error"]["param"] == "suffix"
    long = complete(tiny_server, prompt="z" * 5000, max_tokens=1)
    assert long.status_code == 400 and long.json()["error"]["code"] == "context_length_exceeded"


def test_best_of_answers_with_the_likeliest_of_each_prompt(tiny_server: Server) -> None:
    body = {"prompt": ["count", "again"], "n": 2, "best_of": 5, "logprobs": 0, "seed": 7, "temperature": 1.5}
    answer = complete(tiny_server, **body).json()
    everything = complete(tiny_server, **{**body, "n": 5}).json()

    def mean_logprob(choice: dict[str, Any]) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return sum(values) / len(values)

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for prompt in range(2):
        samples = sorted(everything["choices"][prompt * 5 : prompt * 5 + 5], key=mean_logprob, reverse=True)
        texts = [choice["text"] for choice in answer["choices"][prompt * 2 : prompt * 2 + 2]]
        assert texts == [choice["text"] for choice in samples[:2]]
    assert answer["usage"] == everything["usage"], "all samples were generated"


@pytest.mark.parametrize("fields", [{"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}])
def test_best_of_that_can_not_be(tiny_server: Server, fields: dict[str, Any]) -> None:
    response = complete(tiny_server, **fields)
    assert response.status_code == 400 and response.json()["error"]["param"] == "best_of"


PREFILLED = [*HI, {"role": "assistant", "content": "The answer"}]
OPENED = "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"messages": HI}, OPENED),
        ({"messages": HI, "add_generation_prompt": False}, "hi<|im_end|>\n"),
        ({"messages": PREFILLED}, OPENED + "The answer"),
        ({"messages": PREFILLED, "continue_final_message": True}, OPENED + "The answer"),
        ({"messages": PREFILLED, "add_generation_prompt": False}, OPENED + "The answer"),
        ({"messages": PREFILLED, "continue_final_message": False}, "The answer<|im_end|>\n" + OPENED),
        ({"messages": PREFILLED, "add_generation_prompt": True}, "The answer<|im_end|>\n" + OPENED),
    ],
)
def test_where_the_prompt_ends(demo_server: Server, fields: dict[str, Any], end: str) -> None:
    response = demo_server.client.post(f"{demo_server.url}/chat_tokenize", json=fields)
    assert response.json()["templated_text"].endswith(end)


@pytest.mark.parametrize("fields", [{"messages": HI}, {"messages": PREFILLED, "add_generation_prompt": True}])
def test_what_can_not_be_continued(tiny_server: Server, fields: dict[str, Any]) -> None:
    response = chat(tiny_server, **fields, continue_final_message=True)
    assert response.status_code == 400 and response.json()["error"]["param"] == "continue_final_message"


@pytest.mark.parametrize("fields", [{"modalities": ["text", "audio"]}, {"web_search_options": {}}])
def test_what_would_change_the_answer_is_refused_by_name(tiny_server: Server, fields: dict[str, Any]) -> None:
    response = chat(tiny_server, **fields)
    assert response.status_code == 400 and response.json()["error"]["param"] == next(iter(fields))
    assert chat(tiny_server, modalities=["text"], web_search_options=None).status_code == 200
