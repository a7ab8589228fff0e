import asyncio
import random
import time
from itertools import pairwise

from tgi_local.bench.load import Budget, closed_loop, open_loop
from tgi_local.bench.measures import RequestRecord


class Server:
    """Answers after the event loop has turned a few times; remembers how many were in flight."""

    def __init__(self, turns: int = 3) -> None:
        self.turns = turns
        self.in_flight = self.most_in_flight = 0

    async def ask(self, due_s: float) -> RequestRecord:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        for _ in range(self.turns):
            await asyncio.sleep(0)
        self.in_flight -= 1
        return RequestRecord(due_s, time.perf_counter())


async def test_a_closed_loop_keeps_its_number_of_clients() -> None:
    server = Server()
    run = await closed_loop(server.ask, 4, Budget(10, None))
    assert (len(run.records), server.most_in_flight) == (10, 4)


async def test_an_open_loop_waits_for_nobody() -> None:
    held = asyncio.Event()
    num_begun = 0

    async def ask(due_s: float) -> RequestRecord:
        nonlocal num_begun
        num_begun += 1
        if num_begun == 5:
            held.set()
        await held.wait()
        return RequestRecord(due_s, time.perf_counter())

    run = await open_loop(ask, 1000.0, Budget(5, None), random.Random(1))
    assert len(run.records) == 5


async def test_arrivals_are_those_of_the_seed() -> None:
    async def gaps(seed: int) -> list[float]:
        run = await open_loop(Server(0).ask, 1000.0, Budget(20, None), random.Random(seed))
        due = sorted(record.started_s for record in run.records)
        return [round(b - a, 9) for a, b in pairwise(due)]

    first, again, other = await gaps(1), await gaps(1), await gaps(2)
    assert first == again != other


async def test_seconds_end_the_beginning_of_requests_only() -> None:
    ended = []

    async def ask(due_s: float) -> RequestRecord:
        await asyncio.sleep(0.02)
        ended.append(due_s)
        return RequestRecord(due_s, time.perf_counter())

    run = await closed_loop(ask, 2, Budget(None, 0.01))
    assert len(run.records) == len(ended) == 2
