"""Metric names, kinds, units, help and buckets in one place (TGI's names), with typed functions that record them."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric, SummaryMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from tgi_local.errors import BodyShapeError, MalformedBodyError, OverloadedError, RequestError, TemplateError
from tgi_local.types import Finish, GenerationRequest, StepStats

M = TypeVar("M", bound=MetricWrapperBase)

# TGI's buckets: 0.00015 s to 145.6 s in steps of 1.5.
DURATION_BUCKETS = tuple(0.0001 * 1.5**k for k in range(1, 36))
NUM_LENGTH_BUCKETS = 100
BATCH_SIZE_BUCKETS = tuple(range(1, 1025))
LONGEST = 4096  # tokens, until a model says what it takes

_COUNTERS = {
    "tgi_request_count": "requests received",
    "tgi_request_success": "generations finished",
    "tgi_request_failure": "requests failed, by cause",
    "tgi_batch_inference_count": "engine steps started, by method",
    "tgi_batch_inference_success": "engine steps finished, by method",
    "tgi_batch_inference_failure": "engine steps failed, by method",
    "tgi_batch_concat": "steps in which prompts joined running requests, by reason",
    "tgi_prompt_tokens": "prompt tokens computed, each counted once",
    "tgi_cached_prompt_tokens": "prompt tokens found in the prefix cache, not computed",
    "tgi_recomputed_tokens": "tokens computed again after a preemption",
    "tgi_generated_tokens": "tokens generated",
    "tgi_preemptions": "sequences preempted for want of KV blocks",
}


_LENGTHS = {
    "tgi_request_input_length": "prompt tokens",
    "tgi_request_max_new_tokens": "tokens asked for",
    "tgi_request_generated_tokens": "tokens generated",
}
# A step computes prompts and next tokens mixed; one with any prompt in it, or one computed again, counts as `prefill`.
_LABELS = {"tgi_request_failure": ["err"], "tgi_batch_concat": ["reason"]} | {
    f"tgi_batch_inference_{outcome}": ["method"] for outcome in ("count", "success", "failure")
}


@dataclass(frozen=True, slots=True)
class MetricDescription:
    """A metric as the docs list it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


class _SkippedTokens(Collector):
    """TGI's one summary, with its quantiles, which the library's own summary does not have."""

    NAME = "tgi_request_skipped_tokens"
    TEXT = "always 0: no token is speculated"
    QUANTILES = ("0", "0.5", "0.9", "0.95", "0.99", "0.999", "1")

    def __init__(self) -> None:
        self.num_tokens = 0

    def collect(self) -> Iterator[Metric]:
        family = SummaryMetricFamily(self.NAME, self.TEXT, count_value=self.num_tokens, sum_value=0.0)
        for quantile in self.QUANTILES:
            family.add_sample(self.NAME, {"quantile": quantile}, 0.0)
        yield family


class Metrics:
    """Owns the registry. Event-loop thread only."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._all: dict[str, MetricWrapperBase] = {}
        self._counters = {name: self._counter(name, text) for name, text in _COUNTERS.items()}
        self._queue_size = self._gauge("tgi_queue_size", "requests waiting")
        self._batch_size = self._gauge("tgi_batch_current_size", "sequences running")
        self._max_tokens = self._gauge("tgi_batch_current_max_tokens", "most tokens the running sequences can come to")
        self._max_step_tokens = self._gauge(
            "tgi_batch_max_step_tokens", "most tokens that a step may compute, fewer after memory ran out"
        )
        self._kv_used = self._gauge("tgi_kv_blocks_used", "KV cache blocks in use")
        self._kv_total = self._gauge("tgi_kv_blocks", "KV cache blocks")
        self._duration = self._seconds("tgi_request_duration", "arrival to last token")
        self._validation = self._seconds("tgi_request_validation_duration", "arrival to queue")
        self._queue = self._seconds("tgi_request_queue_duration", "queue to first batch")
        self._inference = self._seconds("tgi_request_inference_duration", "first batch to last token")
        self._per_token = self._seconds("tgi_request_mean_time_per_token_duration", "inference time per token")
        self._step = self._seconds("tgi_batch_inference_duration", "one engine step", "method")
        self._forward = self._seconds("tgi_batch_forward_duration", "the model's part of a step", "method")
        self._choice = self._seconds("tgi_batch_decode_duration", "the rest of a step: choosing tokens", "method")
        # TGI builds batches anew when requests join and end; here every step is planned from its rows.
        self._filter = self._seconds("tgi_batch_filter_duration", "always 0: nothing is filtered", "method")
        self._concat = self._seconds("tgi_batch_concat_duration", "always 0: nothing is joined", "method")
        self._next_size = self._histogram("tgi_batch_next_size", "prompts in a prefill step", BATCH_SIZE_BUCKETS)
        self._skipped = _SkippedTokens()
        self._registry.register(self._skipped)
        self._lengths: dict[str, Histogram] = {}
        self.size_lengths(LONGEST, LONGEST)

    def size_lengths(self, max_input_tokens: int, max_total_tokens: int) -> None:
        """Begin the histograms of lengths again, with buckets up to what the model takes."""
        for histogram in self._lengths.values():
            self._registry.unregister(histogram)
        for name, text in _LENGTHS.items():
            longest = max_input_tokens if name == "tgi_request_input_length" else max_total_tokens
            steps = tuple(longest * k / NUM_LENGTH_BUCKETS for k in range(1, NUM_LENGTH_BUCKETS + 1))
            self._lengths[name] = self._histogram(name, text, steps)

    def request_received(self) -> None:
        self._counters["tgi_request_count"].inc()

    def request_admitted(self, request: GenerationRequest) -> None:
        self._lengths["tgi_request_input_length"].observe(len(request.prompt_token_ids))
        self._lengths["tgi_request_max_new_tokens"].observe(request.stopping.max_new_tokens)

    def request_finished(self, finish: Finish) -> None:
        timings = finish.timings
        self._counters["tgi_request_success"].inc()
        self._duration.observe(timings.total_s)
        self._validation.observe(timings.validation_s)
        self._queue.observe(timings.queue_s)
        self._inference.observe(timings.inference_s)
        self._per_token.observe(timings.inference_s / max(finish.num_tokens, 1))
        self._lengths["tgi_request_generated_tokens"].observe(finish.num_tokens)
        self._skipped.num_tokens += finish.num_tokens

    def request_failed(self, cause: str) -> None:
        """`cause` is one of TGI's: overloaded, validation, template, generation, incomplete, dropped."""
        self._counters["tgi_request_failure"].labels(err=cause).inc()

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Around what a dialect does before `prepare_*`: a request that it refuses is counted, too.

        As TGI, what can not be read as a request at all is none.
        """
        try:
            yield
        except (MalformedBodyError, BodyShapeError):
            raise
        except RequestError as error:
            self.request_received()
            self.request_failed(_cause(error))
            raise

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Counts a request, and its refusal under its cause."""
        self.request_received()
        try:
            yield
        except (RequestError, OverloadedError, asyncio.CancelledError) as error:
            self.request_failed(_cause(error))
            raise

    def step_done(self, stats: StepStats) -> None:
        self._queue_size.set(stats.num_waiting)
        self._batch_size.set(stats.num_running)
        self._max_tokens.set(stats.max_tokens)
        self._max_step_tokens.set(stats.max_step_tokens)
        self._kv_used.set(stats.used_blocks)
        self._kv_total.set(stats.num_blocks)
        self._counters["tgi_prompt_tokens"].inc(stats.num_prompt_tokens)
        self._counters["tgi_cached_prompt_tokens"].inc(stats.num_cached_prompt_tokens)
        self._counters["tgi_recomputed_tokens"].inc(stats.num_recomputed_tokens)
        self._counters["tgi_generated_tokens"].inc(stats.num_generated_tokens)
        self._counters["tgi_preemptions"].inc(stats.num_preempted)
        if stats.num_rows == 0:
            return  # news outside a step
        method = "prefill" if stats.num_prefill_rows else "decode"
        outcome = "tgi_batch_inference_failure" if stats.failed else "tgi_batch_inference_success"
        self._counters["tgi_batch_inference_count"].labels(method).inc()
        self._counters[outcome].labels(method).inc()
        self._step.labels(method).observe(stats.step_s)
        self._forward.labels(method).observe(stats.forward_s)
        self._choice.labels(method).observe(max(0.0, stats.step_s - stats.forward_s))
        self._filter.labels(method).observe(0.0)
        if stats.num_prefill_rows:
            self._next_size.observe(stats.num_prefill_rows)
        if 0 < stats.num_prefill_rows < stats.num_rows:
            self._counters["tgi_batch_concat"].labels("chunking").inc()
            self._concat.labels("decode").observe(0.0)

    def render(self) -> bytes:
        """The Prometheus text format. TGI's counters have no `_total` suffix, so the library's is taken off."""
        text = generate_latest(self._registry).decode()
        return "".join(_without_suffix(line) for line in text.splitlines(keepends=True)).encode()

    def describe(self) -> list[MetricDescription]:
        """Every metric, for the docs."""
        described = [
            MetricDescription(name, type(metric).__name__.lower(), tuple(metric._labelnames), metric._documentation)
            for name, metric in self._all.items()
        ]
        return [*described, MetricDescription(_SkippedTokens.NAME, "summary", ("quantile",), _SkippedTokens.TEXT)]

    def _counter(self, name: str, text: str) -> Counter:
        return self._add(name, Counter(name, text, _LABELS.get(name, []), registry=self._registry))

    def _gauge(self, name: str, text: str) -> Gauge:
        return self._add(name, Gauge(name, text, registry=self._registry))

    def _seconds(self, name: str, text: str, *labels: str) -> Histogram:
        return self._histogram(name, f"{text}, seconds", DURATION_BUCKETS, *labels)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return self._add(name, Histogram(name, text, labels, buckets=buckets, registry=self._registry))

    def _add(self, name: str, metric: M) -> M:
        self._all[name] = metric
        return metric


def _without_suffix(line: str) -> str:
    if "_created" in line.split("{")[0].split(" ")[0] or "_created " in line:
        return ""
    for name in _COUNTERS:
        if f"{name}_total" in line:
            return line.replace(f"{name}_total", name)
    return line


def _cause(error: BaseException) -> str:
    """Why a request was not admitted, as the metrics say it."""
    causes = {OverloadedError: "overloaded", TemplateError: "template", RequestError: "validation"}
    return next((cause for kind, cause in causes.items() if isinstance(error, kind)), "dropped")
