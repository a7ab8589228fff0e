"""`/`, `/generate` and `/generate_stream`: every parameter at its limit and just beyond, and the texts in TGI's order."""

import itertools
from typing import Any

import pytest

from tests.api.conformance.raw import get, post
from tests.serving import Server

TEXT = "count to ten"
FINISH = ["finish_reason", "generated_tokens", "seed"]


def refusal(server: Server, path: str, parameters: dict[str, Any], inputs: str = TEXT) -> str:
    answer = post(server, path, {"inputs": inputs, "parameters": parameters})
    assert answer.status == 422 and list(answer.json) == ["error", "error_type"]
    assert answer.json["error_type"] == "validation"
    text: str = answer.json["error"]
    assert text.startswith("Input validation error: ")
    return text.removeprefix("Input validation error: ")


def test_an_answer_is_compact_json_in_tgis_order(tiny_server: Server) -> None:
    answer = post(tiny_server, "/generate", {"inputs": TEXT, "parameters": {"max_new_tokens": 2, "details": True}})
    details = answer.json["details"]
    assert answer.status == 200 and list(answer.json) == ["generated_text", "details"]
    assert list(details) == [*FINISH, "prefill", "tokens"]
    assert [list(token) for token in details["tokens"]] == [["id", "text", "logprob", "special"]] * 2
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 2, None)
    assert details["prefill"] == []
    assert answer.body.startswith(b'{"generated_text":"') and b'","details":{"finish_reason":"length",' in answer.body
    assert b": " not in answer.body.replace(answer.json["generated_text"].encode(), b"")
    plain = post(tiny_server, "/generate", {"inputs": TEXT, "parameters": {"max_new_tokens": 2}})
    assert list(plain.json) == ["generated_text"]


def test_text_is_utf_8_and_not_escaped(demo_server: Server) -> None:
    parameters = {"max_new_tokens": 1, "return_full_text": True}
    answer = post(demo_server, "/generate", {"inputs": "naïve 😀 \u2028", "parameters": parameters})
    assert answer.body.startswith('{"generated_text":"naïve 😀 \u2028'.encode())


def test_the_root_answers_a_list_with_the_prompt_in_front(tiny_server: Server) -> None:
    parameters: dict[str, Any] = {"max_new_tokens": 3}
    (answer,) = post(tiny_server, "/", {"inputs": TEXT, "parameters": parameters}).json
    plain = post(tiny_server, "/generate", {"inputs": TEXT, "parameters": parameters}).json["generated_text"]
    assert answer == {"generated_text": TEXT + plain}
    for given, want in ((False, plain), (True, TEXT + plain), (None, TEXT + plain)):
        body = {"inputs": TEXT, "parameters": parameters | {"return_full_text": given}, "stream": False}
        assert post(tiny_server, "/", body).json == [{"generated_text": want}]
    full = post(tiny_server, "/generate", {"inputs": TEXT, "parameters": parameters | {"return_full_text": True}})
    assert full.json == {"generated_text": TEXT + plain}


def test_the_root_streams_when_asked_to_and_the_others_ignore_it(tiny_server: Server) -> None:
    body = {"inputs": TEXT, "parameters": {"max_new_tokens": 2}, "stream": True}
    assert post(tiny_server, "/", body).events[-1]["generated_text"].startswith(TEXT)
    assert list(post(tiny_server, "/generate", body).json) == ["generated_text"]
    assert (
        not post(tiny_server, "/generate_stream", body | {"stream": False})
        .events[-1]["generated_text"]
        .startswith(TEXT)
    )


def test_what_is_shown_of_a_token(tiny_server: Server) -> None:
    parameters = {"max_new_tokens": 3, "details": True, "decoder_input_details": True, "top_n_tokens": 2}
    details = post(tiny_server, "/generate", {"inputs": TEXT, "parameters": parameters}).json["details"]
    assert list(details) == [*FINISH, "prefill", "tokens", "top_tokens"]
    assert [list(token) for token in details["prefill"]] == [["id", "text", "logprob"]] * len(details["prefill"])
    assert details["prefill"][0]["logprob"] is None and all(t["logprob"] < 0 for t in details["prefill"][1:])
    assert "".join(token["text"] for token in details["prefill"]) == TEXT
    for token, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert [list(other) for other in top] == [["id", "text", "logprob", "special"]] * 2
        assert top[0] == token and top[0]["logprob"] >= top[1]["logprob"]
    implied = post(tiny_server, "/generate", {"inputs": TEXT, "parameters": parameters | {"details": False}})
    assert implied.json["details"] == details, "decoder_input_details implies details"
    del parameters["decoder_input_details"]
    hidden = post(tiny_server, "/generate", {"inputs": TEXT, "parameters": parameters | {"details": False}}).json
    assert list(hidden) == ["generated_text"], "top_n_tokens needs details"


# In the order in which TGI checks; the server's own limits are those of `tiny_server`.
LONGEST = 2**32 - 1
CHECKS: list[tuple[dict[str, Any], str]] = [
    ({"best_of": 5, "do_sample": True}, "`best_of` must be > 0 and <= 4. Given: 5"),
    ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
    ({"temperature": 0}, "`temperature` must be strictly positive"),
    ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": 2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
    ({"top_k": 0}, "`top_k` must be strictly positive"),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"best_of": 2, "do_sample": True, "seed": 0}, "`seed` must not be set when `best_of` > 1"),
    ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ({"truncate": 4096}, "`truncate` must be strictly positive and less than 4095. Given: 4096"),
    (
        {"max_new_tokens": LONGEST},
        "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: {n} `inputs` tokens and 1024 `max_new_tokens`",
    ),
    ({"grammar": {"type": "json", "value": 5}}, "grammar is not supported"),
]
OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.5}, "`temperature` must be strictly positive"),
    ({"repetition_penalty": -1.0}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": -2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"top_p": 0.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"top_p": 1.5}, "`top_p` must be > 0.0 and < 1.0"),
    ({"typical_p": 0}, "`typical_p` must be > 0.0 and < 1.0"),
    ({"top_k": -1}, "`top_k` must be strictly positive"),
    ({"truncate": 0}, "`truncate` must be strictly positive and less than 4095. Given: 0"),
    ({"best_of": LONGEST, "do_sample": True}, f"`best_of` must be > 0 and <= 4. Given: {LONGEST}"),
    ({"top_n_tokens": LONGEST}, f"`top_n_tokens` must be >= 0 and <= 5. Given: {LONGEST}"),
    ({"grammar": {"type": "regex", "value": "(a"}}, "grammar is not valid: unclosed group"),
    ({"grammar": {"type": "json", "value": "{"}}, "grammar is not valid: the schema is not JSON"),
    ({"adapter_id": "x"}, "`adapter_id` is not supported: no adapters are loaded"),
    ({"max_new_tokens": 5, "min_new_tokens": 6}, "`min_new_tokens` must be <= `max_new_tokens`. Given: 6 and 5"),
]


def long_prompt(server: Server) -> tuple[str, int]:
    """One that leaves room for fewer than 1024 tokens."""
    text = "z" * 3500
    return text, len(post(server, "/tokenize", {"inputs": text}).json)


@pytest.mark.parametrize(("parameters", "text"), [*CHECKS, *OTHERS], ids=lambda value: str(value)[:50])
def test_just_beyond_a_limit(tiny_server: Server, parameters: dict[str, Any], text: str) -> None:
    inputs, count = long_prompt(tiny_server) if "{n}" in text else (TEXT, 0)
    want = text.replace("{n}", str(count))
    assert refusal(tiny_server, "/generate", parameters, inputs) == want
    assert refusal(tiny_server, "/", parameters, inputs) == want
    if "best_of" not in parameters:
        event = {"error": f"Input validation error: {want}", "error_type": "validation"}
        stream = post(tiny_server, "/generate_stream", {"inputs": inputs, "parameters": parameters})
        assert stream.events == [event]
        assert stream.body.startswith(b'data: {"error":"Input validation error: ')
        assert post(tiny_server, "/", {"inputs": inputs, "parameters": parameters, "stream": True}).events == [event]


def test_how_stop_strings_are_counted(tiny_server: Server) -> None:
    """As they are given; the same list under two names, as some clients send it, is one."""
    want = "`stop` supports up to 4 stop sequences. Given: 5"
    for fields in ({"stop": ["a"] * 5}, {"stop": list("abcd"), "stop_sequences": list("abcde")}):
        assert refusal(tiny_server, "/generate", fields, "x") == want
    both = {"stop": list("abcd"), "stop_sequences": list("abcd"), "max_new_tokens": 1}
    assert post(tiny_server, "/generate", {"inputs": "x", "parameters": both}).status == 200


def test_the_first_failure_in_tgis_order_is_told(tiny_server: Server) -> None:
    inputs, count = long_prompt(tiny_server)
    for (parameters, text), (later, _) in itertools.combinations(CHECKS, 2):
        is_sampling = {*later} & {"do_sample", "temperature", "top_k", "top_p", "typical_p"}
        if {*parameters} & {*later} or (parameters == {"best_of": 2} and is_sampling):
            continue  # they can not both be wrong
        both = refusal(tiny_server, "/generate", later | parameters, inputs)
        assert both == text.replace("{n}", str(count)), (parameters, later)
    everything: dict[str, Any] = {}
    for parameters, _ in reversed(CHECKS):
        everything |= parameters
    assert refusal(tiny_server, "/generate", everything, "") == CHECKS[0][1]
    assert refusal(tiny_server, "/generate", {"top_n_tokens": 6}, "") == CHECKS[11][1]
    assert refusal(tiny_server, "/generate", {"truncate": 0}, "") == "`inputs` cannot be empty"


AT_THE_LIMIT: list[dict[str, Any]] = [
    {"best_of": 4, "do_sample": True},
    {"best_of": 2, "temperature": 1.0},
    {"best_of": 0},
    {"best_of": 1},
    {"temperature": 1e-30},
    {"temperature": 100},
    {"repetition_penalty": 1e-6},
    {"frequency_penalty": 2},
    {"frequency_penalty": -2.0},
    {"top_p": 0.0001},
    {"top_p": 0.9999},
    {"typical_p": 0.9999},
    {"top_k": 1},
    {"top_k": 2**31 - 1},
    {"stop": list("abcd")},
    {"stop": []},
    {"seed": 0},
    {"seed": 2**64 - 1},
    {"top_n_tokens": 5},
    {"top_n_tokens": 0},
    {"truncate": 4095},
    {"truncate": 1},
    {"watermark": True},
    {"grammar": {"type": "regex", "value": "[a-z]"}},
    dict.fromkeys(("best_of", "temperature", "top_k", "top_p", "typical_p", "seed", "truncate", "grammar")),
    dict.fromkeys(("do_sample", "stop", "watermark", "decoder_input_details", "adapter_id")),
    {"something_new": 1},
]


@pytest.mark.parametrize("parameters", AT_THE_LIMIT, ids=lambda value: str(value)[:50])
def test_at_a_limit(tiny_server: Server, parameters: dict[str, Any]) -> None:
    body = {"inputs": TEXT, "parameters": {"max_new_tokens": 1, "details": True, **parameters}, "unknown": [1]}
    details = post(tiny_server, "/generate", body).json["details"]
    assert details["generated_tokens"] == 1
    if (parameters.get("best_of") or 1) == 1:
        return
    assert len(details["best_of_sequences"]) == parameters["best_of"] - 1


def test_the_context_is_filled_to_the_last_token(tiny_server: Server) -> None:
    text, count = long_prompt(tiny_server)
    room = 4096 - count
    answer = post(
        tiny_server, "/generate", {"inputs": text, "parameters": {"max_new_tokens": room, "ignore_eos": True}}
    )
    assert answer.status == 200 and answer.header("x-generated-tokens") == str(room)
    want = "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: "
    assert refusal(tiny_server, "/generate", {"max_new_tokens": room + 1}, text).startswith(want)
    long = "z" * 5000
    number = len(post(tiny_server, "/tokenize", {"inputs": long}).json)
    # TGI looks at the total first; without `max_new_tokens` at the prompt.
    assert refusal(tiny_server, "/generate", {"max_new_tokens": 1}, long).startswith(want)
    assert refusal(tiny_server, "/generate", {}, long) == f"`inputs` must have less than 4095 tokens. Given: {number}"


def test_what_a_stream_refuses_first(tiny_server: Server) -> None:
    refused = [
        ({"best_of": 2}, "`best_of` != 1 is not supported when streaming tokens"),
        ({"best_of": 0}, "`best_of` != 1 is not supported when streaming tokens"),
        ({"best_of": 9, "top_p": 1.0}, "`best_of` != 1 is not supported when streaming tokens"),
        ({"decoder_input_details": True}, "`decoder_input_details` == true is not supported when streaming tokens"),
        (
            {"decoder_input_details": True, "temperature": 0},
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
    ]
    for parameters, text in refused:
        for path, body in (("/generate_stream", {}), ("/", {"stream": True})):
            answer = post(tiny_server, path, {"inputs": TEXT, "parameters": parameters, **body})
            assert answer.events == [{"error": f"Input validation error: {text}", "error_type": "validation"}]
            assert answer.header("x-compute-characters") == str(len(TEXT))
    fine = post(tiny_server, "/generate_stream", {"inputs": TEXT, "parameters": {"best_of": 1, "max_new_tokens": 1}})
    assert len(fine.events) == 1


def test_a_server_with_limits_of_its_own_names_them(limited_server: Server) -> None:
    def text(parameters: dict[str, Any], inputs: str = TEXT) -> str:
        body = {"inputs": inputs, "parameters": parameters}
        answer = post(limited_server, "/generate", body, authorization="Bearer Conformance-Key")
        assert answer.status == 422, answer.body
        return str(answer.json["error"]).removeprefix("Input validation error: ")

    assert text({"best_of": 2, "do_sample": True}) == "`best_of` != 1 is not allowed for this endpoint"
    assert text({"stop": ["a", "b"]}) == "`stop` supports up to 1 stop sequences. Given: 2"
    assert text({"top_n_tokens": 3}) == "`top_n_tokens` must be >= 0 and <= 2. Given: 3"
    assert text({"truncate": 33}) == "`truncate` must be strictly positive and less than 32. Given: 33"
    assert text({"grammar": {"type": "regex", "value": "a"}}) == "grammar is not supported"
    assert text({}, "z" * 40) == "`inputs` must have less than 32 tokens. Given: 41"
    total = "`inputs` tokens + `max_new_tokens` must be <= 64. Given: 4 `inputs` tokens and 61 `max_new_tokens`"
    assert text({"max_new_tokens": 61, "truncate": 4}, "z" * 40) == total


def test_info_has_every_key_of_tgi_old_and_new(tiny_server: Server) -> None:
    info = get(tiny_server, "/info").json
    keys = "model_id model_sha model_pipeline_tag max_concurrent_requests max_best_of max_stop_sequences "
    keys += "max_input_tokens max_total_tokens validation_workers max_client_batch_size router version sha docker_label"
    assert set(keys.split()) <= set(info)
    assert set("model_dtype model_device_type max_input_length max_batch_total_tokens".split()) <= set(info)
    assert (info["max_total_tokens"], info["max_input_tokens"], info["max_input_length"]) == (4096, 4095, 4095)
    assert (info["model_pipeline_tag"], info["max_concurrent_requests"]) == ("text-generation", 128)
    assert (info["max_best_of"], info["max_stop_sequences"], info["max_client_batch_size"]) == (4, 4, 4)
