"""Reading a request body: bytes to JSON, large ones off the event loop."""

import asyncio
from typing import Any

import orjson
from starlette.requests import Request

from tgi_local.errors import MalformedBodyError

INLINE_BYTES = 64 * 1024


async def read_json(request: Request) -> Any:
    """Raises MalformedBodyError. The gate in front has checked content type and size."""
    body = await request.body()
    try:
        if len(body) > INLINE_BYTES:
            return await asyncio.to_thread(orjson.loads, body)
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedBodyError(f"{error.msg.split(':')[0]} at line {error.lineno} column {error.colno}") from None
