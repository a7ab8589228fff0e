"""JSON answers; large ones are made off the event loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from tgi_local.api.context import context
from tgi_local.types import Generation

# Tokens whose descriptions are a few dozen kilobytes of JSON.
INLINE_ITEMS = 512
CHUNK_ITEMS = 4096


async def json_answer(
    request: Request, make: Callable[[], Any], num_items: int, headers: Mapping[str, str] | None = None
) -> Response:
    """What `make` makes, as JSON; `num_items` is about how many parts it has."""

    def write() -> bytes:
        return orjson.dumps(make())

    body = write() if num_items <= INLINE_ITEMS else await context(request).service.aside(write)
    return Response(body, 200, headers, "application/json")


def num_described(generations: Iterable[Generation]) -> int:
    """Tokens that an answer may describe one by one."""
    return sum(
        len(generation.prompt_tokens) + sum(1 + len(token.top) for token in generation.tokens)
        for generation in generations
    )


async def list_json(request: Request, items: Sequence[Any], describe: Callable[[Any], Any]) -> bytes:
    """The JSON of a list that may be long."""
    if len(items) <= INLINE_ITEMS:
        return _dump_list(items, describe)
    return await context(request).service.aside(lambda: _dump_list(items, describe))


def _dump_list(items: Sequence[Any], describe: Callable[[Any], Any]) -> bytes:
    """Piece by piece: writing it at once would hold up every thread."""
    rest = iter(items)
    pieces = []
    while some := list(islice(rest, CHUNK_ITEMS)):
        pieces.append(orjson.dumps([describe(item) for item in some])[1:-1])
    return b"[" + b",".join(pieces) + b"]"
