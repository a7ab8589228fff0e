"""Random workloads against scheduler, block manager and engine; invariants after every step, no torch."""

import logging
import random
import sys
from collections.abc import Iterator

import pytest

from tests.engine.simulating import Workload, make_engine, make_request, run_to_end, tokens, watch_plans
from tests.fakes import expected_output
from tgi_local.engine import scheduler
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import EngineFailedError
from tgi_local.engine.prefix_cache import BlockKey
from tgi_local.engine.sequence import Sequence
from tgi_local.engine.step import StepPlan
from tgi_local.types import FinishReason, StepStats


@pytest.fixture
def no_logs() -> Iterator[None]:
    """Thousands of failures on purpose need not be printed."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("batch", range(8))
def test_random_workloads_are_exact_and_keep_the_invariants(batch: int, no_logs: None) -> None:
    stats: list[StepStats] = []
    for seed in range(batch * 300, (batch + 1) * 300):
        workload = Workload(seed)
        workload.run()
        stats += workload.stats
    num_preempted = sum(step.num_preempted for step in stats)
    num_cached = sum(step.num_cached_prompt_tokens for step in stats)
    num_failed = sum(step.failed for step in stats)
    assert num_preempted > 30 and num_cached > 1000 and num_failed > 300, "these workloads test nothing"


@pytest.mark.parametrize("max_lookups", [1, 3])
def test_prompts_may_be_looked_up_over_several_steps(
    max_lookups: int, no_logs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MAX_LOOKUPS", max_lookups)
    for seed in range(100):
        Workload(seed).run()


class PublishesTooEarly(BlockManager):
    def admit(self, sequence: Sequence, num_spare: int) -> bool:
        if not super().admit(sequence, num_spare):
            return False
        num_computed, sequence.num_computed_tokens = sequence.num_computed_tokens, sequence.num_tokens
        self.publish(sequence)
        sequence.num_computed_tokens = num_computed
        return True


class ComparesHashes(BlockManager):
    def _key(self, sequence: Sequence, index: int, parent: int | None) -> BlockKey:
        parent_key, token_ids = super()._key(sequence, index, parent)
        return parent_key, (hash(token_ids) % 2,)


class IgnoresTheParent(BlockManager):
    def _key(self, sequence: Sequence, index: int, parent: int | None) -> BlockKey:
        return str(index), super()._key(sequence, index, parent)[1]


class FreesWhatOthersUse(BlockManager):
    def _release(self, block: int) -> None:
        self._num_users[block] = 1
        super()._release(block)


class EvictsWhatIsUsed(BlockManager):
    def _share(self, block: int) -> None:
        super()._share(block)
        if self._num_users[block] == 1:
            self._cache.release(block)


class GivesTheTailAway(BlockManager):
    """Shares the block after the match, too, which its owner still writes to."""

    def admit(self, sequence: Sequence, num_spare: int) -> bool:
        if not super().admit(sequence, num_spare):
            return False
        num_shared = sequence.num_published_blocks
        for other in self._owners.values():
            if other is not sequence and other.block_table[:num_shared] == sequence.block_table[:num_shared]:
                sequence.block_table = sequence.block_table[:num_shared] + other.block_table[num_shared:]
        return self.reserve(sequence, sequence.num_tokens)


class TrustsWhatItFoundBefore(BlockManager):
    """Does not notice that a block of a waiting sequence's match was evicted meanwhile."""

    def match(self, sequence: Sequence, max_lookups: int) -> int:
        if sequence.prefix_match.blocks:
            sequence.prefix_match.last_key = self._cache.key_of(sequence.prefix_match.blocks[-1])
        return super().match(sequence, max_lookups)


@pytest.mark.parametrize("check_invariants", [True, False])
@pytest.mark.parametrize(
    "broken",
    [
        PublishesTooEarly,
        ComparesHashes,
        IgnoresTheParent,
        FreesWhatOthersUse,
        EvictsWhatIsUsed,
        GivesTheTailAway,
        TrustsWhatItFoundBefore,
    ],
)
@pytest.mark.leaves_work
def test_the_simulation_finds_broken_sharing(broken: type[BlockManager], check_invariants: bool, no_logs: None) -> None:
    """The negative control: by the answers alone, and by the invariants."""
    found = 0
    for seed in range(60):
        try:
            Workload(seed, broken).run(check_invariants=check_invariants)
        except (AssertionError, RuntimeError, LookupError):
            found += 1
    assert found > 0


@pytest.mark.parametrize("seed", range(20))
def test_long_prompts_of_many_tokens(seed: int) -> None:
    """200 mixes with prompts of half the cache and more; nothing to share."""
    rng = random.Random(seed)
    for _ in range(10):
        num_blocks = rng.choice([4, 12, 40])
        engine, runner = make_engine(num_blocks, rng.choice([1, 3, 8]), rng.choice([16, 64]))
        capacity = num_blocks * runner.block_size
        expected = {}
        for i in range(8):
            prompt = [rng.randrange(1, 1000) for _ in range(rng.randrange(capacity // 2, capacity))]
            num_new = rng.randrange(1, min(10, capacity - len(prompt)) + 1)
            engine.submit(make_request(f"r{i}", prompt, num_new))
            expected[f"r{i}"] = expected_output(prompt, num_new)
        events = run_to_end(engine)
        assert {request_id: tokens(e) for request_id, e in events.items()} == expected


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
    plans = watch_plans(runner)
    engine.submit(make_request("a", [1, 2], 6))
    engine.step()
    engine.submit(make_request("b", [3], 2))
    run_to_end(engine)
    assert [[row.request_id for row in plan.rows] for plan in plans] == [
        ["a"],
        ["a", "b"],
        ["a", "b"],
        ["a"],
        ["a"],
        ["a"],
    ]


def test_a_long_prompt_is_prefilled_in_chunks_beside_running_decodes() -> None:
    engine, runner = make_engine(max_batch_tokens=8)
    plans = watch_plans(runner)
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


@pytest.mark.logs_errors
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


@pytest.mark.leaves_work
@pytest.mark.logs_errors
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
