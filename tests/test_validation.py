"""TGI's bounds, words and checking order; what passes is a native request that says the same."""

from dataclasses import replace
from typing import Any

import pytest

from tgi_local.assembly import _limits
from tgi_local.errors import UnsupportedError, ValidationError
from tgi_local.settings import load_settings
from tgi_local.types import GenerationRequest, Limits, RequestParameters, TextOptions, Watermark
from tgi_local.validation import build_request, check_parameters, with_new_seed

LIMITS = Limits(
    max_best_of=2,
    max_stop_sequences=4,
    max_top_n_tokens=5,
    max_input_tokens=4095,
    max_total_tokens=4096,
    max_client_batch_size=4,
    max_concurrent_requests=128,
    max_batch_total_tokens=8192,
    vocab_size=1000,
)
NAN = float("nan")
EOS = frozenset({2})


def build(prompt: int = 10, limits: Limits = LIMITS, **parameters: Any) -> GenerationRequest:
    """Check and build, for a prompt of that many tokens."""
    checked = RequestParameters(**parameters)
    check_parameters(checked, limits)
    return build_request(checked, "text", range(100, 100 + prompt), limits, EOS, received_s=1.5)


def refusal(prompt: int = 10, limits: Limits = LIMITS, **parameters: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        build(prompt, limits, **parameters)
    return caught.value


BEST_OF = "`best_of` must be > 0 and <= 2. Given: 3"
TEMPERATURE = "`temperature` must be strictly positive"
REPETITION = "`repetition_penalty` must be strictly positive"
FREQUENCY = "`frequency_penalty` must be >= -2.0 and <= 2.0"
TOP_P = "`top_p` must be > 0.0 and < 1.0"
TYPICAL_P = "`typical_p` must be > 0.0 and < 1.0"
TOP_K = "`top_k` must be strictly positive"
NEW_TOKENS = "`max_new_tokens` must be strictly positive"
STOP = "`stop` supports up to 4 stop sequences. Given: 5"
SEED = "`seed` must not be set when `best_of` > 1"
TOP_N = "`top_n_tokens` must be >= 0 and <= 5. Given: 6"
TOTAL = "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 97 `max_new_tokens`"

# In TGI's checking order: what is wrong, and the field that carries the blame.
BOUNDS: list[tuple[dict[str, Any], str, str]] = [
    ({"best_of": 3, "do_sample": True}, BEST_OF, "best_of"),
    ({"best_of": 2}, "you must use sampling when `best_of` is > 1", "best_of"),
    ({"temperature": 0.0}, TEMPERATURE, "temperature"),
    ({"temperature": -1.0}, TEMPERATURE, "temperature"),
    ({"temperature": NAN}, TEMPERATURE, "temperature"),
    ({"repetition_penalty": 0.0}, REPETITION, "repetition_penalty"),
    ({"repetition_penalty": NAN}, REPETITION, "repetition_penalty"),
    ({"frequency_penalty": 2.1}, FREQUENCY, "frequency_penalty"),
    ({"frequency_penalty": -2.1}, FREQUENCY, "frequency_penalty"),
    ({"additive_frequency_penalty": -2.1}, FREQUENCY, "frequency_penalty"),
    ({"additive_frequency_penalty": NAN}, FREQUENCY, "frequency_penalty"),
    ({"additive_presence_penalty": 2.1}, "`presence_penalty` must be >= -2.0 and <= 2.0", "presence_penalty"),
    ({"top_p": 0.0}, TOP_P, "top_p"),
    ({"top_p": 1.0}, TOP_P, "top_p"),
    ({"top_p": NAN}, TOP_P, "top_p"),
    ({"typical_p": 0.0}, TYPICAL_P, "typical_p"),
    ({"typical_p": 1.0}, TYPICAL_P, "typical_p"),
    ({"top_k": 0}, TOP_K, "top_k"),
    ({"top_k": -1}, TOP_K, "top_k"),
    ({"min_p": -0.1}, "`min_p` must be >= 0.0 and <= 1.0", "min_p"),
    ({"min_p": NAN}, "`min_p` must be >= 0.0 and <= 1.0", "min_p"),
    ({"max_new_tokens": 0}, NEW_TOKENS, "max_new_tokens"),
    (
        {"max_new_tokens": 5, "min_new_tokens": 6},
        "`min_new_tokens` must be <= `max_new_tokens`. Given: 6 and 5",
        "min_new_tokens",
    ),
    ({"stop": ("a",) * 5}, STOP, "stop"),
    ({"stop": ("",)}, "`stop` sequences must have 1 to 256 characters", "stop"),
    ({"stop": ("x" * 257,)}, "`stop` sequences must have 1 to 256 characters", "stop"),
    ({"best_of": 2, "do_sample": True, "seed": 1}, SEED, "seed"),
    ({"top_n_tokens": 6}, TOP_N, "top_n_tokens"),
    ({"top_n_tokens": -1}, "`top_n_tokens` must be >= 0 and <= 5. Given: -1", "top_n_tokens"),
    (
        {"logit_bias": ((1000, 1.0),)},
        "`logit_bias` maps token ids below 1000 to values from -100 to 100",
        "logit_bias",
    ),
    ({"logit_bias": ((1, NAN),)}, "`logit_bias` maps token ids below 1000 to values from -100 to 100", "logit_bias"),
    ({"logit_bias": ((-1, 0.0),)}, "`logit_bias` maps token ids below 1000 to values from -100 to 100", "logit_bias"),
    ({"logit_bias": ((1, 1.0),) * 1025}, "`logit_bias` supports up to 1024 tokens", "logit_bias"),
    ({"prompt": 0}, "`inputs` cannot be empty", "inputs"),
    ({"truncate": 0}, "`truncate` must be strictly positive and less than 4095. Given: 0", "truncate"),
    ({"truncate": 4096}, "`truncate` must be strictly positive and less than 4095. Given: 4096", "truncate"),
    ({"prompt": 4000, "max_new_tokens": 97}, TOTAL, "max_new_tokens"),
    ({"prompt": 4096}, "`inputs` must have less than 4095 tokens. Given: 4096", "inputs"),
]


@pytest.mark.parametrize(("wrong", "text", "param"), BOUNDS, ids=[str(wrong)[:50] for wrong, *_ in BOUNDS])
def test_bounds(wrong: dict[str, Any], text: str, param: str) -> None:
    error = refusal(**wrong)
    assert error.message == f"Input validation error: {text}"
    assert (error.param, error.error_type, error.status, error.openai_status) == (param, "validation", 422, 400)


def test_best_of_on_a_server_that_allows_none() -> None:
    error = refusal(limits=replace(LIMITS, max_best_of=1), best_of=2, do_sample=True)
    assert error.message == "Input validation error: `best_of` != 1 is not allowed for this endpoint"


IN_ORDER: list[tuple[dict[str, Any], str]] = [
    ({"best_of": 3}, BEST_OF),
    ({"temperature": -1.0}, TEMPERATURE),
    ({"repetition_penalty": -1.0}, REPETITION),
    ({"frequency_penalty": 9.0}, FREQUENCY),
    ({"top_p": 2.0}, TOP_P),
    ({"typical_p": 2.0}, TYPICAL_P),
    ({"top_k": 0}, TOP_K),
    ({"max_new_tokens": 0}, NEW_TOKENS),
    ({"stop": ("a",) * 5}, STOP),
    ({"top_n_tokens": 6}, TOP_N),
    ({"prompt": 0}, "`inputs` cannot be empty"),
    ({"truncate": 0}, "`truncate` must be strictly positive and less than 4095. Given: 0"),
]


def test_the_first_failure_in_the_order_of_tgi_wins() -> None:
    wrong: dict[str, Any] = {}
    for addition, text in reversed(IN_ORDER):
        wrong |= addition
        assert refusal(**wrong).detail == text


def test_the_total_is_checked_before_the_input() -> None:
    text = "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 1 `max_new_tokens`"
    error = refusal(prompt=5000, max_new_tokens=1)
    assert error.detail == text and error.code == "context_length_exceeded"
    assert refusal(prompt=5000).code == "context_length_exceeded"


def test_only_1024_new_tokens_are_checked_and_the_output_gets_what_room_there_is() -> None:
    request = build(prompt=3000, max_new_tokens=100_000)
    assert request.stopping.max_new_tokens == 1096
    text = "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 3073 `inputs` tokens and 1024 `max_new_tokens`"
    assert refusal(prompt=3073, max_new_tokens=100_000).detail == text


@pytest.mark.parametrize(
    ("parameters", "name"),
    [({"adapter_id": "x"}, "adapter_id")],
)
def test_what_is_not_supported_is_refused_by_name(parameters: dict[str, Any], name: str) -> None:
    error = refusal(**parameters)
    assert isinstance(error, UnsupportedError) and name in error.message and error.param == name


@pytest.mark.parametrize(
    "fine",
    [
        {"prompt": 4095},
        {"prompt": 4095, "max_new_tokens": 1},
        {"truncate": 4095},
        {"truncate": 1},
        {"best_of": 0},
        {"best_of": 1, "seed": 3},
        {"best_of": 2, "temperature": 1.0},
        {"best_of": 2, "do_sample": True},
        {"temperature": 100.0},
        {"top_p": 0.999, "typical_p": 0.001, "top_k": 10**9, "min_p": 1.0},
        {"frequency_penalty": -2.0, "additive_presence_penalty": 2.0, "additive_frequency_penalty": 2.0},
        {"stop": ("x" * 256,) * 4},
        {"max_new_tokens": 5, "min_new_tokens": 5},
        {"min_new_tokens": 10_000},
        {"top_n_tokens": 5},
        {"top_n_tokens": 0},
        {"logit_bias": ((999, -100.0), (0, 100.0))},
    ],
    ids=str,
)
def test_the_bounds_themselves_are_allowed(fine: dict[str, Any]) -> None:
    build(**fine)


def test_texts_never_echo_what_the_client_wrote() -> None:
    secret = "my secret"
    for wrong in ({"stop": (secret,) * 9}, {"stop": (secret * 50,)}, {"adapter_id": secret}):
        assert "secret" not in refusal(**wrong).message


def test_defaults_are_greedy_and_unlimited() -> None:
    request = build()
    sampling = request.sampling
    assert sampling.is_greedy and not sampling.uses_history and sampling.logit_bias == ()
    assert (sampling.top_k, sampling.top_p, sampling.typical_p, sampling.min_p, sampling.top_n_tokens) == (
        0,
        1,
        1,
        0,
        0,
    )
    assert request.stopping.max_new_tokens == 4096 - 10, "no limit given: all the room there is"
    assert request.stopping.stop_token_ids == EOS and request.stopping.stop_strings == ()
    assert (request.prompt_text, request.prompt_token_ids) == ("text", tuple(range(100, 110)))
    assert request.received_s == 1.5 and not request.prompt_logprobs


def test_every_value_reaches_the_request() -> None:
    text = TextOptions(keep_stop_string=False, parse_chat=True)
    request = build(
        temperature=0.7,
        repetition_penalty=1.1,
        frequency_penalty=0.2,
        additive_frequency_penalty=0.3,
        additive_presence_penalty=0.4,
        top_k=5,
        top_p=0.9,
        typical_p=0.8,
        min_p=0.1,
        max_new_tokens=7,
        stop=("a", "b"),
        seed=2**64 - 1,
        top_n_tokens=3,
        prompt_logprobs=True,
        logit_bias=((3, 1.0),),
        ignore_eos=True,
        text=text,
    )
    s = request.sampling
    assert (s.temperature, s.top_k, s.top_p, s.typical_p, s.min_p, s.seed) == (0.7, 5, 0.9, 0.8, 0.1, 2**64 - 1)
    assert (s.repetition_penalty, s.relative_frequency_penalty) == (1.1, 0.2)
    assert (s.frequency_penalty, s.presence_penalty) == (0.3, 0.4)
    assert (s.top_n_tokens, s.logit_bias) == (3, ((3, 1.0),))
    assert request.stopping.max_new_tokens == 7 and request.stopping.stop_strings == ("a", "b")
    assert request.stopping.stop_token_ids == frozenset(), "ignore_eos"
    assert request.prompt_logprobs and request.text == text


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({}, 0.0),
        ({"temperature": 1.0}, 0.0),
        ({"temperature": 0.5}, 0.5),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 1.0}, 1.0),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.5}, 1.0),
        ({"typical_p": 0.5}, 1.0),
        ({"seed": 5}, 0.0),
        ({"repetition_penalty": 1.2}, 0.0),
    ],
    ids=str,
)
def test_when_tgi_samples(parameters: dict[str, Any], temperature: float) -> None:
    assert build(**parameters).sampling.temperature == temperature


def test_what_must_not_come_early_is_named_only_where_it_matters() -> None:
    assert (build().sampling.min_new_tokens, build().sampling.end_token_ids) == (0, ())
    for parameters in ({}, {"ignore_eos": True}):
        request = build(min_new_tokens=7, **parameters)
        assert (request.sampling.min_new_tokens, request.sampling.end_token_ids) == (7, (2,))
    assert request.stopping.stop_token_ids == frozenset(), "ignore_eos"


def test_a_watermark_has_the_values_of_the_server() -> None:
    assert build().sampling.watermark is None and build(watermark=False).sampling.watermark is None
    assert build(watermark=True).sampling.watermark == Watermark(gamma=0.5, delta=2.0)
    settings = load_settings(["--watermark-gamma", "0.25", "--watermark-delta", "3"])
    limits = _limits(settings, max_total=100, capacity=1000, vocab_size=10)
    assert build(limits=limits, watermark=True).sampling.watermark == Watermark(0.25, 3.0)


def test_truncate_keeps_the_end() -> None:
    assert build(truncate=3).prompt_token_ids == (107, 108, 109)
    assert build(truncate=50).prompt_token_ids == tuple(range(100, 110))
    assert len(build(prompt=9000, truncate=4095).prompt_token_ids) == 4095


def test_requests_without_a_seed_differ_and_ids_are_unique() -> None:
    requests = [build(do_sample=True) for _ in range(50)]
    assert len({request.sampling.seed for request in requests}) == 50
    assert len({request.request_id for request in requests}) == 50


def test_a_sibling_has_another_id_and_seed_and_is_the_same_otherwise() -> None:
    request = build(do_sample=True, seed=2**64 - 1)
    siblings = [request]
    for _ in range(20):
        siblings.append(with_new_seed(siblings[-1]))
    assert len({s.request_id for s in siblings}) == len({s.sampling.seed for s in siblings}) == 21
    assert all(0 <= s.sampling.seed < 2**64 for s in siblings)
    last = siblings[-1]
    same_seed = replace(last.sampling, seed=request.sampling.seed)
    assert replace(last, request_id=request.request_id, sampling=same_seed) == request
    assert with_new_seed(request).sampling.seed == siblings[1].sampling.seed, "deterministic in the seed"
