"""Metric names, kinds, units, help and buckets in one place (TGI's names), with typed functions that record them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tgi_local.types import Finish, GenerationRequest, StepStats

# TGI's buckets: 0.00015 s to 145.6 s in steps of 1.5.
DURATION_BUCKETS = tuple(0.0001 * 1.5**k for k in range(1, 36))
NUM_LENGTH_BUCKETS = 100

_COUNTERS = {
    "tgi_request_count": "requests received",
    "tgi_request_success": "generations finished",
    "tgi_request_failure": "requests failed, by cause",
    "tgi_batch_inference_count": "engine steps started",
    "tgi_batch_inference_success": "engine steps finished",
    "tgi_batch_inference_failure": "engine steps failed",
    "tgi_prompt_tokens": "prompt tokens computed",
    "tgi_cached_prompt_tokens": "prompt tokens found in the prefix cache, not computed",
    "tgi_generated_tokens": "tokens generated",
    "tgi_preemptions": "sequences preempted for want of KV blocks",
}


class Metrics:
    """Owns the registry. Event-loop thread only."""

    def __init__(self, max_input_tokens: int = 4096, max_total_tokens: int = 4096) -> None:
        self._registry = CollectorRegistry()
        self._counters = {
            name: Counter(name, text, ["err"] if name == "tgi_request_failure" else [], registry=self._registry)
            for name, text in _COUNTERS.items()
        }
        self._queue_size = self._gauge("tgi_queue_size", "requests waiting")
        self._batch_size = self._gauge("tgi_batch_current_size", "sequences running")
        self._kv_used = self._gauge("tgi_kv_blocks_used", "KV cache blocks in use")
        self._kv_total = self._gauge("tgi_kv_blocks", "KV cache blocks")
        self._duration = self._seconds("tgi_request_duration", "arrival to last token")
        self._validation = self._seconds("tgi_request_validation_duration", "arrival to queue")
        self._queue = self._seconds("tgi_request_queue_duration", "queue to first batch")
        self._inference = self._seconds("tgi_request_inference_duration", "first batch to last token")
        self._per_token = self._seconds("tgi_request_mean_time_per_token_duration", "inference time per token")
        self._step = self._seconds("tgi_batch_forward_duration", "one engine step")
        self._input_length = self._lengths("tgi_request_input_length", "prompt tokens", max_input_tokens)
        self._max_new = self._lengths("tgi_request_max_new_tokens", "tokens asked for", max_total_tokens)
        self._generated = self._lengths("tgi_request_generated_tokens", "tokens generated", max_total_tokens)

    def request_received(self) -> None:
        self._counters["tgi_request_count"].inc()

    def request_admitted(self, request: GenerationRequest) -> None:
        self._input_length.observe(len(request.prompt_token_ids))
        self._max_new.observe(request.stopping.max_new_tokens)

    def request_finished(self, finish: Finish) -> None:
        timings = finish.timings
        self._counters["tgi_request_success"].inc()
        self._duration.observe(timings.total_s)
        self._validation.observe(timings.validation_s)
        self._queue.observe(timings.queue_s)
        self._inference.observe(timings.inference_s)
        self._per_token.observe(timings.inference_s / max(finish.num_tokens, 1))
        self._generated.observe(finish.num_tokens)

    def request_failed(self, cause: str) -> None:
        """`cause` is one of TGI's: overloaded, validation, template, generation, incomplete, dropped."""
        self._counters["tgi_request_failure"].labels(err=cause).inc()

    def step_done(self, stats: StepStats) -> None:
        self._queue_size.set(stats.num_waiting)
        self._batch_size.set(stats.num_running)
        self._kv_used.set(stats.used_blocks)
        self._kv_total.set(stats.num_blocks)
        if stats.num_prompt_tokens + stats.num_generated_tokens == 0 and not stats.failed:
            return  # news outside a step
        self._counters["tgi_batch_inference_count"].inc()
        self._counters["tgi_batch_inference_failure" if stats.failed else "tgi_batch_inference_success"].inc()
        self._counters["tgi_prompt_tokens"].inc(stats.num_prompt_tokens)
        self._counters["tgi_cached_prompt_tokens"].inc(stats.num_cached_prompt_tokens)
        self._counters["tgi_generated_tokens"].inc(stats.num_generated_tokens)
        self._counters["tgi_preemptions"].inc(stats.num_preempted)
        self._step.observe(stats.step_s)

    def render(self) -> bytes:
        """The Prometheus text format. TGI's counters have no `_total` suffix, so the library's is taken off."""
        text = generate_latest(self._registry).decode()
        return "".join(_without_suffix(line) for line in text.splitlines(keepends=True)).encode()

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self._registry)

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(name, f"{text}, seconds", buckets=DURATION_BUCKETS, registry=self._registry)

    def _lengths(self, name: str, text: str, longest: int) -> Histogram:
        steps = [longest * k / NUM_LENGTH_BUCKETS for k in range(1, NUM_LENGTH_BUCKETS + 1)]
        return Histogram(name, text, buckets=steps, registry=self._registry)


def _without_suffix(line: str) -> str:
    if "_created" in line.split("{")[0].split(" ")[0] or "_created " in line:
        return ""
    for name in _COUNTERS:
        if f"{name}_total" in line:
            return line.replace(f"{name}_total", name)
    return line
