"""What is computed once: across turns, users and siblings; and what never is shared, evicted or kept."""

import itertools
from typing import Any

import pytest

from tests.engine.simulating import make_engine, make_request, run_to_end, serve, tokens, watch_plans
from tests.fakes import FakeRunner, expected_output
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import Engine
from tgi_local.engine.guarded_runner import GuardedRunner
from tgi_local.engine.prefix_cache import BlockKey
from tgi_local.engine.scheduler import _row
from tgi_local.engine.sequence import Sequence
from tgi_local.engine.step import RowResult, StepPlan, StepResult
from tgi_local.types import TokenEvent

BLOCK_SIZE = 4


def text(length: int, start: int = 1) -> list[int]:
    return list(range(start, start + length))


def num_cached(engine: Engine, prompt: list[int], num_new: int = 1, **fields: Any) -> int:
    """How many tokens of `prompt` the cache had; the answer is checked as well."""
    events = serve(engine, make_request("probe", prompt, num_new, **fields))["probe"]
    assert tokens(events) == expected_output(prompt, num_new)
    return events[0].num_cached_tokens


@pytest.mark.parametrize("length", range(1, 18))
def test_the_same_prompt_again_computes_only_what_does_not_fill_a_block(length: int) -> None:
    engine, _ = make_engine()
    assert num_cached(engine, text(length)) == 0
    # One token is always left to compute, for its logits.
    assert num_cached(engine, text(length)) == (length - 1) // BLOCK_SIZE * BLOCK_SIZE


def test_the_next_turn_of_a_chat_finds_the_answer_of_the_last() -> None:
    engine, _ = make_engine()
    prompt = text(10)
    answer = tokens(serve(engine, make_request("turn 1", prompt, 9))["turn 1"])
    # Of 19 tokens the last was never fed back, so 18 were computed: four full blocks.
    assert num_cached(engine, [*prompt, *answer, 700, 701]) == 16


def test_users_share_what_they_have_in_common_and_no_more() -> None:
    engine, _ = make_engine()
    system = text(12)
    serve(engine, make_request("a", [*system, *text(9, 100)], 3))
    assert num_cached(engine, [*system, *text(9, 200)], principal="b") == 12
    assert num_cached(engine, [*system, *text(9, 100)]) == 20
    assert num_cached(engine, [999, *system[1:], *text(9, 100)]) == 0


def test_a_block_is_found_only_after_the_tokens_it_was_computed_after() -> None:
    engine, _ = make_engine()
    serve(engine, make_request("a", [*text(4, 10), *text(4, 20), 1], 1))
    assert num_cached(engine, [*text(4, 20), *text(4, 10), 1]) == 0
    assert num_cached(engine, [*text(4, 20), *text(4, 20), 1]) == 4


@pytest.mark.parametrize("max_batch_tokens", [8, 32, 100])
def test_siblings_share_one_prefill(max_batch_tokens: int) -> None:
    engine, runner = make_engine(max_batch_tokens=max_batch_tokens)
    plans = watch_plans(runner)
    prompt = text(35)
    events = serve(engine, *(make_request(f"r{i}", prompt, 5) for i in range(8)))
    assert all(tokens(events[f"r{i}"]) == expected_output(prompt, 5) for i in range(8))
    computed = sum(len(row.token_ids) for plan in plans for row in plan.rows if row.step_index == 0)
    assert computed == 35 + 7 * 3
    assert [events[f"r{i}"][0].num_cached_tokens for i in range(8)] == [0] + 7 * [32]


def test_siblings_that_wait_do_not_hold_up_others() -> None:
    engine, runner = make_engine(max_batch_tokens=100)
    plans = watch_plans(runner)
    serve(engine, *(make_request(f"r{i}", text(35), 2) for i in range(3)), make_request("other", [500], 2))
    assert [row.request_id for row in plans[0].rows] == ["r0", "other"]
    assert [row.request_id for row in plans[1].rows] == ["r0", "other", "r1", "r2"]


def test_a_request_needs_room_only_for_what_is_not_cached() -> None:
    engine, runner = make_engine(num_blocks=12)
    plans = watch_plans(runner)
    serve(engine, *(make_request(f"r{i}", text(33), 2) for i in range(2)))  # 9 blocks each, 8 of them the same
    assert any(len(plan.rows) == 2 for plan in plans)


@pytest.mark.parametrize("ending", ["cancel", "fail"])
@pytest.mark.logs_errors
def test_a_sibling_goes_on_where_the_first_one_ended(ending: str) -> None:
    engine, runner = make_engine(max_batch_tokens=8)
    for name in ("first", "second"):
        engine.submit(make_request(name, text(35), 2))
    engine.step()
    if ending == "cancel":
        engine.step()
        engine.cancel("first")
    else:

        def fail(plan: StepPlan) -> None:
            if plan.rows[0].request_id == "first":
                raise RuntimeError("on purpose")

        runner.before_step = fail
        engine.step()
    events = run_to_end(engine)["second"]
    assert tokens(events) == expected_output(text(35), 2)
    # After a failure nothing unused is trusted.
    assert events[0].num_cached_tokens == (16 if ending == "cancel" else 0)


def test_salts_never_share() -> None:
    engine, _ = make_engine()
    assert num_cached(engine, text(9), cache_salt="a") == 0
    assert num_cached(engine, text(9), cache_salt="b") == 0
    assert num_cached(engine, text(9)) == 0
    assert num_cached(engine, text(9), cache_salt="a") == 8
    assert num_cached(engine, text(9), cache_salt="b") == 8


def test_siblings_with_different_salts_do_not_wait_for_each_other() -> None:
    engine, runner = make_engine()
    plans = watch_plans(runner)
    serve(engine, make_request("a", text(9), 1, cache_salt="a"), make_request("b", text(9), 1, cache_salt="b"))
    assert [len(plan.rows) for plan in plans] == [2]


def test_the_least_recently_used_goes_first_and_from_its_end() -> None:
    engine, _ = make_engine(num_blocks=8)
    a, b, c = text(9, 100), text(9, 200), text(17, 300)
    for prompt in (a, b):
        assert num_cached(engine, prompt) == 0
    assert num_cached(engine, a) == 8
    assert num_cached(engine, c) == 0  # takes the four free blocks and one more
    assert num_cached(engine, a) == 8
    assert num_cached(engine, b) == 4


def test_nothing_is_evicted_while_blocks_are_free() -> None:
    engine, _ = make_engine(num_blocks=30)
    prompts = [text(9, 100 * i) for i in range(1, 10)]
    assert [num_cached(engine, prompt) for prompt in [*prompts, *prompts]] == 9 * [0] + 9 * [8]


def test_eviction_spares_what_is_in_use() -> None:
    engine, runner = make_engine(num_blocks=12)
    tables: list[tuple[int, ...]] = []
    runner.before_step = lambda plan: tables.extend(r.block_table for r in plan.rows if r.request_id == "keep")
    engine.submit(make_request("keep", text(9), 15))
    seen: list[TokenEvent] = []
    for i in range(15):
        if i % 2 == 0:
            engine.submit(make_request(f"churn {i}", text(15, 50 * (i + 1)), 1))
        seen += [event for event in engine.step()[0] if event.request_id == "keep"]
        engine.check_invariants()
    assert tokens(seen) == expected_output(text(9), 15)
    assert all(later[: len(table)] == table for table, later in itertools.pairwise(tables))


def test_prompt_logprobs_take_no_hit_and_leave_one() -> None:
    engine, runner = make_engine()
    plans = watch_plans(runner)
    for _ in range(2):
        events = serve(engine, make_request("a", text(9), 2, prompt_logprobs=True))["a"]
        assert tokens(events) == expected_output(text(9), 2)
        assert events[0].num_cached_tokens == 0
        assert events[0].prompt_logprobs is not None and len(events[0].prompt_logprobs) == 9
    assert [len(row.token_ids) for plan in plans for row in plan.rows] == [9, 1, 9, 1]
    assert num_cached(engine, text(9)) == 8


def test_equal_blocks_computed_at_once_become_one() -> None:
    engine, _ = make_engine()
    requests = [make_request(name, text(9), 8, prompt_logprobs=True) for name in ("a", "b")]
    for request in requests:
        engine.submit(request)
    first = engine.step()[0]
    assert engine.stats().used_blocks == 4  # two shared, and the last one of each
    events = run_to_end(engine)
    for event in first:
        assert tokens([event, *events[event.request_id]]) == expected_output(text(9), 8)


def test_a_preempted_sequence_finds_its_blocks_again() -> None:
    engine, runner = make_engine(num_blocks=12)
    plans = watch_plans(runner)
    prompts = {f"r{i}": text(9, 100 * (i + 1)) for i in range(4)}
    events = serve(engine, *(make_request(request_id, prompt, 20) for request_id, prompt in prompts.items()))
    again = [row for plan in plans for row in plan.rows if row.step_index > 0 and len(row.token_ids) > 1]
    assert again and any(row.start > 0 for row in again)
    for request_id, prompt in prompts.items():
        assert tokens(events[request_id]) == expected_output(prompt, 20)
        assert events[request_id][0].num_cached_tokens == 0  # its own blocks are no news to its user


def test_what_a_failed_row_has_written_is_not_trusted() -> None:
    class Poisoned(FakeRunner):
        def run(self, plan: StepPlan) -> StepResult:
            rows = zip(plan.rows, super().run(plan).rows, strict=True)
            return StepResult(
                tuple(
                    RowResult(error="nan", is_corrupt=True) if r.request_id == "bad" and r.is_sampling else result
                    for r, result in rows
                )
            )

    engine, runner = make_engine(max_batch_tokens=4)
    engine._runner = GuardedRunner(Poisoned(runner.num_blocks, runner.block_size))
    (event,) = serve(engine, make_request("bad", text(9), 3))["bad"]
    assert event.error is not None
    assert num_cached(engine, text(9)) == 0


def test_stats_count_cached_prompt_tokens() -> None:
    engine, _ = make_engine()
    totals = [0, 0]
    for name in ("a", "b"):
        engine.submit(make_request(name, text(10), 3))
        while engine.has_work:
            stats = engine.step()[1]
            totals[0] += stats.num_prompt_tokens
            totals[1] += stats.num_cached_prompt_tokens
    assert totals == [12, 8]


def count_lookups(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[BlockKey]:
    """A list of every key that is looked up from now on."""
    keys: list[BlockKey] = []
    cache = engine._scheduler.blocks._cache
    find = cache.find
    monkeypatch.setattr(cache, "find", lambda key: (keys.append(key), find(key))[1])
    return keys


def test_what_is_computed_again_is_prefill_and_counts_apart() -> None:
    engine, _ = make_engine(num_blocks=12)
    prompts = [text(9, 100 * (i + 1)) for i in range(4)]
    for i, prompt in enumerate(prompts):
        engine.submit(make_request(f"r{i}", prompt, 20))
    stats = []
    while engine.has_work:
        stats.append(engine.step()[1])
    assert sum(step.num_prompt_tokens for step in stats) == 4 * 9
    assert sum(step.num_cached_prompt_tokens for step in stats) == 0, "its own blocks are no gain"
    assert sum(step.num_generated_tokens for step in stats) == 4 * 20
    again = [step for step in stats if step.num_recomputed_tokens]
    assert again and all(step.num_prefill_rows > 0 for step in again)
    assert all(step.num_prefill_rows == 0 for step in stats if not step.num_prompt_tokens and step not in again)


def submit_copies(engine: Engine, prompt: list[int], count: int, num_new: int) -> None:
    for i in range(count):
        engine.submit(make_request(f"r{i}", prompt, num_new))


def test_waiting_for_a_prefill_costs_one_look_up_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, runner = make_engine(num_blocks=1000, max_batch_size=64, max_batch_tokens=48)
    keys = count_lookups(engine, monkeypatch)
    num_blocks, num_copies = 50, 20
    submit_copies(engine, text(num_blocks * BLOCK_SIZE + 1), num_copies, 1)
    run_to_end(engine)
    # Each block once by each, the first one's before they are published.
    assert num_blocks * num_copies <= len(keys) <= (num_blocks + runner.num_steps) * num_copies


def test_waiting_for_room_costs_no_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = make_engine(num_blocks=60, max_batch_size=64, max_batch_tokens=1000)
    prompt = text(50 * BLOCK_SIZE + 1)
    submit_copies(engine, prompt, 20, 30)
    engine.step()
    engine.step()
    keys = count_lookups(engine, monkeypatch)
    for _ in range(3):
        assert engine.step()[1].num_waiting > 0
    assert not [key for key in keys if set(key[1]) <= set(prompt)], "only answers are published"
    assert all(tokens(events)[-25:] == expected_output(prompt, 30)[-25:] for events in run_to_end(engine).values())


def total_length(value: object, seen: set[int]) -> int:
    """Entries of all containers that can be reached from `value`."""
    if id(value) in seen or isinstance(value, str | int | float | type) or callable(value):
        return 0
    seen.add(id(value))
    if isinstance(value, dict):
        children = [*value.keys(), *value.values()]
    elif hasattr(value, "__iter__"):
        children = list(value)  # type: ignore[call-overload]
    else:
        children = [getattr(value, name) for name in dir(value) if name.startswith("_") and not name.startswith("__")]
        children += list(getattr(value, "__dict__", {}).values())
        return sum(total_length(child, seen) for child in children)
    return len(children) + sum(total_length(child, seen) for child in children)


def test_nothing_grows_with_the_number_of_finished_requests() -> None:
    engine, _ = make_engine(num_blocks=20)

    def churn(first: int, last: int) -> int:
        for i in range(first, last):
            serve(
                engine, make_request(f"r{i}", text(30, 1 + i * 31 % 900), 3, principal=f"p{i}", cache_salt=f"{i % 7}")
            )
        return total_length(engine._scheduler, set())

    assert churn(0, 50) == churn(50, 500)


def manager_with(*prompts: list[int]) -> tuple[BlockManager, list[Sequence]]:
    blocks = BlockManager(16, BLOCK_SIZE)
    sequences = [Sequence(make_request(f"r{i}", prompt, 1)) for i, prompt in enumerate(prompts)]
    for sequence in sequences:
        blocks.match(sequence, 100)
        assert blocks.admit(sequence, 0)
        sequence.num_computed_tokens = sequence.num_tokens
        blocks.publish(sequence)
    blocks.check_invariants()
    return blocks, sequences


def test_free_is_idempotent() -> None:
    blocks, sequences = manager_with(text(9), text(9), text(6))
    assert blocks.num_used == 2 + 1 + 1 + 1
    for sequence in [*sequences, *sequences]:
        blocks.free(sequence)
        blocks.check_invariants()
    assert blocks.num_used == 0


def leak(blocks: BlockManager, a: Sequence, b: Sequence) -> None:
    blocks._free.pop()


def lose_a_user(blocks: BlockManager, a: Sequence, b: Sequence) -> None:
    blocks._num_users[a.block_table[0]] -= 1


def share_a_writable_block(blocks: BlockManager, a: Sequence, b: Sequence) -> None:
    blocks._release(b.block_table[-1])
    b.block_table = (*b.block_table[:-1], a.block_table[-1])
    blocks._num_users[a.block_table[-1]] += 1


def publish_what_is_not_computed(blocks: BlockManager, a: Sequence, b: Sequence) -> None:
    a.num_computed_tokens = 4


def change_a_published_token(blocks: BlockManager, a: Sequence, b: Sequence) -> None:
    a.token_ids[0] = 999


def evict_a_parent_first(blocks: BlockManager, a: Sequence, b: Sequence) -> None:
    for sequence in (a, b):
        blocks.free(sequence)
    blocks._cache._unused.move_to_end(next(iter(blocks._cache._unused)))


def use_an_unused_block(blocks: BlockManager, a: Sequence, b: Sequence) -> None:
    blocks._cache.release(a.block_table[1])


@pytest.mark.parametrize(
    "damage",
    [
        leak,
        lose_a_user,
        share_a_writable_block,
        publish_what_is_not_computed,
        change_a_published_token,
        evict_a_parent_first,
        use_an_unused_block,
    ],
)
def test_invariants_notice_damage(damage: Any) -> None:
    blocks, (a, b) = manager_with(text(9), [*text(8), 50])
    damage(blocks, a, b)
    with pytest.raises(RuntimeError, match="this is a bug"):
        blocks.check_invariants()


def test_the_fake_model_refuses_a_write_to_a_shared_block() -> None:
    runner = FakeRunner()
    request = make_request("a", text(3), 1)
    sequences = [Sequence(request), Sequence(request)]
    for sequence in sequences:
        sequence.block_table = (5,)
    with pytest.raises(RuntimeError, match="writes to a block that another row reads"):
        runner.run(StepPlan(tuple(_row(sequence, 3) for sequence in sequences)))
