"""TGI's native routes on a real socket: bytes, fields, texts and headers."""

import json
from typing import Any

import httpx
import pytest

from tests.serving import Server
from tgi_local import __version__

JSON = {"content-type": "application/json"}


def post(server: Server, path: str, body: Any, **kwargs: Any) -> httpx.Response:
    return server.client.post(f"{server.url}{path}", json=body, timeout=60, **kwargs)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def test_generate_without_details_is_one_object_with_the_text(tiny_server: Server) -> None:
    response = post(
        tiny_server, "/generate", {"inputs": "What is Deep Learning?", "parameters": {"max_new_tokens": 20}}
    )
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["generated_text"]


def test_headers_of_a_plain_answer(tiny_server: Server) -> None:
    headers = post(tiny_server, "/generate", {"inputs": "héllo", "parameters": {"max_new_tokens": 4}}).headers
    assert headers["x-generated-tokens"] == "4"
    assert headers["x-compute-characters"] == "5"
    assert int(headers["x-prompt-tokens"]) > 0
    assert float(headers["x-compute-time"]) > 0
    for name in ("x-total-time", "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token"):
        assert headers[name].isdecimal(), name
    assert headers["x-compute-type"] == "cpu"


def test_details(tiny_server: Server) -> None:
    parameters = {"max_new_tokens": 3, "details": True, "decoder_input_details": True, "top_n_tokens": 2}
    answer = post(tiny_server, "/generate", {"inputs": "count to ten", "parameters": parameters}).json()
    details = answer["details"]
    assert details["finish_reason"] == "length" and details["generated_tokens"] == 3 and details["seed"] is None
    assert details["prefill"][0]["logprob"] is None
    assert all(token["logprob"] < 0 for token in details["prefill"][1:])
    assert "".join(token["text"] for token in details["prefill"]) == "count to ten"
    assert len(details["tokens"]) == len(details["top_tokens"]) == 3
    for token, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert top[0]["id"] == token["id"] and top[0]["logprob"] >= top[1]["logprob"]
    assert "best_of_sequences" not in details


def test_root_answers_a_list_with_the_prompt_in_front(tiny_server: Server) -> None:
    body = {"inputs": "count", "parameters": {"max_new_tokens": 3}}
    answer = post(tiny_server, "/", body).json()
    plain = post(tiny_server, "/generate", body).json()["generated_text"]
    assert answer == [{"generated_text": "count" + plain}]
    body["parameters"]["return_full_text"] = False  # type: ignore[index]
    assert post(tiny_server, "/", body).json() == [{"generated_text": plain}]


def test_stream_bytes(tiny_server: Server) -> None:
    body = {"inputs": "count to ten", "parameters": {"max_new_tokens": 5, "details": True}}
    response = post(tiny_server, "/generate_stream", body)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "[DONE]" not in response.text
    received = events(response)
    assert [event["index"] for event in received] == [1, 2, 3, 4, 5]
    for event in received[:-1]:
        assert list(event) == ["index", "token", "generated_text", "details"]
        assert event["generated_text"] is None and event["details"] is None
    last = received[-1]
    assert last["details"] == {"finish_reason": "length", "generated_tokens": 5, "seed": None, "input_length": 5} | {
        "input_length": last["details"]["input_length"]
    }
    plain = post(tiny_server, "/generate", body).json()
    assert last["generated_text"] == plain["generated_text"]
    assert [event["token"] for event in received] == plain["details"]["tokens"]
    assert "".join(e["token"]["text"] for e in received if not e["token"]["special"]) == plain["generated_text"]


def test_root_streams_when_asked_to(tiny_server: Server) -> None:
    body = {"inputs": "count", "parameters": {"max_new_tokens": 2, "return_full_text": False}, "stream": True}
    received = events(post(tiny_server, "/", body))
    assert received[-1]["generated_text"] is not None and received[-1]["details"] is None


def test_absent_parameters_sample_and_empty_ones_are_greedy(tiny_server: Server) -> None:
    def texts(body: dict[str, Any]) -> set[str]:
        return {post(tiny_server, "/generate", body).json()["generated_text"] for _ in range(3)}

    limited = {"max_new_tokens": 12}
    assert len(texts({"inputs": "count", "parameters": limited})) == 1
    assert len(texts({"inputs": "count", "parameters": {**limited, "do_sample": True}})) == 3
    # Nothing bounds the length without parameters but the context, so only the seed is looked at.
    body = {"inputs": "count " * 1300, "parameters": {"details": True, "do_sample": True, "max_new_tokens": 1}}
    assert post(tiny_server, "/generate", body).json()["details"]["seed"] is not None


def test_the_same_seed_gives_the_same_answer(tiny_server: Server) -> None:
    body = {
        "inputs": "count",
        "parameters": {"max_new_tokens": 12, "seed": 2**64 - 1, "do_sample": True, "details": True},
    }
    first, second = (post(tiny_server, "/generate", body).json() for _ in range(2))
    assert first == second and first["details"]["seed"] == 2**64 - 1


def test_a_watermark_shifts_the_odds_of_every_token(tiny_server: Server) -> None:
    def odds(**parameters: Any) -> list[float]:
        body = {
            "inputs": "count",
            "parameters": {"max_new_tokens": 1, "details": True, "top_n_tokens": 5, **parameters},
        }
        (tokens,) = post(tiny_server, "/generate", body).json()["details"]["top_tokens"]
        return [token["logprob"] for token in tokens]

    assert odds() == odds(watermark=False) == odds(watermark=None)
    assert odds(watermark=True) != odds() and odds(watermark=True) == odds(watermark=True)


def test_a_least_number_of_tokens_and_an_end_that_is_not_one(demo_server: Server) -> None:
    def details(**parameters: Any) -> dict[str, Any]:
        prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        body = {"inputs": prompt, "parameters": {"max_new_tokens": 60, "details": True, **parameters}}
        return post(demo_server, "/generate", body).json()["details"]

    usual = details()
    count = usual["generated_tokens"]
    assert usual["finish_reason"] == "eos_token" and count < 40
    assert details(min_new_tokens=count + 5)["generated_tokens"] > count + 5
    assert details(min_new_tokens=count - 1)["generated_tokens"] == count, "an end is allowed once that many have come"
    assert details(ignore_eos=True)["finish_reason"] == "length"
    (stop,) = {usual["tokens"][0]["text"]}
    assert details(stop=[stop])["generated_tokens"] == 1
    assert details(stop=[stop], min_new_tokens=1)["generated_tokens"] > 1


def test_best_of_returns_the_most_likely_sample_first(tiny_server: Server) -> None:
    body = {"inputs": "count", "parameters": {"max_new_tokens": 6, "best_of": 3, "do_sample": True, "details": True}}
    details = post(tiny_server, "/generate", body).json()["details"]

    def mean(sample: dict[str, Any]) -> float:
        return sum(token["logprob"] for token in sample["tokens"]) / len(sample["tokens"])

    others = details["best_of_sequences"]
    assert len(others) == 2 and all(mean(details) >= mean(other) for other in others)
    assert len({details["seed"], *(other["seed"] for other in others)}) == 3


def test_stop_string_stays_in_the_text(tiny_server: Server) -> None:
    body: dict[str, Any] = {"inputs": "count to ten", "parameters": {"max_new_tokens": 30, "details": True}}
    text = post(tiny_server, "/generate", body).json()["generated_text"]
    stop = text[4:6]
    body["parameters"]["stop"] = [stop]
    answer = post(tiny_server, "/generate", body).json()
    assert answer["generated_text"] == text[: text.index(stop) + len(stop)]
    assert answer["details"]["finish_reason"] == "stop_sequence"


def test_truncate_keeps_the_end_of_the_prompt(tiny_server: Server) -> None:
    parameters = {"max_new_tokens": 3, "truncate": 2, "decoder_input_details": True}
    answer = post(tiny_server, "/generate", {"inputs": "the quick brown fox", "parameters": parameters}).json()
    assert len(answer["details"]["prefill"]) == 2


def test_tokenize_gives_byte_offsets(tiny_server: Server) -> None:
    text = "héllo 😀!"
    spans = post(tiny_server, "/tokenize", {"inputs": text}).json()
    raw = text.encode()
    # Tokens that share one character share its offsets.
    assert all(raw[span["start"] : span["stop"]].decode() == span["text"] for span in spans)
    assert spans[0]["start"] == 0 and spans[-1]["stop"] == len(raw)
    assert list(spans[0]) == ["id", "text", "start", "stop"]


def test_chat_tokenize(tiny_server: Server) -> None:
    answer = post(tiny_server, "/chat_tokenize", {"messages": [{"role": "user", "content": "hi"}]}).json()
    assert answer["templated_text"] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert "".join(t["text"] for t in answer["tokenize_response"]) == answer["templated_text"]


def test_info(tiny_server: Server) -> None:
    info = tiny_server.client.get(f"{tiny_server.url}/info").json()
    assert info["max_total_tokens"] == 4096 and info["max_input_tokens"] == 4095 == info["max_input_length"]
    assert info["model_pipeline_tag"] == "text-generation" and info["max_concurrent_requests"] == 128
    # Clients compare it with TGI's versions before they use what came with one of them.
    assert tuple(map(int, info["version"].split("."))) >= (3, 3, 0) and info["tgi_local_version"] == __version__
    assert {"model_id", "model_sha", "router", "version", "sha", "docker_label", "max_best_of"} <= info.keys()


@pytest.mark.parametrize("path", ["/health", "/ping", "/"])
def test_health_is_empty(tiny_server: Server, path: str) -> None:
    response = tiny_server.client.get(f"{tiny_server.url}{path}")
    assert response.status_code == 200 and response.content == b""
    assert tiny_server.client.head(f"{tiny_server.url}{path}").status_code == 200


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"best_of": 5}, "`best_of` must be > 0 and <= 4. Given: 5"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"temperature": 0}, "`temperature` must be strictly positive"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"typical_p": 0.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        (
            {"max_new_tokens": 5, "min_new_tokens": 6},
            "`min_new_tokens` must be <= `max_new_tokens`. Given: 6 and 5",
        ),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"truncate": 0}, "`truncate` must be strictly positive and less than 4095. Given: 0"),
        ({"grammar": {"type": "json", "value": 5}}, "grammar is not supported"),
        ({"grammar": {"type": "regex", "value": "(a"}}, "grammar is not valid: unclosed group"),
        ({"adapter_id": "x"}, "`adapter_id` is not supported: no adapters are loaded"),
    ],
)
def test_validation_texts(tiny_server: Server, parameters: dict[str, Any], text: str) -> None:
    body = {"inputs": "count", "parameters": parameters}
    answer = post(tiny_server, "/generate", body)
    want = {"error": f"Input validation error: {text}", "error_type": "validation"}
    assert answer.status_code == 422 and answer.json() == want
    if "best_of" not in parameters:
        # Streams report it inside a 200, as TGI's clients expect.
        stream = post(tiny_server, "/generate_stream", body)
        assert stream.status_code == 200 and events(stream) == [want]


def test_limits_of_the_context(tiny_server: Server) -> None:
    ids = len(post(tiny_server, "/tokenize", {"inputs": "the quick brown fox " * 150}).json())
    body = {"inputs": "the quick brown fox " * 150, "parameters": {"max_new_tokens": 4096}}
    accepted = post(tiny_server, "/generate", {**body, "parameters": {"max_new_tokens": 2}})
    assert accepted.status_code == 200, ids
    long = "z" * 5000
    error = post(tiny_server, "/generate", {"inputs": long, "parameters": {"max_new_tokens": 1}}).json()["error"]
    assert "must be <= 4096" in error or "must have less than 4095 tokens" in error


def test_streams_refuse_what_they_can_not_give(tiny_server: Server) -> None:
    for parameters, text in (
        ({"best_of": 2}, "`best_of` != 1 is not supported when streaming tokens"),
        ({"decoder_input_details": True}, "`decoder_input_details` == true is not supported when streaming tokens"),
    ):
        response = post(tiny_server, "/generate_stream", {"inputs": "x", "parameters": parameters})
        assert events(response)[0]["error"] == f"Input validation error: {text}"


def test_empty_inputs(tiny_server: Server) -> None:
    response = post(tiny_server, "/generate", {"inputs": "", "parameters": {}})
    assert response.status_code == 422
    assert response.json()["error"] == "Input validation error: `inputs` cannot be empty"


@pytest.mark.parametrize(
    ("content", "status", "start"),
    [
        (b"", 400, "Failed to parse the request body as JSON: "),
        (b"{", 400, "Failed to parse the request body as JSON: "),
        (b"{}", 422, "Failed to deserialize the JSON body into the target type: missing field `inputs`"),
        (b'{"inputs":3}', 422, "Failed to deserialize the JSON body into the target type: inputs: "),
        (b"[]", 422, "Failed to deserialize the JSON body into the target type: "),
        (
            b'{"inputs":"x","parameters":{"temperature":"1"}}',
            422,
            "Failed to deserialize the JSON body into the target type: parameters.temperature: ",
        ),
        (
            b'{"inputs":"x","parameters":null}',
            422,
            "Failed to deserialize the JSON body into the target type: parameters: ",
        ),
    ],
)
def test_parse_errors_are_plain_text(tiny_server: Server, content: bytes, status: int, start: str) -> None:
    response = tiny_server.client.post(f"{tiny_server.url}/generate", content=content, headers=JSON)
    assert response.status_code == status
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text.startswith(start)


def test_unknown_paths_and_wrong_methods_have_empty_bodies(tiny_server: Server) -> None:
    missing = tiny_server.client.get(f"{tiny_server.url}/nothing")
    assert missing.status_code == 404 and missing.content == b""
    wrong = tiny_server.client.get(f"{tiny_server.url}/generate")
    assert wrong.status_code == 405 and wrong.content == b"" and wrong.headers["allow"] == "POST"
    assert tiny_server.client.get(f"{tiny_server.url}/generate/").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": "count", "parameters": {"max_new_tokens": 2}},
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
        {"prompt": "count", "max_tokens": 2},
    ],
)
def test_invocations_dispatches_by_shape(tiny_server: Server, body: dict[str, Any]) -> None:
    answer = post(tiny_server, "/invocations", body).json()
    if "inputs" in body:
        assert answer[0]["generated_text"].startswith("count")
    else:
        assert answer["object"] == ("chat.completion" if "messages" in body else "text_completion")


def test_invocations_of_no_known_shape(tiny_server: Server) -> None:
    response = post(tiny_server, "/invocations", {"text": "x"})
    assert response.status_code == 422 and "did not match any variant" in response.text
