"""A failing model costs only the answers that it can not give: retries, lack of memory, NaN, and when to give up."""

import itertools
import logging
from collections.abc import Callable, Iterator

import pytest

from tests.engine.simulating import make_engine, make_request, run_to_end, serve, tokens, watch_plans
from tests.fakes import FakeRunner, expected_output
from tgi_local.engine import guarded_runner, step_budget
from tgi_local.engine.engine import MAX_CONSECUTIVE_FAILURES, Engine, EngineFailedError
from tgi_local.engine.guarded_runner import MAX_FUTILE_RUNS
from tgi_local.engine.step import FatalModelError, OutOfMemoryError, RowResult, StepPlan, StepResult
from tgi_local.engine.step_budget import StepBudget
from tgi_local.types import StepStats, TokenEvent

NUM_RUNNING, NUM_WAITING = 64, 16
NUM_NEW = 6


@pytest.fixture(autouse=True)
def no_logs() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def prompt(i: int) -> list[int]:
    return [i + 1] * 5


def crowded() -> tuple[Engine, FakeRunner]:
    """64 sequences that decode and 16 that wait for a place."""
    engine, runner = make_engine(num_blocks=400, max_batch_size=NUM_RUNNING, max_batch_tokens=512)
    for i in range(NUM_RUNNING + NUM_WAITING):
        engine.submit(make_request(f"r{i}", prompt(i), NUM_NEW))
    assert engine.step()[1].num_running == NUM_RUNNING
    return engine, runner


def exact(events: list[TokenEvent], i: int) -> bool:
    """Whether `events`, those after the first token, are the rest of the answer to prompt `i`."""
    answer = expected_output(prompt(i), NUM_NEW)
    return tokens(events) == answer[-len(events) :] and events[-1].finish_reason is not None


def failed(events: dict[str, list[TokenEvent]]) -> set[str]:
    for mine in events.values():
        assert [event.is_terminal for event in mine] == [False] * (len(mine) - 1) + [True]
    return {request_id for request_id, mine in events.items() if mine[-1].error is not None}


def check_others(events: dict[str, list[TokenEvent]], engine: Engine) -> None:
    assert len(events) == NUM_RUNNING + NUM_WAITING
    bad = failed(events)
    assert all(exact(mine, int(request_id[1:])) for request_id, mine in events.items() if request_id not in bad)
    assert engine.stats().used_blocks == 0 and not engine.has_work


def fail_when(runner: FakeRunner, is_bad: Callable[[StepPlan], bool]) -> list[StepPlan]:
    """The plans of the runs from now on; those that are bad raise."""
    plans: list[StepPlan] = []

    def before(plan: StepPlan) -> None:
        plans.append(plan)
        if is_bad(plan):
            raise RuntimeError("on purpose")

    runner.before_step = before
    return plans


def test_a_step_that_fails_once_costs_nobody_anything() -> None:
    engine, runner = crowded()
    plans = fail_when(runner, lambda plan: len(plans) == 1)
    events, stats = engine.step()
    assert [len(plan.rows) for plan in plans] == [64, 32, 32]
    assert len(events) == 64 and not stats.failed
    later = run_to_end(engine)
    for event in events:
        later[event.request_id].insert(0, event)
    assert failed(later) == set()
    check_others(later, engine)


def test_without_retries_all_would_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    monkeypatch.setattr(guarded_runner, "MAX_FUTILE_RUNS", 1)
    engine, runner = crowded()
    plans = fail_when(runner, lambda plan: len(plans) == 1)
    assert len(failed(run_to_end(engine))) == 64


def test_a_single_row_is_tried_again_as_well() -> None:
    engine, runner = make_engine()
    plans = fail_when(runner, lambda plan: len(plans) == 1)
    assert tokens(serve(engine, make_request("a", [1, 2, 3], 4))["a"]) == expected_output([1, 2, 3], 4)


def test_a_step_in_which_nothing_can_be_computed_ends_its_rows_and_nobody_else() -> None:
    engine, runner = crowded()
    plans = fail_when(runner, lambda plan: any(row.request_id in first for row in plan.rows))
    first = {f"r{i}" for i in range(NUM_RUNNING)}
    events, stats = engine.step()
    assert len(events) == 64 and stats.failed and stats.num_generated_tokens == 0
    assert len(plans) == MAX_FUTILE_RUNS
    later = run_to_end(engine)
    assert failed(later) == set()
    check_others(later | {event.request_id: [event] for event in events}, engine)


@pytest.mark.parametrize("poisoned", [{0}, {63}, {31, 32}, {5, 6, 7, 8}, set(range(8)), {0, 20, 40}])
def test_rows_that_always_fail_are_found(poisoned: set[int]) -> None:
    engine, runner = crowded()
    bad = {f"r{i}" for i in poisoned}
    plans = fail_when(runner, lambda plan: any(row.request_id in bad for row in plan.rows))
    events = engine.step()[0]
    assert {event.request_id for event in events if event.error is not None} == bad
    assert sum(event.token is not None for event in events) == 64 - len(bad)
    assert len(plans) <= 1 + 2 * 6 * len(bad), "a search by halves"
    later = run_to_end(engine)
    for event in events:
        later.setdefault(event.request_id, []).insert(0, event)
    assert failed(later) == bad
    check_others(later, engine)


def test_an_error_says_nothing_of_the_inside() -> None:
    engine, runner = make_engine()
    fail_when(runner, lambda plan: True)
    (event,) = serve(engine, make_request("a", [1], 3))["a"]
    assert "model failed" in str(event.error) and "purpose" not in str(event.error)


# Giving up.


def test_a_broken_model_is_given_up_after_three_steps() -> None:
    engine, runner = make_engine(max_batch_size=64, max_batch_tokens=512, num_blocks=400)
    plans = fail_when(runner, lambda plan: True)
    for step in range(MAX_CONSECUTIVE_FAILURES):
        for i in range(64):
            engine.submit(make_request(f"r{step} {i}", [i + 1], 5))
        if step < MAX_CONSECUTIVE_FAILURES - 1:
            assert len(engine.step()[0]) == 64
    with pytest.raises(EngineFailedError, match="3 steps in a row"):
        engine.step()
    assert len(plans) == 3 * MAX_FUTILE_RUNS + 1


def test_successes_between_failures_count() -> None:
    engine, runner = make_engine()
    for i in range(10):
        fail_when(runner, lambda plan, fails=i % 3 != 0: fails)  # type: ignore[misc]
        serve(engine, make_request(f"r{i}", [1], 2))


def test_one_request_sent_again_and_again_does_not_end_the_server() -> None:
    """As SDKs do after a 500: the model is tested before it is given up."""
    engine, runner = make_engine()
    plans = fail_when(runner, lambda plan: any(row.token_ids == (13, 13) for row in plan.rows))
    for i in range(7):
        (event,) = serve(engine, make_request(f"bad {i}", [13, 13], 5))[f"bad {i}"]
        assert event.error is not None
    assert sum(row.request_id == "test" for plan in plans for row in plan.rows) == 2
    assert tokens(serve(engine, make_request("good", [1, 2], 5))["good"]) == expected_output([1, 2], 5)


def test_the_test_of_the_model_touches_no_block_in_use() -> None:
    engine, runner = make_engine(num_blocks=8, max_batch_size=2)
    tables: dict[str, tuple[int, ...]] = {}

    def before(plan: StepPlan) -> None:
        tables.update((row.request_id, row.block_table) for row in plan.rows)
        if any(row.request_id.startswith("bad") for row in plan.rows):
            raise RuntimeError("on purpose")

    runner.before_step = before
    # Waits for its budget beside the failing ones, so that steps without it fail.
    engine.submit(make_request("good", [1, 2, 3], 20))
    engine.step()
    good = engine._scheduler._running["good"]
    for i in range(MAX_CONSECUTIVE_FAILURES):
        engine._scheduler._running.pop("good")
        engine.submit(make_request(f"bad {i}", [7, 8, 9], 2))
        engine.step()
        engine._scheduler._running["good"] = good
    assert not set(tables["test"]) & set(good.block_table)
    runner.before_step = lambda plan: None
    assert tokens(run_to_end(engine)["good"]) == expected_output([1, 2, 3], 20)[1:]


@pytest.mark.leaves_work
def test_a_lost_device_ends_the_engine_at_once() -> None:
    engine, runner = crowded()
    plans = watch_plans(runner)

    def lose(plan: StepPlan) -> None:
        plans.append(plan)
        raise FatalModelError("CUDA error: device-side assert triggered")

    runner.before_step = lose
    with pytest.raises(FatalModelError):
        engine.step()
    assert len(plans) == 1


# Values that are not numbers: the runner says which rows.


class Nan(FakeRunner):
    """Can not compute some requests, or none; `bad` holds their prompts' first tokens."""

    bad: frozenset[int] | None = frozenset()

    def run(self, plan: StepPlan) -> StepResult:
        pairs = zip(plan.rows, super().run(plan).rows, strict=True)
        return StepResult(tuple(self._spoil(row.token_ids[0]) or result for row, result in pairs))

    def _spoil(self, token_id: int) -> RowResult | None:
        is_bad = self.bad is None or token_id in self.bad
        return RowResult(error="the model produced values that are not numbers", is_corrupt=True) if is_bad else None


def make_nan_engine() -> tuple[Engine, Nan]:
    engine, fake = make_engine(num_blocks=400, max_batch_size=64, max_batch_tokens=512)
    runner = Nan(fake.num_blocks, fake.block_size)
    engine._runner = guarded_runner.GuardedRunner(runner)
    for i in range(64):
        engine.submit(make_request(f"r{i}", prompt(i), NUM_NEW))
    return engine, runner


def test_one_row_of_nan_is_one_error() -> None:
    engine, runner = make_nan_engine()
    runner.bad = frozenset([prompt(5)[0]])
    events = run_to_end(engine)
    assert failed(events) == {"r5"}
    assert all(tokens(events[f"r{i}"]) == expected_output(prompt(i), NUM_NEW) for i in range(64) if i != 5)


def test_all_rows_of_nan_are_errors_and_the_engine_lives_until_the_third_time() -> None:
    engine, runner = make_nan_engine()
    runner.bad = None
    assert len(failed(run_to_end(engine))) == 64
    runner.bad = frozenset()
    assert tokens(serve(engine, make_request("a", [1], 3))["a"]) == expected_output([1], 3)
    runner.bad = None
    for i in range(2):
        assert failed(serve(engine, make_request(f"b{i}", [1], 3))) == {f"b{i}"}
    with pytest.raises(EngineFailedError):
        serve(engine, make_request("c", [1], 3))


# Too little memory.


def limit_memory(runner: FakeRunner, num_tokens: int) -> list[int]:
    """Tokens of each run from now on; more than `num_tokens` do not fit."""
    sizes: list[int] = []

    def before(plan: StepPlan) -> None:
        sizes.append(plan.num_tokens)
        if plan.num_tokens > num_tokens:
            raise OutOfMemoryError("tried to allocate 2 GiB")

    runner.before_step = before
    return sizes


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 40, 63])
def test_want_of_memory_makes_steps_smaller_and_costs_nobody_an_answer(num_tokens: int) -> None:
    engine, runner = make_engine(num_blocks=400, max_batch_size=64, max_batch_tokens=512)
    sizes = limit_memory(runner, num_tokens)
    requests = [make_request(f"r{i}", prompt(i) * (1 + i % 9), NUM_NEW) for i in range(40)]
    events = serve(engine, *requests)
    for request in requests:
        expected = expected_output(list(request.prompt_token_ids), NUM_NEW)
        assert tokens(events[request.request_id]) == expected
    num_failed = sum(size > num_tokens for size in sizes)
    assert 1 <= num_failed <= 9 + len(sizes) // step_budget.FIRST_PATIENCE, (
        "halved until it fits, and seldom tried again"
    )
    assert engine.stats().used_blocks == 0


def test_the_budget_is_shown_and_the_failed_step_counts_as_one() -> None:
    engine, runner = crowded()
    limit_memory(runner, 40)
    seen: list[StepStats] = [engine.step()[1] for _ in range(3)]
    assert [stats.failed for stats in seen] == [True, False, False]
    assert [stats.max_step_tokens for stats in seen] == [32, 32, 32]
    assert [stats.num_generated_tokens for stats in seen] == [0, 32, 32]
    run_to_end(engine)


def test_all_get_on_when_only_some_fit_into_a_step() -> None:
    """The oldest go first, and the others after them."""
    engine, runner = crowded()
    limit_memory(runner, 40)
    events = run_to_end(engine)
    assert failed(events) == set()
    check_others(events, engine)


def test_no_memory_for_a_single_token_is_a_failure() -> None:
    engine, runner = make_engine()
    limit_memory(runner, 0)
    (event,) = serve(engine, make_request("a", [1, 2, 3], 2))["a"]
    assert event.error is not None
    limit_memory(runner, 1)
    assert tokens(serve(engine, make_request("b", [1, 2, 3], 2))["b"]) == expected_output([1, 2, 3], 2)


def test_prompt_logprobs_in_little_memory() -> None:
    engine, runner = make_engine()
    limit_memory(runner, 3)
    events = serve(engine, make_request("a", list(range(1, 30)), 2, prompt_logprobs=True))["a"]
    assert events[0].prompt_logprobs is not None and len(events[0].prompt_logprobs) == 29


def test_the_budget_rises_again_and_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_budget, "FIRST_PATIENCE", 4)
    monkeypatch.setattr(step_budget, "MAX_PATIENCE", 32)
    budget = StepBudget(1000)
    attempts = []
    for step in range(400):
        if budget.tokens > 300:
            attempts.append(step)
            budget.ran_out(budget.tokens)
        else:
            budget.step_done()
    assert attempts[:3] == [0, 1, 10], "1000, 500, and then 250 for 8 steps"
    waits = [later - earlier for earlier, later in itertools.pairwise(attempts[1:])]
    assert waits == sorted(waits) and waits[-1] == 33
    for _ in range(100):
        budget.step_done()
    assert budget.tokens == 1000


def test_the_budget_never_falls_below_one_token() -> None:
    budget = StepBudget(8)
    for num_tokens in (8, 4, 2):
        budget.ran_out(num_tokens)
    assert budget.tokens == 1
