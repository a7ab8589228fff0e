"""What parameters mean together: sampling and seeds, best_of, truncation, ends, log-probabilities."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.api.conformance.conftest import KEY
from tests.api.conformance.raw import post
from tests.serving import Server

TEXT = "count to ten"
MANY = 12
TOLERANCE = 1e-4


def generate(server: Server, inputs: str = TEXT, **parameters: Any) -> dict[str, Any]:
    body = {"inputs": inputs, "parameters": {"max_new_tokens": MANY, "details": True, **parameters}}
    answer = post(server, "/generate", body, authorization=f"Bearer {KEY}")
    assert answer.status == 200, answer.body
    details: dict[str, Any] = answer.json["details"]
    return {"text": answer.json["generated_text"], **details}


# Sampling and seeds.


def test_without_parameters_tgi_samples_and_with_empty_ones_it_does_not(tiny_server: Server) -> None:
    # Only the context ends these; the first tokens tell them apart.
    def first_tokens(body: dict[str, Any]) -> list[int]:
        events = post(tiny_server, "/generate_stream", body).events
        return [event["token"]["id"] for event in events[:10]]

    long = {"inputs": "z " * 2040}  # little room, so that it ends soon
    assert first_tokens({**long, "parameters": {}}) == first_tokens({**long, "parameters": {"do_sample": False}})
    drawn = {tuple(first_tokens(long)) for _ in range(3)}
    assert len(drawn) == 3


@pytest.mark.parametrize(
    ("parameters", "is_sampling"),
    [
        ({}, False),
        ({"temperature": 1.0}, False),
        ({"do_sample": False}, False),
        ({"do_sample": True}, True),
        ({"temperature": 0.5}, True),
        ({"top_k": 10}, True),
        ({"top_p": 0.9}, True),
        ({"typical_p": 0.9}, True),
        ({"repetition_penalty": 1.1, "frequency_penalty": 0.5, "watermark": True}, False),
        ({"do_sample": False, "top_k": 3}, True),
    ],
)
def test_the_seed_is_reported_if_one_was_used(
    tiny_server: Server, parameters: dict[str, Any], is_sampling: bool
) -> None:
    one, other = (generate(tiny_server, **parameters) for _ in range(2))
    assert (one["seed"] is not None) == is_sampling
    assert (one["seed"] != other["seed"]) == is_sampling
    given = generate(tiny_server, seed=2**64 - 1, **parameters)
    assert given["seed"] == (2**64 - 1 if is_sampling else None)
    assert given == generate(tiny_server, seed=2**64 - 1, **parameters)


def test_drawn_seeds_use_all_64_bits(tiny_server: Server) -> None:
    seeds = [generate(tiny_server, do_sample=True, max_new_tokens=1)["seed"] for _ in range(24)]
    assert max(seeds) > 2**60 and len(set(seeds)) == 24
    again = generate(tiny_server, do_sample=True, seed=seeds[0])
    assert again == generate(tiny_server, do_sample=True, seed=seeds[0])


def test_temperature_one_satisfies_best_of_but_samples_nothing(tiny_server: Server) -> None:
    answer = generate(tiny_server, best_of=2, temperature=1.0)
    assert answer["seed"] is None and answer["text"] == generate(tiny_server)["text"]


# best_of.


def mean(sequence: dict[str, Any]) -> float:
    return sum(token["logprob"] for token in sequence["tokens"]) / len(sequence["tokens"])


def test_the_best_of_several_comes_first(tiny_server: Server) -> None:
    parameters = {"best_of": 3, "do_sample": True, "top_n_tokens": 2, "decoder_input_details": True}
    answer = generate(tiny_server, **parameters)
    others = answer["best_of_sequences"]
    keys = ["finish_reason", "generated_tokens", "seed", "prefill", "tokens", "top_tokens"]
    assert [list(other) for other in others] == [["generated_text", *keys]] * 2
    assert set(answer) == {"text", *keys, "best_of_sequences"}
    assert all(mean(answer) >= mean(other) for other in others)
    assert len({answer["seed"], *(other["seed"] for other in others)}) == 3
    assert all(other["prefill"] == answer["prefill"] != [] for other in others)
    alone = generate(tiny_server, do_sample=True, seed=answer["seed"])
    assert alone["text"] == answer["text"], "a seed gives its text again"


def test_best_of_without_details_is_the_text_alone(tiny_server: Server) -> None:
    parameters = {"best_of": 2, "do_sample": True, "max_new_tokens": 4}
    answer = post(tiny_server, "/generate", {"inputs": TEXT, "parameters": parameters})
    assert list(answer.json) == ["generated_text"]
    assert answer.header("x-generated-tokens") == "4", "of the winner"
    assert answer.header("x-compute-characters") == str(len(TEXT))
    assert "best_of_sequences" not in generate(tiny_server, best_of=1)
    full = generate(tiny_server, best_of=2, do_sample=True, return_full_text=True)
    assert all(text.startswith(TEXT) for text in (full["text"], full["best_of_sequences"][0]["generated_text"]))


# Truncation.


def test_truncation_keeps_the_end_and_the_text_that_was_given(tiny_server: Server) -> None:
    parameters = {"truncate": 2, "decoder_input_details": True, "return_full_text": True, "max_new_tokens": 1}
    answer = generate(tiny_server, "the quick brown fox", **parameters)
    tokens = post(tiny_server, "/tokenize", {"inputs": "the quick brown fox", "parameters": parameters}).json
    assert [t["id"] for t in answer["prefill"]] == [t["id"] for t in tokens[-2:]] and len(tokens) > 2
    assert answer["text"].startswith("the quick brown fox")
    untouched = generate(tiny_server, "the", truncate=4095, decoder_input_details=True, max_new_tokens=1)
    assert "".join(token["text"] for token in untouched["prefill"]) == "the"


def test_truncation_keeps_the_token_that_begins_every_text(limited_server: Server) -> None:
    def kept(count: int) -> list[str]:
        parameters = {"truncate": count, "decoder_input_details": True, "max_new_tokens": 1}
        return [t["text"] for t in generate(limited_server, "the quick brown fox", **parameters)["prefill"]]

    whole = kept(32)
    assert whole[0] == "<|endoftext|>" and "".join(whole[1:]) == "the quick brown fox"
    assert kept(3) == [whole[0], *whole[-2:]] and kept(1) == whole[:1]
    tokens = post(limited_server, "/tokenize", {"inputs": "the"}, x_api_key=KEY).json
    assert tokens[0] == {"id": tokens[0]["id"], "text": "", "start": 0, "stop": 0}, "an added token"
    assert tokens[-1]["stop"] == 3
    # Many more characters than the context can hold, of which a few are wanted.
    assert post(limited_server, "/generate", {"inputs": "z" * 900}, x_api_key=KEY).status == 422
    assert generate(limited_server, "z" * 900, truncate=8, max_new_tokens=1)["generated_tokens"] == 1


# Ends.

TURN = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_limit_is_the_reason_even_where_the_text_ends_there(demo_server: Server) -> None:
    ended = generate(demo_server, TURN, max_new_tokens=60)
    count = ended["generated_tokens"]
    assert ended["finish_reason"] == "eos_token" and count == len(ended["tokens"]) < 60
    last = ended["tokens"][-1]
    assert last["special"] and last["text"] == "<|im_end|>" and last["text"] not in ended["text"]
    cut = generate(demo_server, TURN, max_new_tokens=count)
    assert cut["finish_reason"] == "length" and cut["tokens"] == ended["tokens"] and cut["text"] == ended["text"]


def test_a_stop_sequence_stays_in_the_text(tiny_server: Server) -> None:
    text = generate(tiny_server, max_new_tokens=30)["text"]
    stop = text[4:6]
    answer = generate(tiny_server, max_new_tokens=30, stop=[stop, "never"])
    assert answer["text"] == text[: text.index(stop) + len(stop)] and answer["finish_reason"] == "stop_sequence"
    older = generate(tiny_server, max_new_tokens=30, stop_sequences=[stop])
    assert older == answer, "sent beside `stop` by older front ends"
    # Only what is generated can stop; and at the limit, the limit is the reason.
    assert generate(tiny_server, stop=[TEXT])["finish_reason"] == "length"
    count = answer["generated_tokens"]
    assert generate(tiny_server, max_new_tokens=count, stop=[stop])["finish_reason"] == "length"


def test_a_least_number_of_tokens_and_an_end_that_is_none(demo_server: Server) -> None:
    usual = generate(demo_server, TURN, max_new_tokens=60)
    count = usual["generated_tokens"]
    assert generate(demo_server, TURN, max_new_tokens=60, min_new_tokens=count + 5)["generated_tokens"] > count + 5
    at_least = generate(demo_server, TURN, max_new_tokens=60, min_new_tokens=count - 1)
    assert at_least["generated_tokens"] == count, "an end is allowed once that many have come"
    assert generate(demo_server, TURN, max_new_tokens=60, ignore_eos=True)["finish_reason"] == "length"
    stop = usual["tokens"][0]["text"]
    assert generate(demo_server, TURN, max_new_tokens=60, stop=[stop])["generated_tokens"] == 1
    assert generate(demo_server, TURN, max_new_tokens=60, stop=[stop], min_new_tokens=1)["generated_tokens"] > 1


# Log-probabilities, against Transformers.


@pytest.fixture(scope="module")
def reference(tiny_folder: Path) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    return model.eval()


@torch.inference_mode()
def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """[tokens, vocabulary], of the token after each."""
    found: torch.Tensor = model(torch.tensor([ids])).logits[0].float()
    return found


def test_those_of_the_prompt_are_the_models_own(tiny_server: Server, reference: torch.nn.Module) -> None:
    # Whatever changes the answer's odds leaves the prompt's alone.
    answer = generate(tiny_server, decoder_input_details=True, repetition_penalty=3.0, temperature=0.2, seed=1)
    ids = [token["id"] for token in answer["prefill"]]
    want = logits(reference, ids).log_softmax(-1)
    assert answer["prefill"][0]["logprob"] is None and len(ids) > 2
    for place, token in enumerate(answer["prefill"][1:], 1):
        assert token["logprob"] == pytest.approx(want[place - 1, token["id"]].item(), abs=TOLERANCE)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"repetition_penalty": 1.7},
        {"temperature": 0.4, "seed": 3},
        {"temperature": 1.6, "top_k": 7, "seed": 4},
        {"top_k": 1, "seed": 5},
    ],
    ids=str,
)
def test_those_of_an_answer_are_what_is_left_after_every_rule(
    tiny_server: Server, reference: torch.nn.Module, parameters: dict[str, Any]
) -> None:
    answer = generate(tiny_server, decoder_input_details=True, top_n_tokens=5, **parameters)
    prompt = [token["id"] for token in answer["prefill"]]
    chosen = [token["id"] for token in answer["tokens"]]
    plain = logits(reference, prompt + chosen)
    for step, (token, top) in enumerate(zip(answer["tokens"], answer["top_tokens"], strict=True)):
        seen = prompt + chosen[:step]
        row = plain[len(seen) - 1].clone()
        penalty = parameters.get("repetition_penalty", 1.0)
        for id in set(seen):
            row[id] = row[id] * penalty if row[id] < 0 else row[id] / penalty
        row /= parameters.get("temperature", 1.0)
        if "top_k" in parameters:
            row[row < row.topk(parameters["top_k"]).values[-1]] = -math.inf
        want = row.log_softmax(-1)
        assert token["logprob"] == pytest.approx(want[token["id"]].item(), abs=TOLERANCE)
        num_left = min(5, int(want.isfinite().sum()))
        assert [other["id"] for other in top] == want.topk(num_left).indices.tolist()
        assert [other["logprob"] for other in top] == pytest.approx(want.topk(num_left).values.tolist(), abs=TOLERANCE)
    if parameters.get("top_k") == 1:
        assert {token["logprob"] for token in answer["tokens"]} == {0.0}, "the only one left"


def test_numbers_have_as_many_digits_as_32_bits_need(tiny_server: Server) -> None:
    answer = generate(tiny_server, decoder_input_details=True, top_n_tokens=5, max_new_tokens=20)
    numbers = [token["logprob"] for token in answer["prefill"][1:] + answer["tokens"]]
    numbers += [token["logprob"] for top in answer["top_tokens"] for token in top]
    for number in numbers:
        as_float32 = torch.tensor(number, dtype=torch.float32).numpy()
        assert repr(number) == str(as_float32), "the shortest that names this number"


def test_a_watermark_shifts_the_odds_of_every_token(tiny_server: Server) -> None:
    def odds(**parameters: Any) -> list[float]:
        (tokens,) = generate(tiny_server, max_new_tokens=1, top_n_tokens=5, **parameters)["top_tokens"]
        return [token["logprob"] for token in tokens]

    assert odds() == odds(watermark=False) == odds(watermark=None)
    assert odds(watermark=True) != odds() and odds(watermark=True) == odds(watermark=True)
