"""Answers made of typed events, as Anthropic's and OpenAI's responses are: streamed, or folded into one object."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import orjson
from starlette.requests import Request
from starlette.responses import Response

from tgi_local.api.context import context
from tgi_local.api.headers import generation_headers, stream_headers
from tgi_local.api.sse import KEEP_ALIVE, EventStream, typed_frame, until_disconnect
from tgi_local.errors import TgiLocalError
from tgi_local.open_generation import OpenGeneration
from tgi_local.service import Admission, Service
from tgi_local.types import Generation, GenerationRequest, TextEvent

Event = dict[str, Any]
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class TypedAnswer(Protocol):
    """Owns one answer as it grows; `object` is what it has come to."""

    @property
    def object(self) -> dict[str, Any]: ...

    def begin(self) -> Iterable[Event]: ...

    def step(self, event: TextEvent) -> Iterable[Event]: ...


async def whole_answer(
    request: Request,
    native: GenerationRequest,
    answer: TypedAnswer,
    admission: Admission,
    own_headers: Mapping[str, str] = NO_HEADERS,
) -> Response:
    api = context(request)
    folding = _fold(api.service, native, answer, admission)
    generation = await until_disconnect(request, folding, lambda: api.service.drop(1))
    headers = generation_headers(api.shown_compute_type, [generation]) | dict(own_headers)
    return Response(orjson.dumps(answer.object), 200, headers, "application/json")


def streamed_answer(
    request: Request,
    native: GenerationRequest,
    answer: TypedAnswer,
    admission: Admission,
    fail: Callable[[TgiLocalError], Event],
    keep_alive: bytes = KEEP_ALIVE,
    own_headers: Mapping[str, str] = NO_HEADERS,
) -> Response:
    """`fail` makes the event of an error after the stream has begun."""
    api = context(request)
    stream = api.service.open([native], admission)
    headers = stream_headers(api.shown_compute_type, [native.prompt_text]) | dict(own_headers)
    return EventStream(_frames(stream, answer, fail), stream.aclose, headers, keep_alive)


async def _fold(service: Service, native: GenerationRequest, answer: TypedAnswer, admission: Admission) -> Generation:
    generation = Generation(native)
    async with service.open([native], admission) as stream:
        async for batch in stream:
            for _, event in batch:
                answer.step(event)
                generation.add(event)
    return generation


async def _frames(
    stream: OpenGeneration, answer: TypedAnswer, fail: Callable[[TgiLocalError], Event]
) -> AsyncIterator[bytes]:
    try:
        for data in answer.begin():
            yield typed_frame(data)
        async for batch in stream:
            if body := b"".join(typed_frame(data) for _, event in batch for data in answer.step(event)):
                yield body
    except TgiLocalError as error:
        yield typed_frame(fail(error))
