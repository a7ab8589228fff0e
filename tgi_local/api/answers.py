"""JSON answers; large ones are made off the event loop."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

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


class PiecesAnswer(Response):
    """JSON whose pieces are made already; the connection takes one after another."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.status_code = 200
        self.background = None
        self._pieces = pieces
        length = sum(len(piece) for piece in pieces)
        self.init_headers({"content-type": "application/json", "content-length": str(length)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def list_pieces(items: Iterable[Any], describe: Callable[[Any], Any]) -> list[bytes]:
    """The JSON of a long list; writing it at once would hold up every thread."""
    rest = iter(items)
    pieces = []
    while some := list(islice(rest, CHUNK_ITEMS)):
        pieces.append(orjson.dumps([describe(item) for item in some])[1:-1])
        pieces.append(b",")
    return [b"[", *pieces[:-1], b"]"]
