"""/metrics in TGI's names, kinds and buckets, and figures that add up."""

from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tgi_local.metrics import Metrics
from tgi_local.types import Finish, FinishReason, GenerationRequest, SamplingParams, StepStats, StopParams, Timings

COUNTERS = ["tgi_request_count", "tgi_request_success", "tgi_request_failure", "tgi_batch_inference_count"]
COUNTERS += ["tgi_batch_inference_success", "tgi_batch_inference_failure", "tgi_batch_concat"]
GAUGES = ["tgi_queue_size", "tgi_batch_current_size", "tgi_batch_current_max_tokens", "tgi_batch_max_step_tokens"]
SECONDS = ["tgi_request_duration", "tgi_request_validation_duration", "tgi_request_queue_duration"]
SECONDS += ["tgi_request_inference_duration", "tgi_request_mean_time_per_token_duration", "tgi_batch_forward_duration"]
SECONDS += ["tgi_batch_inference_duration", "tgi_batch_decode_duration", "tgi_batch_filter_duration"]
SECONDS += ["tgi_batch_concat_duration"]
LENGTHS = ["tgi_batch_next_size"]
LENGTHS += ["tgi_request_input_length", "tgi_request_max_new_tokens", "tgi_request_generated_tokens"]


def stats(**values: Any) -> StepStats:
    quiet = {"num_running": 0, "num_waiting": 0, "used_blocks": 0, "num_blocks": 64, "step_s": 0.0, "num_rows": 1}
    return StepStats(**{**quiet, **values})


def parsed(metrics: Metrics) -> dict[str, Metric]:
    """By name; the parser fails on anything that is not Prometheus's text format."""
    families = list(text_string_to_metric_families(metrics.render().decode()))
    assert len({family.name for family in families}) == len(families)
    return {family.name: family for family in families}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in parsed(metrics).values()
        for sample in family.samples
        if sample.name.removesuffix("_total") == name and sample.labels == labels  # the parser adds the suffix
    ]
    assert len(found) == 1, f"{name} {labels}: {found}"
    return found[0]


def busy() -> Metrics:
    """Every metric has a sample."""
    metrics = Metrics()
    metrics.size_lengths(1000, 2000)
    metrics.request_received()
    metrics.request_admitted(GenerationRequest("r", "", (1,) * 10, SamplingParams(), StopParams(50)))
    metrics.request_finished(Finish(FinishReason.LENGTH, 20, Timings(0.001, 0.01, 2.0)))
    metrics.request_failed("validation")
    metrics.step_done(stats(num_prompt_tokens=10, num_prefill_rows=1))
    metrics.step_done(stats(num_generated_tokens=1))
    metrics.step_done(stats(num_rows=2, num_prefill_rows=1, step_s=0.5, forward_s=0.4))
    return metrics


def test_names_and_kinds_are_those_of_tgi() -> None:
    kinds = {name: family.type for name, family in parsed(busy()).items()}
    for names, kind in ((COUNTERS, "counter"), (GAUGES, "gauge"), (SECONDS + LENGTHS, "histogram")):
        assert {name: kinds.get(name) for name in names} == dict.fromkeys(names, kind)


def test_no_suffixes_that_tgi_does_not_have() -> None:
    """Dashboards made for TGI ask for `tgi_request_count`, not for `tgi_request_count_total`."""
    lines = busy().render().decode().splitlines()
    assert not [line for line in lines if "_total" in line or "_created" in line]
    assert "tgi_request_count 1.0" in lines
    assert "# TYPE tgi_request_count counter" in lines
    assert 'tgi_request_failure{err="validation"} 1.0' in lines
    assert all(line.startswith(("tgi_", "# HELP tgi_", "# TYPE tgi_")) for line in lines)


def bounds(metrics: Metrics, name: str) -> list[float]:
    """The same for every method."""
    buckets: dict[str, list[float]] = {}
    for sample in parsed(metrics)[name].samples:
        if sample.name.endswith("_bucket"):
            buckets.setdefault(sample.labels.get("method", ""), []).append(float(sample.labels["le"]))
    first, *others = buckets.values()
    assert all(other == first for other in others)
    return first


def test_the_parts_of_a_step() -> None:
    metrics = busy()
    assert value(metrics, "tgi_batch_decode_duration_sum", method="prefill") == pytest.approx(0.1)
    assert value(metrics, "tgi_batch_concat", reason="chunking") == 1, "a prompt beside a running request"
    assert value(metrics, "tgi_batch_concat_duration_count", method="decode") == 1
    assert value(metrics, "tgi_batch_filter_duration_count", method="prefill") == 2


def test_buckets_are_those_of_tgi() -> None:
    metrics = busy()
    for name in SECONDS:
        assert bounds(metrics, name) == pytest.approx([0.0001 * 1.5**k for k in range(1, 36)] + [float("inf")])
    for name, longest in (("tgi_request_input_length", 1000), ("tgi_request_max_new_tokens", 2000)):
        assert bounds(metrics, name) == pytest.approx([longest * k / 100 for k in range(1, 101)] + [float("inf")])
    assert bounds(metrics, "tgi_batch_next_size") == [*range(1, 1025), float("inf")]
    assert bounds(metrics, "tgi_request_generated_tokens") == bounds(metrics, "tgi_request_max_new_tokens")


def test_requests() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.request_received()
    request = GenerationRequest("r", "", tuple(range(10)), SamplingParams(), StopParams(50))
    metrics.request_admitted(request)
    metrics.request_finished(Finish(FinishReason.LENGTH, 20, Timings(0.5, 0.25, 2.0)))
    assert value(metrics, "tgi_request_count") == 3
    assert value(metrics, "tgi_request_success") == 1
    for name, want in {
        "tgi_request_duration": 2.75,
        "tgi_request_validation_duration": 0.5,
        "tgi_request_queue_duration": 0.25,
        "tgi_request_inference_duration": 2.0,
        "tgi_request_mean_time_per_token_duration": 0.1,
        "tgi_request_input_length": 10,
        "tgi_request_max_new_tokens": 50,
        "tgi_request_generated_tokens": 20,
    }.items():
        assert value(metrics, f"{name}_sum") == pytest.approx(want)
        assert value(metrics, f"{name}_count") == 1


def test_a_generation_without_tokens_divides_by_nothing() -> None:
    metrics = Metrics()
    metrics.request_finished(Finish(FinishReason.LENGTH, 0, Timings(0.0, 0.0, 0.0)))
    assert value(metrics, "tgi_request_mean_time_per_token_duration_sum") == 0


def test_failures_are_counted_by_cause() -> None:
    metrics = Metrics()
    causes = ["overloaded", "validation", "template", "generation", "incomplete", "dropped"]
    for number, cause in enumerate(causes, 1):
        for _ in range(number):
            metrics.request_failed(cause)
    assert [value(metrics, "tgi_request_failure", err=cause) for cause in causes] == [1, 2, 3, 4, 5, 6]


def test_steps() -> None:
    metrics = Metrics()
    metrics.step_done(
        stats(num_running=2, num_waiting=1, num_prompt_tokens=30, step_s=0.5, used_blocks=4, num_prefill_rows=2)
    )
    metrics.step_done(
        stats(
            num_running=3,
            num_prompt_tokens=5,
            num_generated_tokens=2,
            num_preempted=1,
            num_recomputed_tokens=8,
            step_s=0.25,
            forward_s=0.5,
            num_prefill_rows=1,
        )
    )
    metrics.step_done(stats(num_running=1, num_generated_tokens=3, used_blocks=7, max_tokens=40, max_step_tokens=2048))
    for name in ("tgi_batch_inference_count", "tgi_batch_inference_success"):
        assert value(metrics, name, method="prefill") == 2, "one of them had decodes, too"
        assert value(metrics, name, method="decode") == 1
    assert not parsed(metrics)["tgi_batch_inference_failure"].samples
    assert value(metrics, "tgi_prompt_tokens") == 35 and value(metrics, "tgi_generated_tokens") == 5
    assert value(metrics, "tgi_preemptions") == 1 and value(metrics, "tgi_recomputed_tokens") == 8
    assert value(metrics, "tgi_batch_max_step_tokens") == 2048
    assert value(metrics, "tgi_batch_inference_duration_sum", method="prefill") == 0.75
    assert value(metrics, "tgi_batch_forward_duration_sum", method="prefill") == 0.5
    assert value(metrics, "tgi_batch_next_size_sum") == 3 and value(metrics, "tgi_batch_next_size_count") == 2
    assert value(metrics, "tgi_batch_current_max_tokens") == 40
    assert value(metrics, "tgi_batch_current_size") == 1 and value(metrics, "tgi_queue_size") == 0
    assert value(metrics, "tgi_kv_blocks_used") == 7 and value(metrics, "tgi_kv_blocks") == 64


def test_news_outside_a_step_moves_gauges_only() -> None:
    metrics = Metrics()
    metrics.step_done(stats(num_running=2, num_generated_tokens=2, used_blocks=9))
    metrics.step_done(stats(num_rows=0, num_waiting=4))
    assert value(metrics, "tgi_batch_inference_count", method="decode") == 1
    assert value(metrics, "tgi_batch_current_size") == 0 and value(metrics, "tgi_queue_size") == 4
    assert value(metrics, "tgi_kv_blocks_used") == 0


def test_a_failed_step_is_a_failure() -> None:
    metrics = Metrics()
    metrics.step_done(stats(num_prefill_rows=1, failed=True))
    assert value(metrics, "tgi_batch_inference_failure", method="prefill") == 1
    assert not parsed(metrics)["tgi_batch_inference_success"].samples


def test_a_failed_decode_step_is_a_failure_though_it_computed_no_token() -> None:
    metrics = Metrics()
    metrics.step_done(stats(num_running=1, failed=True))
    for name in ("tgi_batch_inference_count", "tgi_batch_inference_failure"):
        assert value(metrics, name, method="decode") == 1


def test_two_servers_in_one_process_do_not_share() -> None:
    first, second = Metrics(), Metrics()
    first.request_received()
    assert value(second, "tgi_request_count") == 0


def test_lengths_begin_again_with_the_models_own_limits() -> None:
    metrics = Metrics()
    request = GenerationRequest("r", "", (1,) * 10, SamplingParams(), StopParams(50))
    metrics.request_admitted(request)
    for longest in (1000, 200):
        metrics.size_lengths(longest, longest)
        metrics.request_admitted(request)
        assert bounds(metrics, "tgi_request_input_length")[-2] == longest
        assert value(metrics, "tgi_request_input_length_count") == 1


def test_every_metric_is_described() -> None:
    described = {metric.name: metric for metric in Metrics().describe()}
    assert {*COUNTERS, *GAUGES, *SECONDS, *LENGTHS} <= set(described)
    assert described["tgi_request_failure"].labels == ("err",) and described["tgi_queue_size"].kind == "gauge"
    assert {name: family.type for name, family in parsed(busy()).items()} == {
        m.name: m.kind for m in described.values()
    }
