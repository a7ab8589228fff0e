"""Prompts are cut by time: what a step may take beside running streams, and alone."""

import pytest

from tests.engine.simulating import make_request
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.engine.step import RowResult, StepPlan, StepResult
from tgi_local.engine.step_pace import (
    FIRST_PROMPT_TOKENS,
    LONGEST_PREFILL_S,
    MEASURE_EVERY,
    MIN_PROMPT_TOKENS,
    STRETCH,
    StepPace,
)
from tgi_local.types import SampledToken

BASE_S, PER_TOKEN_S = 0.010, 0.001


def duration_s(num_decodes: int, num_prompt_tokens: int) -> float:
    return BASE_S + (num_decodes + num_prompt_tokens) * PER_TOKEN_S


@pytest.fixture
def learnt() -> StepPace:
    pace = StepPace()
    for _ in range(100):
        pace.step_done(0, 500, duration_s(0, 500))
        pace.step_done(8, 0, duration_s(8, 0))
    return pace


def test_it_learns_what_a_step_takes(learnt: StepPace) -> None:
    assert learnt.base_s == pytest.approx(BASE_S, rel=0.01)
    assert learnt.prompt_token_s == pytest.approx(PER_TOKEN_S, rel=0.01)


@pytest.mark.parametrize("num_decodes", [1, 8, 64])
def test_running_streams_wait_a_little_longer_at_most(learnt: StepPace, num_decodes: int) -> None:
    num_tokens = learnt.prompt_tokens(num_decodes, 1)
    assert duration_s(num_decodes, num_tokens) <= 1.02 * STRETCH * duration_s(num_decodes, 0)
    assert duration_s(num_decodes, num_tokens + 2) >= 0.98 * STRETCH * duration_s(num_decodes, 0), "and no less is done"


def test_tokens_far_into_a_long_prompt_are_dearer(learnt: StepPace) -> None:
    for _ in range(50):
        num_tokens = learnt.prompt_tokens(8, 1)
        learnt.step_done(8, num_tokens, BASE_S + 8 * PER_TOKEN_S + num_tokens * 3 * PER_TOKEN_S)
    seconds = BASE_S + 8 * PER_TOKEN_S + learnt.prompt_tokens(8, 1) * 3 * PER_TOKEN_S
    assert seconds == pytest.approx(STRETCH * duration_s(8, 0), rel=0.1), "streams beside it wait no longer for that"


def test_a_crowd_that_waits_counts_as_much_as_one_that_runs(learnt: StepPace) -> None:
    assert learnt.prompt_tokens(4, 1) == learnt.prompt_tokens(4, 4) < learnt.prompt_tokens(4, 8)
    assert duration_s(4, learnt.prompt_tokens(4, 1000)) <= 1.02 * LONGEST_PREFILL_S


def test_a_prompt_alone_takes_its_share_of_a_second(learnt: StepPace) -> None:
    assert duration_s(0, learnt.prompt_tokens(0, 1)) == pytest.approx(LONGEST_PREFILL_S, rel=0.02)


def test_there_is_always_some_progress() -> None:
    pace = StepPace()
    assert pace.prompt_tokens(0, 1) == pace.prompt_tokens(9, 1) == FIRST_PROMPT_TOKENS
    pace.step_done(0, 100, 1000.0)
    pace.step_done(1, 0, 1.0)
    assert pace.prompt_tokens(0, 1) == pace.prompt_tokens(1, 1) == MIN_PROMPT_TOKENS


def test_a_server_that_never_pauses_learns_all_the_same() -> None:
    """From its first step on there are both: streams that run, and prompts that wait."""
    pace = StepPace()
    pace.step_done(0, FIRST_PROMPT_TOKENS, 20 * duration_s(0, FIRST_PROMPT_TOKENS))  # the first one is a slow one
    for base_s in (BASE_S, 4 * BASE_S):  # contexts grow meanwhile
        done = []
        for _ in range(600):
            done.append(pace.prompt_tokens(32, 8))
            pace.step_done(32, done[-1], base_s + (32 + done[-1]) * PER_TOKEN_S)
        allowed = (STRETCH - 1) * (base_s + 32 * PER_TOKEN_S) / PER_TOKEN_S
        assert sum(done[-200:]) / 200 == pytest.approx(allowed, rel=0.1)
        assert done[-200:].count(0) == pytest.approx(200 / MEASURE_EVERY, abs=2), "little is given away for that"


def test_a_long_prompt_is_cut_beside_a_stream_and_not_alone(learnt: StepPace) -> None:
    scheduler = Scheduler(SchedulerLimits(8, 4096), BlockManager(64, 16), pace=learnt)
    scheduler.add(make_request("long", range(220), 5))
    assert plan_of(scheduler).num_tokens == 220
    scheduler.cancel("long")
    scheduler.add(make_request("short", range(600, 610), 50))
    first = plan_of(scheduler)
    scheduler.update(first, StepResult(tuple(RowResult(SampledToken(1, 0.0)) for _ in first.rows)))
    scheduler.add(make_request("long", range(1000, 1220), 5))
    beside = plan_of(scheduler)
    assert len(beside.rows) == 2 and beside.num_tokens == 1 + learnt.prompt_tokens(1, 1) < 30


def plan_of(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    assert plan is not None
    return plan
