"""The table for people and the notes under it."""

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = (
    ("load", 9),
    ("requests", 9),
    ("errors", 7),
    ("out tok/s", 10),
    ("in tok/s", 10),
    ("TTFT ms p50/p95/p99", 24),
    ("inter-token ms p50/p95/p99", 27),
    ("client CPU", 11),
)
# From here on gaps between events are no longer called gaps between tokens. The last token of an answer may show no text.
PACKED_EVENTS = 1.1


def head_line() -> str:
    return _line(name for name, _ in COLUMNS)


def level_line(level: Mapping[str, Any]) -> str:
    return _line(
        [
            f"{level['concurrency']}" if level["concurrency"] else f"{level['rate']:g}/s",
            str(level["requests"]),
            str(level["requests"] - level["succeeded"]),
            f"{level['output_tokens_per_s']:.1f}",
            f"{level['input_tokens_per_s']:.1f}",
            _three(level["ttft_ms"]),
            _three(level["inter_token_ms"]),
            f"{level['client_cpu_share']:.0%}",
        ]
    )


def notes(levels: Sequence[Mapping[str, Any]], prompt_tokens: int, output_tokens: int) -> list[str]:
    """What a reader of the table must know to read it right; empty when it is what was asked for."""
    found = []
    for level in levels:
        found += [f"{error['count']} x {error['kind']}: {error['example']}" for error in level["errors"]]
    found += _length_notes(levels, prompt_tokens, output_tokens)
    packed = [level["tokens_per_event"] for level in levels if (level["tokens_per_event"] or 1) > PACKED_EVENTS]
    if packed:
        found.append(
            f"an event held up to {max(packed):.2f} tokens on average: the inter-token columns are gaps between events; "
            "time_per_token_ms in the JSON does not depend on that"
        )
    if any(level["tokens_counted_by"] == "events" and level["succeeded"] for level in levels):
        found.append("the server reports no usage in its streams: an event with text is counted as one token")
    return found


def _length_notes(levels: Sequence[Mapping[str, Any]], prompt_tokens: int, output_tokens: int) -> list[str]:
    found = []
    prompts = [n for level in levels for n in level["prompt_tokens_per_request"] or () if n]
    if prompts and (min(prompts), max(prompts)) != (prompt_tokens, prompt_tokens):
        found.append(f"prompts had {min(prompts)} to {max(prompts)} tokens, not {prompt_tokens}")
    outputs = [n for level in levels for n in level["output_tokens_per_request"] or ()]
    if outputs and min(outputs) != output_tokens:
        found.append(
            f"answers had {min(outputs)} to {max(outputs)} tokens, not {output_tokens}: the model ends them early; "
            "--ignore-eos keeps it going on servers that know it"
        )
    return found


def _three(values: Mapping[str, float] | None) -> str:
    return "-" if values is None else " / ".join(f"{values[name]:.1f}" for name in ("p50", "p95", "p99"))


def _line(cells: Any) -> str:
    return "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True))
