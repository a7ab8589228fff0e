"""Chat and completions on the wire: ends, usage, log-probabilities, prompts; and the gaps of TGI that are closed."""

import json
from typing import Any

import pytest

from tests.api.conformance.raw import Answer, call, get, post
from tests.serving import Server

HI = [{"role": "user", "content": "hi"}]
CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CHAT: dict[str, Any] = {"messages": HI, "max_tokens": 8, "temperature": 0}
COMPLETION: dict[str, Any] = {"prompt": "count", "max_tokens": 8, "temperature": 0}


def content(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)


# Chat.


def test_the_reason_of_every_end(demo_server: Server, tiny_server: Server) -> None:
    whole = post(demo_server, CHATS, CHAT | {"max_tokens": 60}).json
    (choice,) = whole["choices"]
    count = whole["usage"]["completion_tokens"]
    assert choice["finish_reason"] == "stop" and count < 60
    cut = post(demo_server, CHATS, CHAT | {"max_tokens": count - 1}).json["choices"][0]
    assert cut["finish_reason"] == "length" and choice["message"]["content"].startswith(cut["message"]["content"])
    text = choice["message"]["content"]
    stop = text[3:5]
    for form in (stop, [stop]):
        for stream in (False, True):
            answer = post(demo_server, CHATS, CHAT | {"max_tokens": 60, "stop": form, "stream": stream})
            if stream:
                *chunks, _ = answer.events
                found, reason = content(chunks), chunks[-1]["choices"][0]["finish_reason"]
            else:
                (only,) = answer.json["choices"]
                found, reason = only["message"]["content"], only["finish_reason"]
            assert (found, reason) == (text[: text.index(stop)], "stop"), "where TGI says stop_sequence"


def test_a_stream_says_what_the_whole_answer_says(demo_server: Server) -> None:
    body = CHAT | {"max_tokens": 60, "logprobs": True, "top_logprobs": 3}
    whole = post(demo_server, CHATS, body).json
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = post(demo_server, CHATS, body | options).events
    assert content(chunks) == whole["choices"][0]["message"]["content"] and done == b"[DONE]"
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == len(chunks)
    streamed = [token for chunk in chunks for token in chunk["choices"][0]["logprobs"]["content"]]
    assert streamed == whole["choices"][0]["logprobs"]["content"]
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1 and chunks[0]["id"].startswith("chatcmpl-")
    for token in streamed:
        assert set(token) == {"token", "logprob", "bytes", "top_logprobs"} and len(token["top_logprobs"]) == 3
        assert token["bytes"] == list(token["token"].encode())
    assert "<|" not in content(chunks), "special tokens are no content"
    plain = post(demo_server, CHATS, CHAT | {"logprobs": True, "max_tokens": 2}).json
    assert [t["top_logprobs"] for t in plain["choices"][0]["logprobs"]["content"]] == [[], []]
    assert post(demo_server, CHATS, CHAT | {"max_tokens": 1}).json["choices"][0]["logprobs"] is None


def test_the_last_turn_of_the_assistant_is_continued(tiny_server: Server) -> None:
    messages = [*HI, {"role": "assistant", "content": "count to   "}]
    templated = post(tiny_server, "/chat_tokenize", {"messages": messages}).json["templated_text"]
    assert templated.endswith("<|im_start|>assistant\ncount to"), "trimmed at the end"
    # As a raw prompt; nothing is repeated in the answer.
    chat = post(tiny_server, CHATS, CHAT | {"messages": messages}).json["choices"][0]["message"]["content"]
    raw = post(tiny_server, COMPLETIONS, COMPLETION | {"prompt": templated}).json["choices"][0]["text"]
    assert chat == raw
    asked = post(tiny_server, "/chat_tokenize", {"messages": HI}).json["templated_text"]
    assert asked.endswith("<|im_start|>assistant\n")


# Completions.


def test_prompts_come_back_in_order_and_are_counted_together(tiny_server: Server) -> None:
    prompts = ["count", "the quick", "what is", "ten"]
    alone = [post(tiny_server, COMPLETIONS, COMPLETION | {"prompt": prompt}).json for prompt in prompts]
    together = post(tiny_server, COMPLETIONS, COMPLETION | {"prompt": prompts}).json
    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in together["choices"]] == [one["choices"][0]["text"] for one in alone]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert together["usage"][name] == sum(one["usage"][name] for one in alone)
    options = {"prompt": prompts, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = post(tiny_server, COMPLETIONS, COMPLETION | options).events
    assert usage["usage"]["total_tokens"] == together["usage"]["total_tokens"] and done == b"[DONE]"
    for choice in together["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert [part["finish_reason"] for part in mine] == [None] * (len(mine) - 1) + ["length"]


def test_what_completions_refuse(tiny_server: Server) -> None:
    def refused(**fields: Any) -> tuple[int, str, str]:
        for stream in (True, False):  # before any stream, too
            answer = post(tiny_server, COMPLETIONS, {**COMPLETION, **fields, "stream": stream})
        return answer.status, answer.json["error"]["message"], answer.json["error_type"]

    batch = "Number of prompts exceeds the maximum allowed batch size of 4"
    assert refused(prompt=["x"] * 5) == (400, batch, "batch size exceeded")
    suffix = "Suffix is not supported and can be achieved by preprocessing the prompt."
    assert refused(suffix=".") == (400, suffix, "suffix not supported")
    assert "Empty array detected. Do not use an empty array for the prompt." in refused(prompt=[])[1]
    assert refused(prompt=["fine", ""])[2] == "validation"


def test_special_tokens_are_no_text(demo_server: Server) -> None:
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    body = COMPLETION | {"prompt": prompt, "max_tokens": 60}
    (choice,) = post(demo_server, COMPLETIONS, body).json["choices"]
    *chunks, _ = post(demo_server, COMPLETIONS, body | {"stream": True}).events
    streamed = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert choice["text"] == streamed and "<|im_end|>" not in streamed, "TGI's streams end with its text"
    assert choice["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "stop"


# Gaps of TGI: what its users complain about works here.


def test_neutral_values_are_accepted(tiny_server: Server) -> None:
    plain = post(tiny_server, CHATS, CHAT).json["choices"]
    fields = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "n": 1, "logit_bias": {}}
    fields |= {"stream_options": None, "stop": None, "stream": False, "tools": None, "logprobs": None}
    assert post(tiny_server, CHATS, CHAT | fields).json["choices"] == plain, "0 is no penalty, 1 is every token"
    assert post(tiny_server, CHATS, CHAT | {"top_p": 0, "temperature": 1}).json["choices"] == plain
    assert post(tiny_server, CHATS, CHAT | {"top_p": 0.5}).json["choices"] == plain, "temperature 0 never samples"


def test_fields_that_tgi_ignores_are_honoured(tiny_server: Server) -> None:
    plain = post(tiny_server, CHATS, CHAT).json
    several = post(tiny_server, CHATS, CHAT | {"n": 3, "temperature": 1, "seed": 1}).json
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in several["choices"]}) == 3
    for changed in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"logit_bias": {"70": 100}}):
        assert post(tiny_server, CHATS, CHAT | {"max_tokens": 24} | changed).json["choices"] != plain["choices"]
    echoed = post(tiny_server, COMPLETIONS, COMPLETION | {"echo": True, "logprobs": 2}).json["choices"][0]
    assert echoed["text"].startswith("count") and echoed["logprobs"]["text_offset"][0] == 0
    many = post(tiny_server, CHATS, CHAT | {"logprobs": True, "top_logprobs": 20, "max_tokens": 1}).json
    assert len(many["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 20, "TGI has five"


def test_ids_are_unique_and_kinds_are_told_apart(tiny_server: Server) -> None:
    ids = [post(tiny_server, path, body).json["id"] for path, body in ((CHATS, CHAT), (COMPLETIONS, COMPLETION)) * 2]
    assert len(set(ids)) == 4 and [id.split("-")[0] for id in ids] == ["chatcmpl", "cmpl"] * 2


INVALID: list[dict[str, Any]] = [{"temperature": -1}, {"top_p": 2}, {"max_tokens": 0}, {"stop": list("abcde")}]


@pytest.mark.parametrize("fields", INVALID, ids=str)
def test_an_invalid_request_is_no_stream(tiny_server: Server, fields: dict[str, Any]) -> None:
    def error(**more: Any) -> Answer:
        return post(tiny_server, CHATS, CHAT | fields | more)

    assert error(stream=True).status == error().status == 400
    assert error(stream=True).body == error().body and error().json["error"]["param"]


def test_a_character_that_is_cut_off_takes_no_text_with_it(tiny_server: Server) -> None:
    def text(count: int) -> str:
        parameters = {"max_new_tokens": count, "seed": 3, "do_sample": True}
        answer = post(tiny_server, "/generate", {"inputs": "count", "parameters": parameters}).json
        return str(answer["generated_text"])

    whole = text(40)
    for count in range(30, 40):  # a random model often stops inside a character
        assert text(count).rstrip("\ufffd") == whole[: len(text(count).rstrip("\ufffd"))] != ""


def test_answers_longer_than_tgis_pieces_are_exact(tiny_server: Server) -> None:
    """TGI cuts at 1024 tokens, writes on from the text, and may miss the limit."""
    body = {"inputs": "count", "parameters": {"max_new_tokens": 1030, "details": True}}
    answer = post(tiny_server, "/generate", body).json
    assert answer["details"]["generated_tokens"] == 1030 == len(answer["details"]["tokens"])
    part = post(tiny_server, "/generate", {"inputs": "count", "parameters": {"max_new_tokens": 1024, "details": True}})
    assert part.json["details"]["tokens"] == answer["details"]["tokens"][:1024]


def test_models(tiny_server: Server) -> None:
    listed = get(tiny_server, "/v1/models").json
    (entry,) = listed["data"]
    served = get(tiny_server, "/info").json["model_id"]
    assert listed["object"] == "list"
    assert (entry["id"], entry["object"], entry["created"], entry["owned_by"]) == (served, "model", 0, served)
    assert get(tiny_server, f"/v1/models/{served}").json == entry
    missing = get(tiny_server, "/v1/models/other")
    assert (missing.status, missing.json["error"]["code"]) == (404, "model_not_found")
    assert call(tiny_server, "HEAD", "/v1/models").body == b""
    assert json.dumps(listed, separators=(",", ":"), ensure_ascii=False).encode() == get(tiny_server, "/v1/models").body
