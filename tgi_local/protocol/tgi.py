"""TGI's native schemas and their translation: /, /generate, /generate_stream, /tokenize, /info."""

import math
import struct
from typing import Any

from tgi_local.errors import ValidationError
from tgi_local.model_info import ModelInfo
from tgi_local.protocol.grammars import parse_grammar
from tgi_local.protocol.wire import I32, U32, U64, WireModel
from tgi_local.types import (
    Generation,
    GenerationRequest,
    Limits,
    RequestParameters,
    TextEvent,
    TextOptions,
    TextToken,
    TokenSpan,
)

_FLOAT32 = struct.Struct("f")
# Whose contract is served. Clients compare it: LlamaIndex offers tools from 2.0.1 on, and reads max_input_tokens from 2.1.
TGI_VERSION = "3.3.7"


class GenerateParameters(WireModel):
    """Field `parameters`. TGI rejects null for booleans and lists; accepting it breaks no client."""

    best_of: U32 | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: I32 | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool | None = False
    max_new_tokens: U32 | None = None
    min_new_tokens: U32 | None = None  # an extension, by Transformers' name
    ignore_eos: bool | None = False  # an extension, by vLLM's name
    ignore_eos_token: bool | None = False  # the same, as vLLM's benchmark asks TGI for it
    return_full_text: bool | None = None
    stop: list[str] | None = None
    stop_sequences: list[str] | None = None  # sent beside `stop` by older chat front ends
    truncate: U32 | None = None
    watermark: bool | None = False
    details: bool | None = False
    decoder_input_details: bool | None = False
    seed: U64 | None = None
    top_n_tokens: U32 | None = None
    grammar: dict[str, Any] | None = None
    adapter_id: str | None = None


class GenerateRequest(WireModel):
    """Body of the native routes. Without `parameters` TGI samples; with `{}` it is greedy."""

    inputs: str
    parameters: GenerateParameters = GenerateParameters(do_sample=True)
    stream: bool | None = False


class TokenizeRequest(WireModel):
    inputs: str


def to_parameters(body: GenerateRequest) -> RequestParameters:
    """Raises BodyShapeError for a grammar of no known form; bounds are checked later, in TGI's order."""
    p = body.parameters
    return RequestParameters(
        best_of=p.best_of or None,
        temperature=p.temperature,
        repetition_penalty=p.repetition_penalty,
        frequency_penalty=p.frequency_penalty,
        top_k=p.top_k,
        top_p=p.top_p,
        typical_p=p.typical_p,
        do_sample=bool(p.do_sample),
        max_new_tokens=p.max_new_tokens,
        min_new_tokens=p.min_new_tokens or 0,
        ignore_eos=bool(p.ignore_eos or p.ignore_eos_token),
        stop=stop_strings(p.stop, p.stop_sequences),
        truncate=p.truncate,
        watermark=bool(p.watermark),
        seed=p.seed,
        top_n_tokens=p.top_n_tokens,
        prompt_logprobs=bool(p.decoder_input_details),
        grammar=parse_grammar(p.grammar, "grammar") if p.grammar is not None else None,
        adapter_id=p.adapter_id,
        text=TextOptions(keep_stop_string=True),
    )


def stop_strings(stop: list[str] | None, stop_sequences: list[str] | None) -> tuple[str, ...]:
    """`stop` as it came, because TGI counts repetitions, too; some clients send the same list under both names."""
    given = stop or []
    return (*given, *(text for text in stop_sequences or () if text not in given))


def check_stream_parameters(parameters: GenerateParameters) -> None:
    """What TGI refuses for streams only, before anything else. Raises ValidationError."""
    if parameters.best_of is not None and parameters.best_of != 1:
        raise ValidationError("`best_of` != 1 is not supported when streaming tokens", param="best_of")
    if parameters.decoder_input_details:
        raise ValidationError(
            "`decoder_input_details` == true is not supported when streaming tokens", param="decoder_input_details"
        )


def generate_response(generations: list[Generation], body: GenerateRequest, full_text: bool) -> dict[str, Any]:
    """The answer of /generate; the first generation is the best one."""
    best, *others = generations
    prefix = best.request.prompt_text if full_text else ""
    answer: dict[str, Any] = {"generated_text": prefix + best.text}
    p = body.parameters
    if p.details or p.decoder_input_details:
        details = _details(best, bool(p.top_n_tokens))
        if others:
            details["best_of_sequences"] = [
                {"generated_text": prefix + other.text, **_details(other, bool(p.top_n_tokens))} for other in others
            ]
        answer["details"] = details
    return answer


def stream_event(
    event: TextEvent, index: int, generated_text: str | None, request: GenerationRequest, body: GenerateRequest
) -> dict[str, Any]:
    """One server-sent event of /generate_stream; `generated_text` comes with the last one."""
    assert event.token is not None
    data: dict[str, Any] = {"index": index, "token": _token(event.token)}
    if body.parameters.top_n_tokens:
        data["top_tokens"] = [_token(token) for token in event.token.top]
    data["generated_text"] = generated_text
    data["details"] = None
    if event.finish is not None and body.parameters.details:
        data["details"] = {
            "finish_reason": event.finish.reason.value,
            "generated_tokens": event.finish.num_tokens,
            "seed": _seed(request),
            "input_length": len(request.prompt_token_ids),
        }
    return data


def describe_span(span: TokenSpan) -> dict[str, Any]:
    """One item of the answer of /tokenize."""
    return {"id": span.id, "text": span.text, "start": span.start, "stop": span.stop}


def info_response(info: ModelInfo, limits: Limits, validation_workers: int, version: str) -> dict[str, Any]:
    """TGI's keys, the older ones that clients still read, and what a page wants to show."""
    defaults = info.generation_defaults
    return {
        "model_id": info.model_id,
        "model_sha": info.revision,
        "model_pipeline_tag": "text-generation",
        "model_dtype": info.dtype,
        "model_device_type": info.device,
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_best_of": limits.max_best_of,
        "max_stop_sequences": limits.max_stop_sequences,
        "max_input_tokens": limits.max_input_tokens,
        "max_input_length": limits.max_input_tokens,
        "max_total_tokens": limits.max_total_tokens,
        "max_batch_total_tokens": limits.max_batch_total_tokens,
        "max_batch_size": limits.max_batch_size,
        # What TGI up to 2.2 had: a request joins at the next step, whatever the others are at.
        "waiting_served_ratio": 0.0,
        "max_waiting_tokens": 0,
        "validation_workers": validation_workers,
        "max_client_batch_size": limits.max_client_batch_size,
        "router": "tgi-local",
        "version": TGI_VERSION,
        "tgi_local_version": version,
        "sha": None,
        "docker_label": None,
        "quantize": info.quantize,
        "architecture": info.architecture,
        "is_demo": info.is_demo,
        "generation_defaults": {
            "temperature": defaults.temperature,
            "top_p": defaults.top_p,
            "top_k": defaults.top_k,
            "repetition_penalty": defaults.repetition_penalty,
        },
    }


def _details(generation: Generation, with_top_tokens: bool) -> dict[str, Any]:
    assert generation.finish is not None
    details: dict[str, Any] = {
        "finish_reason": generation.finish.reason.value,
        "generated_tokens": generation.finish.num_tokens,
        "seed": _seed(generation.request),
        "prefill": [{"id": t.id, "text": t.text, "logprob": logprob(t.logprob)} for t in generation.prompt_tokens],
        "tokens": [_token(token) for token in generation.tokens],
    }
    if with_top_tokens:
        details["top_tokens"] = [[_token(t) for t in token.top] for token in generation.tokens]
    return details


def _token(token: TextToken) -> dict[str, Any]:
    return {"id": token.id, "text": token.text, "logprob": logprob(token.logprob), "special": token.special}


def _seed(request: GenerationRequest) -> int | None:
    return None if request.sampling.is_greedy else request.sampling.seed


def logprob(value: float | None) -> float | None:
    """With the fewest digits that tell it from every other 32-bit float; None where JSON has no number for it."""
    if value is None or not math.isfinite(value):
        return None
    for num_digits in (6, 7, 8, 9):
        shortest = float(f"{value:.{num_digits}g}")
        if _FLOAT32.pack(shortest) == _FLOAT32.pack(value):
            break
    return shortest + 0.0  # no negative zero
