"""A model's output written by the test, as the text events that reach an answer, and SDKs that read what it becomes."""

from collections.abc import Iterable, Iterator
from typing import Any

import httpx2
from pydantic import BaseModel, TypeAdapter

from tgi_local.api.sse import typed_frame
from tgi_local.types import (
    Finish,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    StopParams,
    TextEvent,
    Timings,
    ToolCall,
    ToolCallDelta,
)

NATIVE = GenerationRequest("r", "prompt", tuple(range(10)), SamplingParams(temperature=0.5), StopParams(64))
WEATHER = ToolCall(0, "get_weather", '{"city":"Bonn"}')
TIME = ToolCall(1, "get_time", '{"zone":"CET"}')


def finish(reason: FinishReason = FinishReason.EOS, stop: str | None = None, cached: int = 0) -> TextEvent:
    return TextEvent(None, finish=Finish(reason, 7, Timings(0, 0, 0), stop, cached, num_reasoning_tokens=2))


def text(content: str) -> TextEvent:
    return TextEvent(None, text=content)


def thought(content: str) -> TextEvent:
    return TextEvent(None, reasoning=content)


def calls(*tool_calls: ToolCall) -> TextEvent:
    return TextEvent(
        None, tool_calls=tuple(ToolCallDelta(c.index, c.name, c.arguments, is_last=True) for c in tool_calls)
    )


def piece(index: int, name: str | None, arguments: str, is_last: bool = False) -> TextEvent:
    return TextEvent(None, tool_calls=(ToolCallDelta(index, name, arguments, is_last),))


def play(answer: Any, script: Iterable[TextEvent]) -> list[dict[str, Any]]:
    events = list(answer.begin())
    for event in script:
        events += answer.step(event)
    return events


def replaying(events: Iterable[dict[str, Any]]) -> httpx2.Client:
    """A client whose server answers everything with these events."""
    body = b"".join(typed_frame(event) for event in events)
    headers = {"content-type": "text/event-stream"}
    return httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(200, headers=headers, content=body)))


# OpenAI's API has them, its SDK's types do not.
_UNTYPED = {"Response.store", "ResponseCustomToolCall.status", "ResponseFunctionCallArgumentsDoneEvent.name"}


def strictly(kind: Any, data: Any) -> Any:
    """`data` as the SDK's type `kind`, which must know every field of it, at every depth."""
    parsed = TypeAdapter(kind).validate_python(data)
    assert not (unknown := set(_unknown(parsed)) - _UNTYPED), unknown
    return parsed


def _unknown(value: Any) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from (f"{type(value).__name__}.{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            yield from _unknown(item)
