"""Bounds of the native request, in TGI's checking order and words. What passes is a GenerationRequest."""

import secrets
from collections.abc import Sequence
from dataclasses import replace

from tgi_local.errors import ContextLengthError, UnsupportedError, ValidationError
from tgi_local.types import CHECKED_NEW_TOKENS, GenerationRequest, Limits, RequestParameters, SamplingParams, StopParams

MAX_STOP_LENGTH = 256
MAX_LOGIT_BIAS = 1024
# A message is at least a byte; nothing that long can fit, and tokenizing it would only hold a worker.
MAX_CHARACTERS_PER_TOKEN = 64


def check_parameters(parameters: RequestParameters, limits: Limits) -> None:
    """Raise ValidationError for the first bound that is not met; the prompt is not needed for these."""
    p = parameters
    best_of = p.best_of or 1
    if best_of > 1 and limits.max_best_of == 1:
        raise ValidationError("`best_of` != 1 is not allowed for this endpoint", param="best_of")
    if best_of > limits.max_best_of or best_of < 1:
        raise ValidationError(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}", param="best_of")
    if best_of > 1 and not (p.is_sampling or p.temperature is not None):
        raise ValidationError("you must use sampling when `best_of` is > 1", param="best_of")
    _check_sampling(p)
    if p.max_new_tokens is not None and p.max_new_tokens <= 0:
        raise ValidationError("`max_new_tokens` must be strictly positive", param="max_new_tokens")
    if p.max_new_tokens is not None and p.min_new_tokens > p.max_new_tokens:
        raise ValidationError(
            f"`min_new_tokens` must be <= `max_new_tokens`. Given: {p.min_new_tokens} and {p.max_new_tokens}",
            param="min_new_tokens",
        )
    if len(p.stop) > limits.max_stop_sequences:
        raise ValidationError(
            f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {len(p.stop)}", param="stop"
        )
    if any(not 0 < len(stop) <= MAX_STOP_LENGTH for stop in p.stop):
        raise ValidationError(f"`stop` sequences must have 1 to {MAX_STOP_LENGTH} characters", param="stop")
    if p.seed is not None and best_of > 1:
        raise ValidationError("`seed` must not be set when `best_of` > 1", param="seed")
    _check_tokens(p, limits)
    _check_supported(p)


def check_num_sequences(count: int, limits: Limits) -> None:
    """Refuse a call that asks for more texts at once than are ever generated together. Raises ValidationError."""
    if count > limits.max_concurrent_requests:
        raise ValidationError(
            f"this asks for {count} texts at once, and no more than {limits.max_concurrent_requests} are generated at a time",
            param="n",
        )


def check_length(text: str, limits: Limits) -> None:
    """Refuse a text that can not fit before it is tokenized. Raises ValidationError."""
    if len(text) > limits.max_input_tokens * MAX_CHARACTERS_PER_TOKEN:
        raise ContextLengthError(
            f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {len(text)} characters",
            param="inputs",
            max_input_tokens=limits.max_input_tokens,
            max_total_tokens=limits.max_total_tokens,
        )


def checked_ids(token_ids: Sequence[int], vocab_size: int) -> list[int]:
    """A prompt that came as token ids. Raises ValidationError."""
    if any(not 0 <= token_id < vocab_size for token_id in token_ids):
        raise ValidationError(f"`prompt` token ids must be from 0 to {vocab_size - 1}", param="prompt")
    return list(token_ids)


def _check_sampling(p: RequestParameters) -> None:
    for name, value in (("temperature", p.temperature), ("repetition_penalty", p.repetition_penalty)):
        if value is not None and not value > 0:  # this way NaN is refused, too
            raise ValidationError(f"`{name}` must be strictly positive", param=name)
    for value in (p.frequency_penalty, p.additive_frequency_penalty):
        if value is not None and not -2.0 <= value <= 2.0:
            raise ValidationError("`frequency_penalty` must be >= -2.0 and <= 2.0", param="frequency_penalty")
    if not -2.0 <= p.additive_presence_penalty <= 2.0:
        raise ValidationError("`presence_penalty` must be >= -2.0 and <= 2.0", param="presence_penalty")
    for name, value in (("top_p", p.top_p), ("typical_p", p.typical_p)):
        if value is not None and not 0.0 < value < 1.0:
            raise ValidationError(f"`{name}` must be > 0.0 and < 1.0", param=name)
    if p.top_k is not None and p.top_k <= 0:
        raise ValidationError("`top_k` must be strictly positive", param="top_k")
    if not 0.0 <= p.min_p <= 1.0:
        raise ValidationError("`min_p` must be >= 0.0 and <= 1.0", param="min_p")


def _check_tokens(p: RequestParameters, limits: Limits) -> None:
    max_top_n_tokens = limits.max_top_n_tokens if p.max_top_n_tokens is None else p.max_top_n_tokens
    if p.top_n_tokens is not None and not 0 <= p.top_n_tokens <= max_top_n_tokens:
        raise ValidationError(
            f"`top_n_tokens` must be >= 0 and <= {max_top_n_tokens}. Given: {p.top_n_tokens}",
            param="top_n_tokens",
        )
    if any(token_id >= limits.vocab_size for token_id in p.stop_token_ids):
        raise ValidationError(f"`stop_token_ids` must be below {limits.vocab_size}", param="stop_token_ids")
    if len(p.logit_bias) > MAX_LOGIT_BIAS:
        raise ValidationError(f"`logit_bias` supports up to {MAX_LOGIT_BIAS} tokens", param="logit_bias")
    for token_id, bias in p.logit_bias:
        if not 0 <= token_id < limits.vocab_size or not -100.0 <= bias <= 100.0:
            raise ValidationError(
                f"`logit_bias` maps token ids below {limits.vocab_size} to values from -100 to 100", param="logit_bias"
            )


def _check_supported(p: RequestParameters) -> None:
    if p.adapter_id is not None:
        raise UnsupportedError("`adapter_id` is not supported: no adapters are loaded", param="adapter_id")


def build_request(
    parameters: RequestParameters,
    prompt_text: str,
    prompt_ids: Sequence[int],
    limits: Limits,
    eos_token_ids: frozenset[int],
    received_s: float,
    num_leading_ids: int = 0,
) -> GenerationRequest:
    """The native request for checked parameters. Raises ValidationError when prompt and output do not fit.

    Truncation keeps the first `num_leading_ids`, which the tokenizer has put before the text.
    """
    p = parameters
    if not prompt_ids:
        raise ValidationError("`inputs` cannot be empty", param="inputs")
    if p.truncate is not None and not 0 < p.truncate <= limits.max_input_tokens:
        raise ValidationError(
            f"`truncate` must be strictly positive and less than {limits.max_input_tokens}. Given: {p.truncate}",
            param="truncate",
        )
    if p.truncate is not None:
        num_dropped = max(0, len(prompt_ids) - p.truncate)
        prompt_ids = [*prompt_ids[:num_leading_ids], *prompt_ids[num_leading_ids + num_dropped :]][: p.truncate]
    num_prompt = len(prompt_ids)
    room = limits.max_total_tokens - num_prompt
    if p.max_new_tokens is not None and min(p.max_new_tokens, CHECKED_NEW_TOKENS) > room:
        num_new = min(p.max_new_tokens, CHECKED_NEW_TOKENS)
        raise ContextLengthError(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. Given: {num_prompt} `inputs` "
            f"tokens and {num_new} `max_new_tokens`",
            param="max_new_tokens",
            max_input_tokens=limits.max_input_tokens,
            max_total_tokens=limits.max_total_tokens,
            num_prompt_tokens=num_prompt,
            num_new_tokens=num_new,
        )
    if num_prompt > limits.max_input_tokens:
        raise ContextLengthError(
            f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {num_prompt}",
            param="inputs",
            max_input_tokens=limits.max_input_tokens,
            max_total_tokens=limits.max_total_tokens,
            num_prompt_tokens=num_prompt,
        )
    return GenerationRequest(
        request_id=secrets.token_hex(12),
        prompt_text=prompt_text,
        prompt_token_ids=tuple(prompt_ids),
        sampling=_sampling_params(p, limits, eos_token_ids | frozenset(p.stop_token_ids)),
        stopping=StopParams(
            max_new_tokens=room if p.max_new_tokens is None else min(p.max_new_tokens, room),
            stop_token_ids=frozenset(p.stop_token_ids) | (frozenset() if p.ignore_eos else eos_token_ids),
            stop_strings=p.stop,
        ),
        text=p.text,
        prompt_logprobs=p.prompt_logprobs,
        received_s=received_s,
    )


def with_new_seed(request: GenerationRequest) -> GenerationRequest:
    """A sibling of `request` for `n` and `best_of`: same prompt, another id and random stream."""
    step = 0x9E3779B97F4A7C15
    seed = (request.sampling.seed + step) % 2**64
    return replace(request, request_id=secrets.token_hex(12), sampling=replace(request.sampling, seed=seed))


def _sampling_params(p: RequestParameters, limits: Limits, eos_token_ids: frozenset[int]) -> SamplingParams:
    return SamplingParams(
        temperature=(p.temperature if p.temperature is not None else 1.0) if p.is_sampling else 0.0,
        top_k=p.top_k or 0,
        top_p=p.top_p if p.top_p is not None else 1.0,
        typical_p=p.typical_p if p.typical_p is not None else 1.0,
        min_p=p.min_p,
        repetition_penalty=p.repetition_penalty if p.repetition_penalty is not None else 1.0,
        frequency_penalty=p.additive_frequency_penalty,
        presence_penalty=p.additive_presence_penalty,
        relative_frequency_penalty=p.frequency_penalty or 0.0,
        logit_bias=p.logit_bias,
        watermark=limits.watermark if p.watermark else None,
        min_new_tokens=p.min_new_tokens,
        end_token_ids=tuple(sorted(eos_token_ids)) if p.min_new_tokens > 0 else (),
        seed=p.seed if p.seed is not None else secrets.randbits(64),
        top_n_tokens=p.top_n_tokens or 0,
    )
