"""What a run measured: one record per request, folded to throughput, latencies and errors.

Only the standard library is used, so that a driver in another environment can report in the same form.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

QUANTILES = (50, 95, 99)


@dataclass(slots=True)
class Failure:
    """Why a request has no complete answer. `kind` is one of few, `detail` is one line."""

    kind: str
    detail: str


@dataclass(slots=True)
class RequestRecord:
    """One request; all times are seconds on one monotonic clock.

    `started_s` is when the request was due: in an open loop waiting for a connection counts, too. `event_times_s` are the
    arrivals of the events that carry text, or of the last event where none does. `output_tokens` is the server's own
    count, None where it reports none.
    """

    started_s: float
    ended_s: float = 0.0
    event_times_s: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    failure: Failure | None = None

    @property
    def counted_tokens(self) -> int:
        """The server's count of output tokens, or else one for each event."""
        return len(self.event_times_s) if self.output_tokens is None else self.output_tokens


def summarize(records: Sequence[RequestRecord], wall_s: float) -> dict[str, Any]:
    """The measures of one level. Throughput counts complete answers only, over all of `wall_s`.

    `inter_token_ms` are the gaps between the events of a request as a reader sees them arrive, all requests pooled.
    They are gaps between tokens exactly where `tokens_per_event` is 1; an event of several tokens makes fewer and longer
    gaps. `time_per_token_ms` is one figure per request, (last event - first event) / (output tokens - 1), and does not
    depend on how tokens are packed into events.
    """
    done = [record for record in records if record.failure is None]
    output = sum(record.counted_tokens for record in done)
    prompt = sum(record.prompt_tokens or 0 for record in done)
    events = sum(len(record.event_times_s) for record in done)
    has_counts = all(record.output_tokens is not None for record in done)
    return {
        "requests": len(records),
        "succeeded": len(done),
        "errors": _errors(records),
        "wall_s": round(wall_s, 4),
        "requests_per_s": _rate(len(done), wall_s),
        "output_tokens_per_s": _rate(output, wall_s),
        "input_tokens_per_s": _rate(prompt, wall_s),
        "output_tokens": output,
        "input_tokens": prompt,
        "cached_input_tokens": sum(record.cached_tokens or 0 for record in done),
        "prompt_tokens_per_request": _extent(record.prompt_tokens or 0 for record in done),
        "output_tokens_per_request": _extent(record.counted_tokens for record in done),
        "tokens_counted_by": "usage" if has_counts else "events",
        "tokens_per_event": round(output / events, 3) if events else None,
        "ttft_ms": quantiles(record.event_times_s[0] - record.started_s for record in done if record.event_times_s),
        "inter_token_ms": quantiles(gap for record in done for gap in _gaps(record.event_times_s)),
        "time_per_token_ms": quantiles(time for record in done for time in _time_per_token(record)),
        "latency_ms": quantiles(record.ended_s - record.started_s for record in done),
    }


def quantiles(seconds: Iterable[float]) -> dict[str, float] | None:
    """p50, p95, p99 and mean in milliseconds, interpolated between the nearest ranks; None of nothing."""
    ordered = sorted(seconds)
    if not ordered:
        return None
    found = {f"p{percent}": _quantile(ordered, percent / 100) for percent in QUANTILES}
    return {name: round(value * 1000, 3) for name, value in {**found, "mean": sum(ordered) / len(ordered)}.items()}


def _quantile(ordered: Sequence[float], share: float) -> float:
    rank = share * (len(ordered) - 1)
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def _gaps(times_s: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times_s)]


def _time_per_token(record: RequestRecord) -> list[float]:
    times_s, tokens = record.event_times_s, record.counted_tokens
    return [(times_s[-1] - times_s[0]) / (tokens - 1)] if len(times_s) > 1 and tokens > 1 else []


def _errors(records: Iterable[RequestRecord]) -> list[dict[str, Any]]:
    """Each kind once with its number and the first example, most frequent first."""
    kinds: dict[str, list[str]] = {}
    for record in records:
        if record.failure is not None:
            kinds.setdefault(record.failure.kind, []).append(record.failure.detail)
    rows = [{"kind": kind, "count": len(details), "example": details[0]} for kind, details in kinds.items()]
    return sorted(rows, key=lambda row: -int(row["count"]))


def _extent(counts: Iterable[int]) -> list[int] | None:
    values = list(counts)
    return [min(values), max(values)] if values else None


def _rate(count: int, wall_s: float) -> float:
    return round(count / wall_s, 3) if wall_s > 0 else 0.0
