"""OpenAI's routes on a real socket: objects, chunks, statuses."""

import json
from typing import Any

import httpx
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

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


def test_a_refusal_sent_back_is_what_the_assistant_said(tiny_server: Server) -> None:
    def templated(**message: Any) -> str:
        messages = [*HI, {"role": "assistant", **message}, *HI]
        response = tiny_server.client.post(f"{tiny_server.url}/chat_tokenize", json={"messages": messages})
        return str(response.json()["templated_text"])

    said = templated(content="I can not")
    assert templated(content=None, refusal="I can not") == said
    assert templated(content=[{"type": "refusal", "refusal": "I can not"}]) == said
    assert templated(content="I can not", refusal=None, annotations=[], audio=None, function_call=None) == said
    assert templated(content="") != said


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


def test_echoed_tokens_have_alternatives(tiny_server: Server) -> None:
    """Programs that score texts tell by them whether each token was the likeliest."""
    asked = {"decoder_input_details": True, "max_new_tokens": 3}
    native = tiny_server.client.post(
        f"{tiny_server.url}/generate", json={"inputs": "count to ten", "parameters": asked}
    )
    details = native.json()["details"]
    given, written = ([token["id"] for token in details[name]] for name in ("prefill", "tokens"))
    scored = {"prompt": given + written, "temperature": 0, "echo": True, "logprobs": 2}
    (choice,) = complete(tiny_server, max_tokens=1, **scored).json()["choices"]
    logprobs = choice["logprobs"]
    tokens, values, tops = logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]
    assert tops[0] is None and len(tokens) == len(values) == len(tops) == len(given) + 3 + 1
    for token, value, top in zip(tokens[1:-1], values[1:-1], tops[1:-1], strict=True):
        # Halves of characters read the same, and then the map has the likelier one.
        assert top[token] == value or (token == "\ufffd" and top[token] > value)
        assert 1 <= len(top) <= 3 and list(top.values()) == sorted(top.values(), reverse=True)
    is_likeliest = [value == max(top.values()) for value, top in zip(values[1:], tops[1:], strict=True)]
    assert all(is_likeliest[len(given) - 1 :]), "what greedy decoding wrote"
    assert not all(is_likeliest[: len(given) - 1]), "what it did not"
    streamed = chunks(complete(tiny_server, max_tokens=1, stream=True, **scored))
    assert streamed[0]["choices"][0]["logprobs"]["top_logprobs"] == tops


def test_a_prompt_alone_can_be_scored(tiny_server: Server) -> None:
    scored = {"prompt": "count to ten", "temperature": 0, "echo": True, "logprobs": 1}
    whole = complete(tiny_server, max_tokens=1, **scored).json()["choices"][0]["logprobs"]
    answer = complete(tiny_server, max_tokens=0, **scored).json()
    (choice,) = answer["choices"]
    assert choice["text"] == "count to ten" and choice["finish_reason"] == "length"
    assert choice["logprobs"] == {name: values[:-1] for name, values in whole.items()}
    usage = answer["usage"]
    assert usage["completion_tokens"] == 0 and usage["total_tokens"] == usage["prompt_tokens"]
    streamed = chunks(
        complete(tiny_server, max_tokens=0, stream=True, stream_options={"include_usage": True}, **scored)
    )
    assert [chunk["choices"] for chunk in streamed] == [[choice], []] and streamed[-1]["usage"] == usage
    plain = complete(tiny_server, prompt="count to ten", echo=True, max_tokens=0).json()["choices"]
    assert plain == [{"index": 0, "text": "count to ten", "logprobs": None, "finish_reason": "length"}]


@pytest.mark.parametrize("times", [1, 2, 40])
def test_a_role_joined_from_a_stream_is_the_assistants(tiny_server: Server, times: int) -> None:
    def templated(role: str) -> httpx.Response:
        messages = [*HI, {"role": role, "content": "hello"}, *HI]
        return tiny_server.client.post(f"{tiny_server.url}/chat_tokenize", json={"messages": messages})

    joined = templated("assistant" * times)
    assert joined.status_code == 200 and joined.text == templated("assistant").text
    assert chat(tiny_server, messages=[*HI, {"role": "assistant" * times, "content": "x"}, *HI]).status_code == 200
    assert templated("assistants").json()["templated_text"] != templated("assistant").json()["templated_text"]


def test_models(tiny_server: Server) -> None:
    listed = tiny_server.client.get(f"{tiny_server.url}/v1/models").json()
    (entry,) = listed["data"]
    assert listed["object"] == "list" and entry["object"] == "model" and entry["max_model_len"] == 4096
    one = tiny_server.client.get(f"{tiny_server.url}/v1/models/{entry['id']}")
    assert one.status_code == 200 and one.json() == entry
    missing = tiny_server.client.get(f"{tiny_server.url}/v1/models/other")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("model", ["tgi", "", "dummy", "http://127.0.0.1:8080/v1", "gpt-4o"])
def test_any_model_name_is_served(tiny_server: Server, model: str) -> None:
    answer = chat(tiny_server, model=model, max_tokens=1).json()
    assert answer["model"] == model or model in ("tgi", "")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"max_tokens": None, "messages": [{"role": "user", "content": "x " * 9000}]}, "messages"),
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
    assert complete(tiny_server, suffix="", max_tokens=1).status_code == 200
    suffix = complete(tiny_server, suffix="x")
    assert suffix.status_code == 400 and suffix.json()["error"]["param"] == "suffix"
    long = complete(tiny_server, prompt="z" * 5000, max_tokens=1)
    assert long.status_code == 400 and long.json()["error"]["code"] == "context_length_exceeded"
    # By these words of TGI's litellm tells that a prompt is too long.
    assert "`inputs` tokens + `max_new_tokens` must be <=" in long.json()["error"]["message"]
    for echo in (False, None):
        nothing = complete(tiny_server, max_tokens=0, echo=echo)
        assert nothing.status_code == 400 and nothing.json()["error"]["param"] == "max_tokens"


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


def test_the_offsets_of_an_echo_are_places_in_the_text(tiny_server: Server) -> None:
    """Also where a character is several tokens, each of which reads as no character."""
    prompt = "héllo 😀 the fox\n"
    for stream in (False, True):
        response = complete(
            tiny_server, prompt=prompt, echo=True, logprobs=0, max_tokens=3, temperature=0, stream=stream
        )
        lines = (
            [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
            if stream
            else [response.text]
        )
        choices = [json.loads(line)["choices"][0] for line in lines]
        text = "".join(choice["text"] for choice in choices)
        tokens = [token for choice in choices for token in choice["logprobs"]["tokens"]]
        offsets = [offset for choice in choices for offset in choice["logprobs"]["text_offset"]]
        assert text.startswith(prompt) and len(tokens) == len(offsets) > len(prompt) // 2
        assert offsets[-3] == len(prompt), "where the answer begins"
        for token, offset in zip(tokens, offsets, strict=True):
            assert text.startswith(token, offset) or text[offset] in "é😀"


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


def test_only_the_first_tool_delta_has_an_id(demo_server: Server) -> None:
    """Some clients join the ids of a stream, others keep the last that is not null: a second one, even empty, is wrong."""
    function = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    ask = [{"role": "user", "content": "What is the weather in Paris?"}]
    streamed = chunks(
        chat(demo_server, messages=ask, tools=[{"type": "function", "function": function}], max_tokens=60, stream=True)
    )
    first, *later = [call for chunk in streamed for call in chunk["choices"][0]["delta"]["tool_calls"]]
    assert first["id"].startswith("call_") and first["function"]["name"] == "get_weather"
    assert len(later) == len(streamed) - 1 > 0 and all("id" not in delta for delta in later)
    assert all(delta["index"] == 0 and "name" not in delta["function"] for delta in later)


def test_no_alternatives_is_the_token_alone(tiny_server: Server) -> None:
    (choice,) = complete(tiny_server, logprobs=0).json()["choices"]
    logprobs = choice["logprobs"]
    pairs = zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)
    assert logprobs["top_logprobs"] == [{token: value} for token, value in pairs]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": True, "top_logprobs": 2},
        {"n": 2},
        {"max_tokens": 1},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_answers_are_as_openai_types_them(tiny_server: Server, fields: dict[str, Any]) -> None:
    """Strictly, where its clients themselves are lax."""
    answer = chat(tiny_server, **fields).json()
    ChatCompletion.model_validate(answer, strict=True)
    assert all("refusal" in choice["message"] for choice in answer["choices"]), "its schema requires it"
    for chunk in chunks(chat(tiny_server, stream=True, stream_options={"include_usage": True}, **fields)):
        ChatCompletionChunk.model_validate(chunk, strict=True)
    Completion.model_validate(complete(tiny_server, logprobs=1).json(), strict=True)


def test_thoughts_sent_back_are_left_out(tiny_server: Server) -> None:
    def templated(content: Any) -> str:
        messages = [*HI, {"role": "assistant", "content": content}, *HI]
        response = tiny_server.client.post(f"{tiny_server.url}/chat_tokenize", json={"messages": messages})
        return str(response.json()["templated_text"])

    said = {"type": "text", "text": "an answer"}
    for thought in ({"type": "thinking", "thinking": "hm"}, {"type": "reasoning", "text": "hm"}):
        assert templated([thought, said]) == templated("an answer")
    unknown = chat(tiny_server, messages=[{"role": "user", "content": [{"type": "smell", "text": "hm"}]}])
    assert unknown.status_code == 400 and "content parts of type unknown" in unknown.json()["error"]["message"]
