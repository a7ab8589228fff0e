"""When requests are sent: a closed loop of clients that wait for their answers, or arrivals that wait for nobody."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tgi_local.bench.measures import RequestRecord

Ask = Callable[[float], Awaitable[RequestRecord]]


@dataclass
class Budget:
    """How many requests are begun, or for how many seconds; what has begun is always awaited."""

    num_requests: int | None
    seconds: float | None
    _deadline_s: float = 0.0
    _num_begun: int = 0

    def start(self, now_s: float) -> None:
        self._deadline_s = now_s + self.seconds if self.seconds is not None else float("inf")

    def take(self, now_s: float) -> bool:
        """Whether one more request may begin at `now_s`; if so, it is counted."""
        if now_s >= self._deadline_s or (self.num_requests is not None and self._num_begun >= self.num_requests):
            return False
        self._num_begun += 1
        return True


@dataclass(frozen=True)
class Run:
    """The records of one level, the seconds from its first request to its last answer, and this process's CPU seconds."""

    records: list[RequestRecord]
    wall_s: float
    client_cpu_s: float


async def closed_loop(ask: Ask, concurrency: int, budget: Budget) -> Run:
    """`concurrency` clients, each with its next request as soon as its last one is answered."""
    records: list[RequestRecord] = []

    async def client() -> None:
        while budget.take(now := time.perf_counter()):
            records.append(await ask(now))

    return await _timed(budget, records, lambda: asyncio.gather(*(client() for _ in range(concurrency))))


async def open_loop(ask: Ask, rate: float, budget: Budget, rng: random.Random) -> Run:
    """Poisson arrivals, `rate` a second on average, however many are still unanswered."""
    records: list[RequestRecord] = []

    async def arrivals() -> None:
        due_s = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            while budget.take(due_s):
                tasks.create_task(one(due_s))
                due_s += rng.expovariate(rate)
                await asyncio.sleep(due_s - time.perf_counter())

    async def one(due_s: float) -> None:
        records.append(await ask(due_s))

    return await _timed(budget, records, arrivals)


async def _timed(budget: Budget, records: list[RequestRecord], load: Callable[[], Awaitable[object]]) -> Run:
    started_s, cpu_s = time.perf_counter(), time.process_time()
    budget.start(started_s)
    await load()
    wall_s = max((record.ended_s for record in records), default=started_s) - started_s
    return Run(records, wall_s, time.process_time() - cpu_s)
