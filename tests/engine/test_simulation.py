"""Random workloads against scheduler, block manager and engine; invariants after every step, no torch."""

import random
import sys

import pytest

from tests.fakes import FakeRunner, expected_output
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import Engine, EngineFailedError
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.engine.step import StepPlan
from tgi_local.types import FinishReason, GenerationRequest, SamplingParams, StopParams, TokenEvent


def make_request(request_id: str, prompt: list[int], max_new_tokens: int, stop: int | None = None) -> GenerationRequest:
    stop_ids = frozenset() if stop is None else frozenset([stop])
    return GenerationRequest(
        request_id, "", tuple(prompt), SamplingParams(), StopParams(max_new_tokens, stop_token_ids=stop_ids)
    )


def make_engine(num_blocks: int = 64, max_batch_size: int = 8, max_batch_tokens: int = 32) -> tuple[Engine, FakeRunner]:
    runner = FakeRunner(num_blocks=num_blocks)
    blocks = BlockManager(runner.num_blocks, runner.block_size)
    return Engine(Scheduler(SchedulerLimits(max_batch_size, max_batch_tokens), blocks), runner), runner


def run_to_end(engine: Engine) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {}
    while engine.has_work:
        for event in engine.step()[0]:
            events.setdefault(event.request_id, []).append(event)
        engine.check_invariants()
    return events


def tokens(events: list[TokenEvent]) -> list[int]:
    return [event.token.id for event in events if event.token is not None]


@pytest.mark.parametrize("seed", range(40))
def test_random_workload_is_exact_and_conserves_blocks(seed: int) -> None:
    rng = random.Random(seed)
    num_blocks = rng.choice([12, 20, 40, 200])
    engine, runner = make_engine(num_blocks, rng.choice([1, 3, 8, 64]), rng.choice([64, 80, 200]))
    capacity = num_blocks * runner.block_size
    pending, expected, cancelled, seen = [], {}, set(), {}
    for i in range(40):
        prompt = [rng.randrange(1, 1000) for _ in range(rng.randrange(1, capacity // 2))]
        num_new = rng.randrange(1, min(30, capacity - len(prompt)))
        pending.append(make_request(f"r{i}", prompt, num_new))
        expected[f"r{i}"] = expected_output(prompt, num_new)
    while pending or engine.has_work:
        while pending and rng.random() < 0.4:
            engine.submit(pending.pop())
        if seen and rng.random() < 0.05:
            request_id = rng.choice(list(seen))
            if engine.cancel(request_id):
                cancelled.add(request_id)
        for event in engine.step()[0]:
            seen.setdefault(event.request_id, []).append(event)
        engine.check_invariants()
    for request_id, events in seen.items():
        if request_id in cancelled:
            assert tokens(events) == expected[request_id][: len(events)]
            assert not any(event.is_terminal for event in events)
        else:
            assert tokens(events) == expected[request_id]
            assert [event.is_terminal for event in events] == [False] * (len(events) - 1) + [True]
    assert len(seen) + len(cancelled - set(seen)) == 40


def test_preemption_happens_and_leaves_no_trace_in_the_output() -> None:
    engine, _ = make_engine(num_blocks=10)
    prompts = {f"r{i}": [i + 1] * 9 for i in range(4)}
    for request_id, prompt in prompts.items():
        engine.submit(make_request(request_id, prompt, 20))
    num_preempted = 0
    seen: dict[str, list[int]] = {}
    while engine.has_work:
        events, stats = engine.step()
        num_preempted += stats.num_preempted
        for event in events:
            seen.setdefault(event.request_id, []).extend(tokens([event]))
    assert num_preempted > 0
    assert seen == {request_id: expected_output(prompt, 20) for request_id, prompt in prompts.items()}


def test_requests_join_and_leave_a_running_batch() -> None:
    engine, runner = make_engine()
    batches: list[list[str]] = []
    runner.before_step = lambda plan: batches.append([row.request_id for row in plan.rows])
    engine.submit(make_request("a", [1, 2], 6))
    engine.step()
    engine.submit(make_request("b", [3], 2))
    run_to_end(engine)
    assert batches == [["a"], ["a", "b"], ["a", "b"], ["a"], ["a"], ["a"]]


def test_a_long_prompt_is_prefilled_in_chunks_beside_running_decodes() -> None:
    engine, runner = make_engine(max_batch_tokens=8)
    plans: list[StepPlan] = []
    runner.before_step = plans.append
    engine.submit(make_request("short", [1, 2], 30))
    engine.step()
    engine.submit(make_request("long", list(range(1, 51)), 2))
    run_to_end(engine)
    beside = [plan for plan in plans if any(row.request_id == "long" for row in plan.rows)]
    assert len(beside) >= 8
    assert all(plan.num_tokens <= 8 for plan in plans)
    assert all(any(row.request_id == "short" for row in plan.rows) for plan in beside)


def test_first_come_first_served() -> None:
    engine, runner = make_engine(max_batch_size=2)
    first_seen: list[str] = []

    def note(plan: StepPlan) -> None:
        first_seen.extend(row.request_id for row in plan.rows if row.request_id not in first_seen)

    runner.before_step = note
    for i in range(10):
        engine.submit(make_request(f"r{i}", [i + 1], 1 + i % 3))
    run_to_end(engine)
    assert first_seen == [f"r{i}" for i in range(10)]


def test_eos_ends_a_sequence_and_the_limit_wins_over_eos() -> None:
    prompt = [5, 6, 7]
    third = expected_output(prompt, 3)[2]
    engine, _ = make_engine()
    engine.submit(make_request("eos", prompt, 10, stop=third))
    engine.submit(make_request("limit", prompt, 3, stop=third))
    events = run_to_end(engine)
    assert events["eos"][-1].finish_reason is FinishReason.EOS
    assert events["limit"][-1].finish_reason is FinishReason.LENGTH
    assert tokens(events["eos"]) == tokens(events["limit"]) == expected_output(prompt, 3)


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    engine, _ = make_engine(num_blocks=4)
    with pytest.raises(ValueError, match="can never fit"):
        engine.submit(make_request("big", [1] * 10, 7))
    assert not engine.has_work


def test_cancel_is_idempotent_at_every_stage() -> None:
    engine, _ = make_engine(max_batch_size=1)
    engine.submit(make_request("running", [1], 5))
    engine.submit(make_request("queued", [2], 5))
    engine.step()
    assert engine.cancel("queued") and not engine.cancel("queued")
    assert engine.cancel("running") and not engine.cancel("running")
    assert not engine.cancel("unknown")
    engine.check_invariants()
    assert not engine.has_work
    assert engine.stats().used_blocks == 0


def test_a_failing_step_ends_only_its_rows() -> None:
    engine, runner = make_engine(max_batch_size=1)
    engine.submit(make_request("bad", [1], 5))
    engine.submit(make_request("good", [2], 5))

    def fail_bad(plan: StepPlan) -> None:
        if plan.rows[0].request_id == "bad":
            raise RuntimeError("boom")

    runner.before_step = fail_bad
    events = run_to_end(engine)
    assert events["bad"][-1].error is not None and len(events["bad"]) == 1
    assert tokens(events["good"]) == expected_output([2], 5)
    assert engine.stats().used_blocks == 0


def test_a_model_that_keeps_failing_stops_the_engine() -> None:
    engine, runner = make_engine(max_batch_size=1)

    def fail(plan: StepPlan) -> None:
        raise RuntimeError("boom")

    runner.before_step = fail
    for i in range(3):
        engine.submit(make_request(f"r{i}", [1], 5))
    engine.step()
    engine.step()
    with pytest.raises(EngineFailedError):
        engine.step()


def test_block_manager_notices_a_leak() -> None:
    blocks = BlockManager(4, 2)
    blocks._free.pop()
    with pytest.raises(RuntimeError, match="this is a bug"):
        blocks.check_invariants()


def test_engine_needs_no_torch() -> None:
    import subprocess

    code = "import sys, tests.engine.test_simulation; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
