import pytest

from tgi_local.bench.measures import Failure, RequestRecord, quantiles, summarize


def record(start: float, events: list[float], tokens: int | None, failure: Failure | None = None) -> RequestRecord:
    return RequestRecord(start, events[-1] if events else start, events, 10, 2, tokens, failure)


def test_quantiles_lie_between_the_nearest_ranks() -> None:
    assert quantiles([]) is None
    assert quantiles([0.5]) == {"p50": 500.0, "p95": 500.0, "p99": 500.0, "mean": 500.0}
    assert quantiles(number / 1000 for number in range(101)) == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "mean": 50.0}
    assert quantiles([0.003, 0.001]) == {"p50": 2.0, "p95": 2.9, "p99": 2.98, "mean": 2.0}


def test_throughput_and_latencies() -> None:
    records = [record(0.0, [1.0, 1.1, 1.3], 3), record(1.0, [3.0, 3.1, 3.3], 3)]
    measures = summarize(records, wall_s=3.0)
    assert (measures["output_tokens_per_s"], measures["input_tokens_per_s"]) == (2.0, 6.667)
    assert measures["cached_input_tokens"] == 4 and measures["tokens_counted_by"] == "usage"
    assert measures["ttft_ms"]["p50"] == 1500.0
    assert measures["inter_token_ms"]["p50"] == pytest.approx(150.0)
    assert measures["time_per_token_ms"]["p50"] == pytest.approx(150.0)
    assert measures["latency_ms"]["p50"] == pytest.approx(1800.0)


def test_tokens_packed_into_events_do_not_pass_for_slow_tokens() -> None:
    """Eight tokens in 0.7 s: alone in eight events, or in two."""
    alone = summarize([record(0.0, [index / 10 for index in range(1, 9)], 8)], wall_s=1.0)
    packed = summarize([record(0.0, [0.1, 0.8], 8)], wall_s=1.0)
    assert alone["tokens_per_event"] == 1.0 and packed["tokens_per_event"] == 4.0
    assert alone["inter_token_ms"]["p50"] == pytest.approx(100.0)
    assert packed["inter_token_ms"]["p50"] == pytest.approx(700.0)
    assert alone["time_per_token_ms"]["p50"] == packed["time_per_token_ms"]["p50"] == pytest.approx(100.0)


def test_without_usage_events_are_counted_and_named_so() -> None:
    measures = summarize([record(0.0, [1.0, 2.0], None)], wall_s=2.0)
    assert (measures["output_tokens"], measures["tokens_counted_by"]) == (2, "events")


def test_failed_requests_count_as_errors_and_nowhere_else() -> None:
    failed = [record(0.0, [9.0, 99.0], 50, Failure("HTTP 429", f"busy {index}")) for index in range(2)]
    lost = record(0.0, [], None, Failure("connection lost", "reset"))
    good = record(0.0, [1.0, 2.0], 2)
    measures = summarize([lost, good, *failed], wall_s=2.0)
    assert (measures["requests"], measures["succeeded"], measures["output_tokens"]) == (4, 1, 2)
    assert measures["errors"] == [
        {"kind": "HTTP 429", "count": 2, "example": "busy 0"},
        {"kind": "connection lost", "count": 1, "example": "reset"},
    ]
    assert {**measures, "requests": 1, "errors": []} == summarize([good], wall_s=2.0)


def test_nothing_succeeded() -> None:
    measures = summarize([record(0.0, [], None, Failure("timeout", "x"))], wall_s=0.0)
    assert measures["ttft_ms"] is measures["inter_token_ms"] is measures["tokens_per_event"] is None
    assert measures["output_tokens_per_s"] == 0.0
