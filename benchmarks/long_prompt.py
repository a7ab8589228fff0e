"""Streams that are running while a long prompt is read: the gaps between their tokens before it comes and meanwhile.

python benchmarks/long_prompt.py URL --model NAME --json FILE
"""

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cells import CELLS, LONG_PROMPT_TOKENS, QUIET_TOKENS
from benchmarks.gaps import summary
from tgi_local.bench.completions import Dialect, EventReader, Prompt, complete
from tgi_local.bench.connection import HttpClient
from tgi_local.bench.options import server_url
from tgi_local.bench.prompts import calibrated_text

POLL_S = 0.005


async def measure(client: HttpClient, dialect: Dialect, seed: int) -> dict[str, Any]:
    cell = CELLS["long"]

    async def count_tokens(prompt: Prompt) -> int:
        return int((await complete(client, dialect, prompt, max_tokens=1))["prompt_tokens"])

    prompts = await calibrated_text(count_tokens, cell.prompt_tokens)
    short = prompts.distinct(0, cell.prompt_tokens, random.Random(seed))
    long = prompts.distinct(0, LONG_PROMPT_TOKENS, random.Random(seed + 1))
    readers: list[EventReader] = []

    def send(prompt: Prompt, max_tokens: int) -> tuple[EventReader, asyncio.Future[int]]:
        reader = EventReader(time.perf_counter())
        body = dialect.body(prompt, max_tokens, stream=True)
        return reader, asyncio.ensure_future(client.request("POST", dialect.path, body, reader.feed))

    async def until(num_tokens: int) -> float:
        while any(len(reader.record.event_times_s) < num_tokens for reader in readers):
            if any(task.done() for _, task in running):
                raise RuntimeError("a stream ended before the long prompt was sent")
            await asyncio.sleep(POLL_S)
        return time.perf_counter()

    async def until_all_went_on(first_s: float) -> None:
        while any(r.record.event_times_s[-1] <= first_s and not task.done() for r, task in running):
            await asyncio.sleep(POLL_S)

    running = [send(next(short), cell.output_tokens) for _ in range(cell.concurrency)]
    readers += [reader for reader, _ in running]
    quiet_s = await until(QUIET_TOKENS)
    await until(3 * QUIET_TOKENS)
    sent_s = time.perf_counter()
    long_reader, long_task = send(next(long), 1)
    status = await long_task
    long_reader.finish(status)
    if long_reader.record.failure is not None:
        raise RuntimeError(f"the long prompt failed: {long_reader.record.failure}")
    first_s = long_reader.record.event_times_s[0]
    await until_all_went_on(first_s)
    ended = sum(task.done() for _, task in running)
    for _, task in running:
        task.cancel()
    await asyncio.gather(*(task for _, task in running), return_exceptions=True)
    streams = [reader.record.event_times_s for reader in readers]
    found = summary(streams, quiet_s, sent_s, first_s)
    return {**found, "long_prompt_tokens": long_reader.record.prompt_tokens, "streams_ended_early": ended}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", type=server_url)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    client = HttpClient(options.url, {})
    try:
        found = await measure(client, Dialect("completions", options.model), options.seed)
    finally:
        client.close()
    options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
