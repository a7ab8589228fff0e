"""How long a new user waits: start to ready, first answer, many streams at once, and until a lost client's slot is free."""

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

import httpx
from openai import AsyncOpenAI

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.checkpoints import make_checkpoint
from tests.serving import Server

NUM_STREAMS = 32


def start(*args: str) -> tuple[Server, float]:
    """A ready server, and the seconds from its start to /health 200."""
    started = time.monotonic()
    server = Server(*args).wait_ready()
    return server, time.monotonic() - started


async def stream_text(client: AsyncOpenAI, content: str) -> tuple[str, float, int]:
    """Answer, seconds to its first piece, and its number of pieces."""
    started = time.monotonic()
    first, parts = 0.0, []
    messages = [{"role": "user", "content": content}]
    async for chunk in await client.chat.completions.create(model="tgi", messages=messages, stream=True):  # type: ignore[call-overload]
        first = first or time.monotonic() - started
        parts.append(chunk.choices[0].delta.content or "")
    return "".join(parts), first, len(parts)


async def answers(url: str) -> dict[str, float]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="-", timeout=120) as client:
        await stream_text(client, "Hello")
        _, first_token_s, _ = await stream_text(client, "What is deep learning?")
        started = time.monotonic()
        numbers = [1 + i % 20 for i in range(NUM_STREAMS)]
        results = await asyncio.gather(*(stream_text(client, f"Count to {n}") for n in numbers))
        elapsed = time.monotonic() - started
    exact = sum(text == ", ".join(map(str, range(1, n + 1))) for (text, _, _), n in zip(results, numbers, strict=True))
    return {
        "first_token_ms": first_token_s * 1000,
        "streams_exact": exact,
        "streams_tokens_per_s": sum(pieces for _, _, pieces in results) / elapsed,
        "streams_first_token_p50_ms": statistics.median(first for _, first, _ in results) * 1000,
    }


def disconnect(server: Server) -> float:
    """Milliseconds from closing a streaming connection to an idle engine."""
    body = {"prompt": "x", "max_tokens": 3000, "stream": True}
    with httpx.Client(base_url=server.url) as client, client.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_bytes())
        started = time.monotonic()
    while server.metric("tgi_batch_current_size"):
        time.sleep(0.002)
    return (time.monotonic() - started) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--endless-model", type=Path, default=Path("/tmp/tgi-local-endless"))
    options = parser.parse_args()
    make_checkpoint(options.endless_model)
    rows = []
    for _ in range(options.repeat):
        server, ready_s = start()
        row = {"ready_s": ready_s, **asyncio.run(answers(server.url))}
        server.stop()
        server, _ = start("--model-id", str(options.endless_model), "--dtype", "float32", "--disable-ui")
        row["disconnect_to_free_ms"] = statistics.median(disconnect(server) for _ in range(5))
        server.stop()
        rows.append(row)
    medians = {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}
    for name, value in medians.items():
        spread = [round(row[name], 2) for row in rows]
        print(f"{name:30} {value:10}   {min(spread)} .. {max(spread)}")
    print(json.dumps({"runs": len(rows), **medians}))


if __name__ == "__main__":
    main()
