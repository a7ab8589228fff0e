"""Many clients at once on the built-in model: every answer exact, nothing left behind."""

import asyncio

from openai import AsyncOpenAI

from tests.serving import Server

NUM_STREAMS = 32


async def count(client: AsyncOpenAI, n: int) -> str:
    stream = await client.chat.completions.create(
        model="tgi", messages=[{"role": "user", "content": f"Count to {n}"}], stream=True
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def test_concurrent_streams_of_different_counts_are_exact(demo_server: Server) -> None:
    numbers = [1 + i % 20 for i in range(NUM_STREAMS)]
    success = demo_server.metric("tgi_request_success")
    async with AsyncOpenAI(base_url=f"{demo_server.url}/v1", api_key="-", timeout=60) as client:
        answers = await asyncio.gather(*(count(client, n) for n in numbers))
    assert answers == [", ".join(str(i) for i in range(1, n + 1)) for n in numbers]
    assert demo_server.metric("tgi_request_success") == success + NUM_STREAMS
