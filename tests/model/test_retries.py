"""On a real model: rows that are computed again, in smaller steps or after a preemption, end in the same tokens."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import Engine
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.engine.step import OutOfMemoryError, StepPlan, StepResult
from tgi_local.model.loader import LoadedModel, LoadOptions, load
from tgi_local.model.runner import TorchRunner, build_runner
from tgi_local.types import GenerationRequest, SamplingParams, StopParams, TokenEvent

NUM_NEW = 24
LENGTHS = (1, 2, 3, 15, 16, 17, 31, 33, 64, 100, 7, 50)

Run = Callable[[StepPlan], StepResult]
Wrap = Callable[[Run, StepPlan], StepResult]


class Wrapped:
    """A runner whose runs go through the test's hands."""

    def __init__(self, runner: TorchRunner, wrap: Wrap) -> None:
        self.num_blocks, self.block_size = runner.num_blocks, runner.block_size
        self.run: Run = lambda plan: wrap(runner.run, plan)


@pytest.fixture(scope="module", params=["packed", "eager"])
def loaded(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> LoadedModel:
    """For both forward passes of a CPU."""
    folder: Path = make_checkpoint(tmp_path_factory.mktemp("llama"))
    options = LoadOptions(dtype="float32", device="cpu", may_pack=request.param == "packed")
    return load(folder, "tiny", None, False, options)


@pytest.fixture(scope="module")
def requests() -> list[GenerationRequest]:
    """Greedy and sampled, with penalties and alternatives, of many lengths."""
    rng = random.Random(3)
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "top_p": 0.95, "seed": 5},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"temperature": 0.8, "top_k": 40, "seed": 9, "top_n_tokens": 3},
    ]
    return [
        GenerationRequest(
            f"r{i}",
            "",
            tuple(rng.randrange(3, VOCAB_SIZE) for _ in range(length)),
            SamplingParams(**kinds[i % len(kinds)]),
            StopParams(NUM_NEW),
            prompt_logprobs=i % 5 == 0,
        )
        for i, length in enumerate(LENGTHS)
    ]


def serve(
    loaded: LoadedModel,
    requests: list[GenerationRequest],
    wrap: Wrap = lambda run, plan: run(plan),
    *,
    num_tokens: int = 4096,
    batch_tokens: int = 512,
) -> tuple[dict[str, list[TokenEvent]], int]:
    """All requests together: their events, and the number of preemptions."""
    runner = build_runner(loaded, block_size=16, min_tokens=16, max_tokens=num_tokens, requested_tokens=num_tokens)
    scheduler = Scheduler(SchedulerLimits(16, batch_tokens), BlockManager(runner.num_blocks, runner.block_size))
    engine = Engine(scheduler, Wrapped(runner, wrap))
    for request in requests:
        engine.submit(request)
    events: dict[str, list[TokenEvent]] = {}
    while engine.has_work:
        for event in engine.step()[0]:
            assert event.error is None
            events.setdefault(event.request_id, []).append(event)
        engine.check_invariants()
    return events, scheduler.num_preempted


def check_same(got: dict[str, list[TokenEvent]], expected: dict[str, list[TokenEvent]]) -> None:
    assert got.keys() == expected.keys()
    for request_id, mine in got.items():
        theirs = expected[request_id]
        assert [e.token.id for e in mine if e.token] == [e.token.id for e in theirs if e.token], request_id
        for one, other in zip(mine, theirs, strict=True):
            assert one.finish_reason is other.finish_reason and one.token is not None and other.token is not None
            assert one.token.logprob == pytest.approx(other.token.logprob, abs=1e-4)
            assert [t.id for t in one.token.top] == [t.id for t in other.token.top]
            prompts = (one.prompt_logprobs or (), other.prompt_logprobs or ())
            assert len(prompts[0]) == len(prompts[1])


@pytest.fixture(scope="module")
def expected(loaded: LoadedModel, requests: list[GenerationRequest]) -> dict[str, list[TokenEvent]]:
    return serve(loaded, requests)[0]


@pytest.mark.logs_errors
@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_fails_is_repeated(
    after: bool, loaded: LoadedModel, requests: list[GenerationRequest], expected: dict[str, list[TokenEvent]]
) -> None:
    """Before anything is computed, and after all keys and values have been written."""
    rng = random.Random(1)
    failures: list[bool] = [False]

    def fail_now_and_then(run: Run, plan: StepPlan) -> StepResult:
        """Never a single row, which would end, and never twice in a row."""
        failures.append(len(plan.rows) > 1 and not failures[-1] and rng.random() < 0.2)
        if failures[-1] and not after:
            raise RuntimeError("on purpose")
        result = run(plan)
        if failures[-1]:
            raise RuntimeError("on purpose")
        return result

    check_same(serve(loaded, requests, fail_now_and_then)[0], expected)
    assert sum(failures) > 3


@pytest.mark.parametrize("num_tokens", [1, 5, 40])
def test_too_little_memory_for_larger_steps(
    num_tokens: int, loaded: LoadedModel, requests: list[GenerationRequest], expected: dict[str, list[TokenEvent]]
) -> None:
    def run_small(run: Run, plan: StepPlan) -> StepResult:
        if plan.num_tokens > num_tokens:
            raise OutOfMemoryError("on purpose")
        return run(plan)

    check_same(serve(loaded, requests, run_small)[0], expected)


@pytest.mark.parametrize("batch_tokens", [7, 64, 4096])
def test_prefill_in_chunks(
    batch_tokens: int, loaded: LoadedModel, requests: list[GenerationRequest], expected: dict[str, list[TokenEvent]]
) -> None:
    check_same(serve(loaded, requests, batch_tokens=batch_tokens)[0], expected)


def test_preemption(
    loaded: LoadedModel, requests: list[GenerationRequest], expected: dict[str, list[TokenEvent]]
) -> None:
    got, num_preempted = serve(loaded, requests, num_tokens=192)
    assert num_preempted > 0
    check_same(got, expected)
