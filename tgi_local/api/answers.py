"""JSON answers; large ones are made off the event loop."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tgi_local.api.context import context
from tgi_local.types import Generation, TextToken

# Tokens whose descriptions are a few dozen kilobytes of JSON.
INLINE_ITEMS = 512
CHUNK_ITEMS = 4096
# Lists as long as that may hold objects with long lists.
FEW_ITEMS = 128
GROUP_BYTES = 1 << 16


async def json_answer(
    request: Request, make: Callable[[], Any], num_items: int, headers: Mapping[str, str] | None = None
) -> Response:
    """What `make` makes, as JSON; `num_items` is about how many parts it has."""
    if num_items <= INLINE_ITEMS:
        return Response(orjson.dumps(make()), 200, headers, "application/json")
    return PiecesAnswer(await context(request).service.aside(lambda: list(_grouped(value_pieces(make())))), headers)


def num_described(generations: Iterable[Generation]) -> int:
    """About how many tokens an answer may describe, alternatives included."""
    return sum(_num_parts(generation.prompt_tokens) + _num_parts(generation.tokens) for generation in generations)


def _num_parts(tokens: Sequence[TextToken]) -> int:
    return len(tokens) * (1 + len(tokens[-1].top)) if tokens else 0  # each has as many alternatives as the last


class PiecesAnswer(Response):
    """JSON whose pieces are made already; the connection takes one after another."""

    def __init__(self, pieces: Sequence[bytes], headers: Mapping[str, str] | None = None) -> None:
        self.status_code = 200
        self.background = None
        self._pieces = pieces
        length = sum(len(piece) for piece in pieces)
        self.init_headers({"content-type": "application/json", "content-length": str(length), **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def value_pieces(value: Any) -> Iterator[bytes]:
    """The JSON of an object whose long lists are its own, its choices', or one level further down."""
    if isinstance(value, dict):
        yield from _joined(b"{", ((orjson.dumps(key) + b":", value_pieces(part)) for key, part in value.items()), b"}")
    elif isinstance(value, list) and len(value) <= FEW_ITEMS:
        yield from _joined(b"[", ((b"", value_pieces(part)) for part in value), b"]")
    elif isinstance(value, list):
        yield from list_pieces(value, lambda item: item)
    else:
        yield orjson.dumps(value)


def _joined(start: bytes, parts: Iterable[tuple[bytes, Iterable[bytes]]], end: bytes) -> Iterator[bytes]:
    for key, pieces in parts:
        yield start + key
        yield from pieces
        start = b","
    yield end if start == b"," else start + end


def _grouped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces that are worth a system call."""
    group = bytearray()
    for piece in pieces:
        group += piece
        if len(group) >= GROUP_BYTES:
            yield bytes(group)
            group.clear()
    yield bytes(group)


def list_pieces(items: Iterable[Any], describe: Callable[[Any], Any]) -> list[bytes]:
    """The JSON of a long list; writing it at once would hold up every thread."""
    rest = iter(items)
    pieces = []
    while some := list(islice(rest, CHUNK_ITEMS)):
        pieces.append(orjson.dumps([describe(item) for item in some])[1:-1])
        pieces.append(b",")
    return [b"[", *pieces[:-1], b"]"]
