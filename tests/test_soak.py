"""Many clients of every kind at once, good, hasty, slow and wrong, on the real server around a fake model."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.faulty_server import Fault
from tests.serving import Server, running
from tests.waiting import until

NUM_CLIENTS = 32
NUM_SLOTS = 24
WARM_UP_S = 60.0


@pytest.fixture
def server(tiny_folder: Path) -> Iterator[Server]:
    options = ("--model-id", str(tiny_folder), "--disable-ui", "--max-concurrent-requests", str(NUM_SLOTS))
    with running(*options, "--max-batch-size", "16", program=("-m", "tests.faulty_server")) as started:
        yield started


def body(prompt: list[int], max_tokens: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **fields}


@dataclass
class Ledger:
    """What the clients saw."""

    served: int = 0
    refused: int = 0  # 429
    invalid: int = 0
    left: int = 0

    @property
    def knows_all_ends(self) -> bool:
        return min(self.served, self.invalid, self.left) > 20 and self.refused > 0


@dataclass
class Soak:
    """Clients that do one thing after another until the time is over, and each end was seen.

    Each answer that one waits for must be exact.
    """

    server: Server
    client: httpx.AsyncClient
    answers: dict[int, str]  # by the prompts' first token
    ledger: Ledger = field(default_factory=Ledger)

    async def run(self, seconds: float, seed: int) -> None:
        rng, end = random.Random(seed), time.monotonic() + seconds
        while time.monotonic() < end or not self.ledger.knows_all_ends:
            action = rng.choices([self.wait, self.listen, self.leave, self.dawdle, self.err, self.ask_much], _WEIGHTS)[
                0
            ]
            await action(rng)

    async def wait(self, rng: random.Random) -> None:
        """A whole answer."""
        first = rng.choice(list(self.answers))
        response = await self.client.post("/v1/completions", json=body(prompt_of(first), 30))
        if self._is_served(response.status_code):
            assert response.json()["choices"][0]["text"] == self.answers[first]

    async def listen(self, rng: random.Random) -> None:
        """A stream: every piece once and in order, one end, one usage, one [DONE]."""
        first = rng.choice(list(self.answers))
        async with self._stream(prompt_of(first), 30) as response:
            if not self._is_served(response.status_code):
                return
            events = [line[6:] async for line in response.aiter_lines() if line.startswith("data: ")]
        assert events.count("[DONE]") == 1 and events[-1] == "[DONE]"
        chunks = [json.loads(event) for event in events[:-1]]
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
        assert "".join(choice["text"] for choice in choices) == self.answers[first]
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
        assert [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")] == [30]

    async def leave(self, rng: random.Random) -> None:
        """A client that goes: before the answer, or in the middle of it."""
        slow = [Fault.SLOW, 0, rng.randrange(300)]
        if rng.random() < 0.5:
            asking = asyncio.ensure_future(self.client.post("/v1/completions", json=body(slow, 500)))
            await asyncio.sleep(rng.random() * 0.1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        else:
            async with self._stream(slow, 500) as response:
                lines = response.aiter_lines()
                for _ in range(rng.randrange(5)):
                    await anext(lines, None)
        self.ledger.left += 1

    async def dawdle(self, rng: random.Random) -> None:
        """A client that reads slowly, and then no more."""
        async with self._stream([Fault.SLOW, 0, rng.randrange(300)], 200) as response:
            lines = response.aiter_lines()
            for _ in range(5):
                await anext(lines, None)
                await asyncio.sleep(0.05)
        self.ledger.left += 1

    async def err(self, rng: random.Random) -> None:
        """A client that asks for what there is not."""
        wrong = rng.choice([{"max_tokens": -2}, {"prompt": [999]}, {"prompt": list(range(3, 390)) * 6}, {"top_p": 7}])
        response = await self.client.post("/v1/completions", json=body([5, 6], 4) | wrong)
        assert response.status_code in (400, 429), response.text  # slots are looked at first, as TGI does
        self.ledger.invalid += response.status_code == 400
        self.ledger.refused += response.status_code == 429

    async def ask_much(self, rng: random.Random) -> None:
        response = await self.client.post("/v1/completions", json=body([rng.randrange(3, 390) for _ in range(1900)], 9))
        self._is_served(response.status_code)

    def _is_served(self, status: int) -> bool:
        assert status in (200, 429)
        self.ledger.served += status == 200
        self.ledger.refused += status == 429
        return status == 200

    @asynccontextmanager
    async def _stream(self, prompt: list[int], max_tokens: int) -> AsyncIterator[httpx.Response]:
        fields = {"stream": True, "stream_options": {"include_usage": True}}
        async with self.client.stream("POST", "/v1/completions", json=body(prompt, max_tokens, **fields)) as response:
            yield response


_WEIGHTS = [15, 20, 30, 10, 20, 5]


def prompt_of(first: int) -> list[int]:
    return [first, *range(10, 10 + first % 40)]


async def soak(server: Server, seconds: float) -> Ledger:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        answers = {}
        for first in range(100, 120):
            response = await client.post("/v1/completions", json=body(prompt_of(first), 30))
            answers[first] = response.json()["choices"][0]["text"]
        crowd = Soak(server, client, answers)
        await asyncio.gather(*(crowd.run(seconds, seed) for seed in range(NUM_CLIENTS)))
    crowd.ledger.served += len(answers)
    return crowd.ledger


def check_accounts(server: Server, ledger: Ledger) -> None:
    """Every request has ended once: as the clients say, and by the server's own books."""
    server.wait_idle()
    causes = ("overloaded", "validation", "template", "generation", "incomplete", "dropped")
    failures = {cause: server.metric("tgi_request_failure", err=cause) for cause in causes}
    assert server.metric("tgi_request_success") >= ledger.served
    assert failures["overloaded"] >= ledger.refused and failures["validation"] <= ledger.invalid
    assert failures["generation"] == failures["incomplete"] == failures["template"] == 0
    # One who leaves may have been answered, or refused, or never read.
    ended = server.metric("tgi_request_success") + sum(failures.values())
    assert server.metric("tgi_request_count") == ended
    assert 0 <= ledger.served + ledger.refused + ledger.invalid + ledger.left - ended <= ledger.left


def num_fds(server: Server) -> int:
    return psutil.Process(server.process.pid).num_fds()


async def test_a_crowd_of_all_kinds(server: Server) -> None:
    num_before = num_fds(server)
    check_accounts(server, await soak(server, 3.0))
    await until(
        lambda: num_fds(server) <= num_before + 2,
        lambda: f"{num_fds(server)} files open, {num_before} at the start",
    )


@pytest.mark.long
async def test_ten_minutes_of_it_leave_no_trace_in_memory(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    await soak(server, WARM_UP_S)
    before = process.memory_info().rss
    await soak(server, 600.0)
    server.wait_idle()
    grown = (process.memory_info().rss - before) / 2**20
    assert grown <= 32, f"{grown:.0f} MiB more"
