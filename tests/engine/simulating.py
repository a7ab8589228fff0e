"""Engines around a fake model, and random workloads for them."""

import random
from collections.abc import Callable
from typing import Any

from tests.fakes import FakeRunner, expected_output
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import Engine
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.engine.step import OutOfMemoryError, StepPlan, StepResult
from tgi_local.types import GenerationRequest, SamplingParams, StepStats, StopParams, TokenEvent


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


class OnPurpose(RuntimeError):
    """A failure of the model that the test wanted."""


class Workload:
    """A random server with random users, who share prefixes, go on talking and lose interest, on a model that fails.

    Two tokens make up every text, so that blocks are shared wherever that is allowed; caches are tiny, so that they
    are evicted and sequences preempted all the time. Some steps fail once, some requests fail always, and memory
    may last for a few tokens per step only.
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
        self.engine._scheduler.budget._patience = rng.choice([1, 4])
        self._compute = self._runner.run
        self._runner.run = self._run_model  # type: ignore[method-assign]
        self._num_runs = 0  # in this step
        self._memory = rng.choice([1000, 1000, 1000, 1, 2, 5])  # tokens per step
        self._poison: dict[str, int] = {}  # requests that the model can not compute after so many tokens
        self._bugs: list[Exception] = []
        self._requests: dict[str, GenerationRequest] = {}
        self._events: dict[str, list[TokenEvent]] = {}
        self._cancelled: set[str] = set()
        self._num_to_come = rng.randrange(2, 9)
        self._max_steps = 100
        self.num_steps = 0
        self.stats: list[StepStats] = []

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
        assert not self._bugs
        self._check_answers()
        self._check_counts()
        assert self.engine.stats().used_blocks == 0
        assert self.engine._scheduler.max_running_tokens == 0

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
            # More of them at once could not be told from a model that is broken.
            if rng.random() < 0.05 and sum(not self._is_over(poisoned) for poisoned in self._poison) < 3:
                self._poison[request_id] = rng.randrange(4)
            self._max_steps += 20 * (len(prompt) + num_new)
            self.engine.submit(self._requests[request_id])
        self._num_to_come -= 1

    def _step(self) -> None:
        self.num_steps += 1
        assert self.num_steps < self._max_steps, "a livelock"
        self._num_runs = 0
        if self._rng.random() < 0.02:
            self._memory = self._rng.choice([1000, 1, 3])
        events, stats = self.engine.step()
        self.stats.append(stats)
        for event in events:
            self._events[event.request_id].append(event)
            if event.is_terminal and self._num_to_come > 0 and self._rng.random() < 0.5:
                request = self._requests[event.request_id]
                said = [*request.prompt_token_ids, *tokens(self._events[event.request_id])]
                if len(said) + 1 < self._capacity:
                    self._submit([*said, self._rng.randrange(1, 3)])

    def _is_over(self, request_id: str) -> bool:
        return request_id in self._cancelled or any(event.is_terminal for event in self._events[request_id])

    def _run_model(self, plan: StepPlan) -> StepResult:
        self._num_runs += 1
        is_poisoned = any(row.step_index >= self._poison.get(row.request_id, 1000) for row in plan.rows)
        if is_poisoned or (self._num_runs == 1 and self._rng.random() < 0.02):
            raise OnPurpose
        if plan.num_tokens > self._memory:
            raise OutOfMemoryError
        try:
            return self._compute(plan)
        except Exception as error:
            self._bugs.append(error)
            raise

    def _check_answers(self) -> None:
        for request_id, events in self._events.items():
            request = self._requests[request_id]
            num_new = request.stopping.max_new_tokens
            expected = expected_output(list(request.prompt_token_ids), num_new, 3)
            if request_id in self._cancelled:
                assert tokens(events) == expected[: len(tokens(events))]
                assert not any(event.is_terminal for event in events)
                continue
            num_good = self._poison.get(request_id, num_new)
            assert tokens(events) == expected[:num_good]
            assert [event.is_terminal for event in events] == [False] * (len(events) - 1) + [True]
            assert (events[-1].error is not None) == (num_good < num_new)
            if num_good > 0:
                assert (events[0].prompt_logprobs is not None) == request.prompt_logprobs
                assert events[0].num_cached_tokens < len(request.prompt_token_ids)
                assert not any(event.num_cached_tokens for event in events[1:])

    def _check_counts(self) -> None:
        num_generated = sum(len(tokens(events)) for events in self._events.values())
        assert sum(step.num_generated_tokens for step in self.stats) == num_generated
        assert sum(step.num_recomputed_tokens for step in self.stats) == 0 or any(s.num_preempted for s in self.stats)
        if not self._cancelled and not self._poison:
            num_counted = sum(step.num_prompt_tokens + step.num_cached_prompt_tokens for step in self.stats)
            assert num_counted == sum(len(request.prompt_token_ids) for request in self._requests.values())
