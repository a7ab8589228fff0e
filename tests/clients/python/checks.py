"""What the client programs share: the server's URL, questions that the built-in model answers exactly, and a runner.

The programs import nothing of this project: they run in an environment of their own.
"""

import asyncio
import contextlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8080"
COUNT = "Count to 5"
FIVE = "1, 2, 3, 4, 5"
ASK_WEATHER = "What is the weather in Paris?"
MESSAGES: list[Any] = [{"role": "user", "content": COUNT}]
WEATHER_MESSAGES: list[Any] = [{"role": "user", "content": ASK_WEATHER}]
WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": WEATHER_SCHEMA,
    },
}
# Free of unbounded strings and numbers, so that a model that knows no JSON ends it all the same.
FRUIT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"enum": ["apple", "pear"]}, "is_ripe": {"type": "boolean"}},
    "required": ["name", "is_ripe"],
    "additionalProperties": False,
}


@contextlib.contextmanager
def raises(kind: type[BaseException]) -> Iterator[list[Any]]:
    """The error of this kind that the block must raise, in a list."""
    caught: list[Any] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    assert caught, f"no {kind.__name__} was raised"


def run(*parts: Callable[[], Any]) -> None:
    """Call every part, print what went wrong in each, and end with the number of those that failed."""
    failures = 0
    for part in parts:
        try:
            result = part()
            if inspect.iscoroutine(result):
                asyncio.run(result)
        except Exception:
            failures += 1
            print(f"--- {part.__name__}\n{traceback.format_exc()}", file=sys.stderr)
    print(f"{len(parts)} parts, {failures} failed")
    sys.exit(min(failures, 100))
