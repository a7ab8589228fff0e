import asyncio
import random
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest

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
        return [b - a for a, b in pairwise(due)]

    first, again, other = await gaps(1), await gaps(1), await gaps(2)
    # The later on the clock, the fewer digits of a difference are left.
    assert again == pytest.approx(first, abs=1e-6) and other != pytest.approx(first, abs=1e-6)


async def test_seconds_end_the_beginning_of_requests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, ended = 0.0, []
    clock = SimpleNamespace(perf_counter=lambda: now_s, process_time=time.process_time)
    monkeypatch.setattr("tgi_local.bench.load.time", clock)

    async def ask(due_s: float) -> RequestRecord:
        nonlocal now_s
        await asyncio.sleep(0)
        now_s += 6.0
        ended.append(due_s)
        return RequestRecord(due_s, now_s)

    run = await closed_loop(ask, 2, Budget(None, 10.0))
    assert ended == [0.0, 0.0, 6.0] and len(run.records) == 3, "begun at 0, 0 and 6, and none at 12 or later"
