"""Reading a request body: bytes to JSON to what the route makes of it, large ones off the event loop."""

from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from starlette.requests import Request

from tgi_local.api.context import context
from tgi_local.api.sse import until_disconnect
from tgi_local.errors import MalformedBodyError
from tgi_local.protocol.wire import WireModel, parse

INLINE_BYTES = 64 * 1024

M = TypeVar("M", bound=WireModel)
T = TypeVar("T")


async def read(request: Request, model: type[M]) -> M:
    """Raises MalformedBodyError and BodyShapeError. The gate in front has checked content type and size."""
    return await read_as(request, lambda body: parse(model, body))


async def read_as(request: Request, understand: Callable[[Any], T]) -> T:
    """The same, for bodies of several shapes. Raises OverloadedError when too many large ones wait."""
    body = await request.body()
    service = context(request).service
    with service.metrics.translating():
        if len(body) <= INLINE_BYTES:
            return understand(_loads(body))
        return await until_disconnect(request, service.work(lambda: understand(_loads(body))))


async def apart(request: Request, translate: Callable[[], T]) -> T:
    """The result of `translate`, which takes long where the request's body is large."""
    if len(await request.body()) <= INLINE_BYTES:
        return translate()
    return await context(request).service.work(translate)


def _loads(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedBodyError(f"{error.msg.split(':')[0]} at line {error.lineno} column {error.colno}") from None
