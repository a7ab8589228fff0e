"""TGI's x-* response headers; all values are decimal strings."""

from collections.abc import Sequence

from tgi_local.types import Generation, GenerationRequest


def stream_headers(compute_type: str, requests: Sequence[GenerationRequest]) -> dict[str, str]:
    return {
        "x-compute-type": compute_type,
        "x-compute-characters": str(sum(len(request.prompt_text) for request in requests)),
    }


def generation_headers(compute_type: str, generations: Sequence[Generation]) -> dict[str, str]:
    """Sums over `generations`; durations are whole milliseconds, but for x-compute-time in seconds."""
    finishes = [generation.finish for generation in generations if generation.finish is not None]
    requests = [generation.request for generation in generations]
    num_tokens = sum(finish.num_tokens for finish in finishes)
    timings = [finish.timings for finish in finishes]
    inference_s = sum(t.inference_s for t in timings)
    return {
        **stream_headers(compute_type, requests),
        "x-compute-time": f"{sum(t.total_s for t in timings):.6f}",
        "x-prompt-tokens": str(sum(len(request.prompt_token_ids) for request in requests)),
        "x-generated-tokens": str(num_tokens),
        "x-total-time": _ms(sum(t.total_s for t in timings)),
        "x-validation-time": _ms(sum(t.validation_s for t in timings)),
        "x-queue-time": _ms(sum(t.queue_s for t in timings)),
        "x-inference-time": _ms(inference_s),
        "x-time-per-token": _ms(inference_s / max(num_tokens, 1)),
    }


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))
