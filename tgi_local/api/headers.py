"""TGI's x-* response headers; all values are decimal strings."""

from collections.abc import Iterable, Sequence

from tgi_local.types import Generation


def stream_headers(compute_type: str, prompts: Iterable[str]) -> dict[str, str]:
    return {"x-compute-type": compute_type, "x-compute-characters": str(sum(map(len, prompts)))}


def generation_headers(
    compute_type: str, generations: Sequence[Generation], *, num_choices: int = 1, with_compute_time: bool = True
) -> dict[str, str]:
    """Sums over `generations`, `num_choices` of which share each prompt.

    Durations are whole milliseconds, but for x-compute-time in seconds, which TGI leaves out for completions.
    """
    finishes = [generation.finish for generation in generations if generation.finish is not None]
    requests = [generation.request for generation in generations[::num_choices]]
    num_tokens = sum(finish.num_tokens for finish in finishes)
    timings = [finish.timings for finish in finishes]
    inference_s = sum(t.inference_s for t in timings)
    total_s = sum(t.total_s for t in timings)
    return {
        **stream_headers(compute_type, (request.prompt_text for request in requests)),
        **({"x-compute-time": f"{total_s:.6f}"} if with_compute_time else {}),
        "x-prompt-tokens": str(sum(len(request.prompt_token_ids) for request in requests)),
        "x-generated-tokens": str(num_tokens),
        "x-total-time": _ms(total_s),
        "x-validation-time": _ms(sum(t.validation_s for t in timings)),
        "x-queue-time": _ms(sum(t.queue_s for t in timings)),
        "x-inference-time": _ms(inference_s),
        "x-time-per-token": _ms(inference_s / max(num_tokens, 1)),
    }


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))
