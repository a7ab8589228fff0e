"""Engines around a fake model, and random workloads for them."""

import random
from collections.abc import Callable
from typing import Any

from tests.fakes import FakeRunner, expected_output
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import Engine
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.engine.step import StepPlan
from tgi_local.types import GenerationRequest, SamplingParams, StopParams, TokenEvent


def make_request(
    request_id: str, prompt: list[int], max_new_tokens: int, stop: int | None = None, **fields: Any
) -> GenerationRequest:
    stop_ids = frozenset() if stop is None else frozenset([stop])
    stopping = StopParams(max_new_tokens, stop_token_ids=stop_ids)
    return GenerationRequest(request_id, "", tuple(prompt), SamplingParams(), stopping, **fields)


def make_engine(
    num_blocks: int = 64,
    max_batch_size: int = 8,
    max_batch_tokens: int = 32,
    *,
    block_size: int = 4,
    vocab_size: int = 1000,
    block_manager: Callable[[int, int], BlockManager] = BlockManager,
) -> tuple[Engine, FakeRunner]:
    runner = FakeRunner(num_blocks, block_size, vocab_size)
    limits = SchedulerLimits(max_batch_size, max_batch_tokens)
    return Engine(Scheduler(limits, block_manager(num_blocks, block_size)), runner), runner


def run_to_end(engine: Engine) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {}
    while engine.has_work:
        for event in engine.step()[0]:
            events.setdefault(event.request_id, []).append(event)
        engine.check_invariants()
    return events


def serve(engine: Engine, *requests: GenerationRequest) -> dict[str, list[TokenEvent]]:
    for request in requests:
        engine.submit(request)
    return run_to_end(engine)


def tokens(events: list[TokenEvent]) -> list[int]:
    return [event.token.id for event in events if event.token is not None]


def watch_plans(runner: FakeRunner) -> list[StepPlan]:
    """A list that every plan from now on is added to."""
    plans: list[StepPlan] = []
    runner.before_step = plans.append
    return plans


class Workload:
    """A random server with random users, who share prefixes, go on talking, lose interest and hit failing steps.

    Two tokens make up every text, so that blocks are shared wherever that is allowed; caches are tiny, so that they
    are evicted and sequences preempted all the time.
    """

    def __init__(self, seed: int, block_manager: Callable[[int, int], BlockManager] = BlockManager) -> None:
        self._rng = rng = random.Random(seed)
        block_size, num_blocks = rng.choice([1, 2, 3, 4]), rng.choice([4, 6, 9, 16, 24])
        self._capacity = block_size * num_blocks
        self.engine, self._runner = make_engine(
            num_blocks,
            rng.choice([1, 3, 8]),
            rng.choice([1, 3, 8, 64]),
            block_size=block_size,
            vocab_size=3,
            block_manager=block_manager,
        )
        self._runner.before_step = self._fail_sometimes
        self._failed_step = -1
        self._failing: set[str] = set()
        self._requests: dict[str, GenerationRequest] = {}
        self._events: dict[str, list[TokenEvent]] = {}
        self._cancelled: set[str] = set()
        self._num_to_come = rng.randrange(2, 9)
        self._max_steps = 100
        self.num_steps = 0
        self.num_preempted = 0
        self.num_cached = 0

    def run(self, *, check_invariants: bool = True) -> None:
        """Raises, in whatever way, when anything is wrong."""
        while self._num_to_come > 0 or self.engine.has_work:
            while self._num_to_come > 0 and self._rng.random() < 0.5:
                longest = self._rng.choice([self._capacity, self._capacity // 8 + 2])
                self._submit([self._rng.randrange(1, 3) for _ in range(self._rng.randrange(1, longest))])
            if self._requests and self._rng.random() < 0.04:
                request_id = self._rng.choice(list(self._requests))
                if self.engine.cancel(request_id):
                    self._cancelled.add(request_id)
            self._step()
            if check_invariants:
                self.engine.check_invariants()
        self._check_answers()
        assert self.engine.stats().used_blocks == 0

    def _submit(self, prompt: list[int]) -> None:
        """One user's next turn: `n` equal requests."""
        rng = self._rng
        num_new = rng.randrange(1, min(rng.choice([4, 40]), self._capacity - len(prompt)) + 1)
        fields = {"principal": rng.choice("ab"), "cache_salt": rng.choice(["", "", "x"])}
        for _ in range(rng.choice([1, 1, 1, 3])):
            request_id = f"r{len(self._requests)}"
            self._requests[request_id] = make_request(
                request_id, prompt, num_new, prompt_logprobs=rng.random() < 0.1, **fields
            )
            self._events[request_id] = []
            self._max_steps += 20 * (len(prompt) + num_new)
            self.engine.submit(self._requests[request_id])
        self._num_to_come -= 1

    def _step(self) -> None:
        self.num_steps += 1
        assert self.num_steps < self._max_steps, "a livelock"
        events, stats = self.engine.step()
        self.num_preempted += stats.num_preempted
        self.num_cached += stats.num_cached_prompt_tokens
        for event in events:
            self._events[event.request_id].append(event)
            if event.is_terminal and self._num_to_come > 0 and self._rng.random() < 0.5:
                request = self._requests[event.request_id]
                said = [*request.prompt_token_ids, *tokens(self._events[event.request_id])]
                if len(said) + 1 < self._capacity:
                    self._submit([*said, self._rng.randrange(1, 3)])

    def _fail_sometimes(self, plan: StepPlan) -> None:
        if self._rng.random() < 0.01 and self._failed_step < self.num_steps - 1:
            self._failed_step = self.num_steps
            self._failing |= {row.request_id for row in plan.rows}
            raise RuntimeError("a failure on purpose")

    def _check_answers(self) -> None:
        for request_id, events in self._events.items():
            request = self._requests[request_id]
            expected = expected_output(list(request.prompt_token_ids), request.stopping.max_new_tokens, 3)
            if request_id in self._cancelled | self._failing:
                assert tokens(events) == expected[: len(tokens(events))]
                assert sum(event.is_terminal for event in events) == (request_id not in self._cancelled)
                continue
            assert tokens(events) == expected
            assert [event.is_terminal for event in events] == [False] * (len(events) - 1) + [True]
            assert (events[0].prompt_logprobs is not None) == request.prompt_logprobs
            assert events[0].num_cached_tokens < len(request.prompt_token_ids)
            assert not any(event.num_cached_tokens for event in events[1:])
