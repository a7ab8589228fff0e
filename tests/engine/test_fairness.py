"""Whose turn it is: first come first served, principals in turn, and nobody waits for ever."""

import random

from tests.engine.simulating import make_engine, make_request, run_to_end, serve, tokens, watch_plans
from tests.fakes import FakeRunner, expected_output
from tgi_local.engine.engine import Engine
from tgi_local.engine.sequence import Sequence
from tgi_local.engine.step import StepPlan
from tgi_local.engine.waiting_queue import WaitingQueue


def watch_starts(runner: FakeRunner) -> list[str]:
    """A list of request ids in the order in which they first run."""
    started: list[str] = []

    def note(plan: StepPlan) -> None:
        started.extend(row.request_id for row in plan.rows if row.request_id not in started)

    runner.before_step = note
    return started


def submit_all(engine: Engine, names: str) -> None:
    """Requests named by principal and number, as in "a1 b1"."""
    for i, name in enumerate(names.split()):
        engine.submit(make_request(name, [i + 1], 2, principal=name[0]))


def test_principals_take_turns_and_each_is_served_in_order() -> None:
    engine, runner = make_engine(max_batch_size=1)
    started = watch_starts(runner)
    submit_all(engine, "a1 a2 a3 a4 b1 b2 c1")
    run_to_end(engine)
    assert started == "a1 b1 c1 a2 b2 a3 a4".split()


def test_one_request_is_next_however_many_another_principal_has_queued() -> None:
    engine, runner = make_engine(max_batch_size=1)
    started = watch_starts(runner)
    submit_all(engine, " ".join(f"a{i}" for i in range(64)))
    for _ in range(5):
        engine.step()
    engine.submit(make_request("b", [99], 2, principal="b"))
    run_to_end(engine)
    assert started.index("b") <= 4  # two had run, the third was running, and it was a's turn


def test_places_in_one_step_are_dealt_in_turn_too() -> None:
    engine, runner = make_engine(max_batch_size=4)
    started = watch_starts(runner)
    submit_all(engine, "a1 a2 a3 a4 b1 c1 c2")
    engine.step()
    assert started == "a1 b1 c1 a2".split()
    run_to_end(engine)


def test_equal_requests_are_not_overtaken() -> None:
    engine, runner = make_engine(max_batch_size=8)
    started = watch_starts(runner)
    rng = random.Random(0)
    pending = [make_request(f"{i}", [i + 1] * 5, 10) for i in range(200)]
    while pending or engine.has_work:
        while pending and rng.random() < 0.7:
            engine.submit(pending.pop(0))
        engine.step()
    assert started == [str(i) for i in range(200)]


def test_a_large_request_is_not_starved_by_small_ones() -> None:
    engine, runner = make_engine(num_blocks=12, max_batch_size=64, max_batch_tokens=64)
    started = watch_starts(runner)
    for i in range(80):
        engine.submit(make_request(f"small {i}", [i + 1] * 3, 6, principal=f"p{i % 5}"))
        if i == 10:
            engine.submit(make_request("large", list(range(1, 44)), 3, principal="large"))
            num_started = len(started)
        engine.step()
        engine.check_invariants()
    run_to_end(engine)
    assert len(started) == 81
    # Once each of the others had the turn that was theirs, all waited for it.
    assert started.index("large") <= num_started + 5


def test_no_stream_waits_for_the_prompts_of_others() -> None:
    """16 streams, and a prompt of 13 steps every 20: each stream gets a token in every step."""
    engine, runner = make_engine(num_blocks=2000, max_batch_size=64, max_batch_tokens=64)
    streams = {f"stream {i}" for i in range(16)}
    for name in streams:
        engine.submit(make_request(name, [1, *name.encode()], 200))
    while any(sequence.num_generated_tokens == 0 for sequence in engine._scheduler._by_id.values()):
        engine.step()
    plans = watch_plans(runner)
    for i in range(100):
        if i % 20 == 0:
            engine.submit(make_request(f"long {i}", [500 + i, *range(1, 620)], 1))
        assert streams <= {event.request_id for event in engine.step()[0]}
    assert sum(plan.num_tokens > 16 for plan in plans) >= 5 * 13 - 1
    assert all(plan.num_tokens <= 64 for plan in plans)
    run_to_end(engine)


def test_a_long_request_and_many_short_ones_both_get_on() -> None:
    """In steps: the long one takes three times what it takes alone at most, a short one begins right away."""
    long_prompt = list(range(1, 401))
    alone, runner = make_engine(num_blocks=400, max_batch_size=16, max_batch_tokens=64)
    serve(alone, make_request("long", long_prompt, 100))
    engine, busy = make_engine(num_blocks=400, max_batch_size=16, max_batch_tokens=64)
    first_token: dict[str, int] = {}
    submitted: dict[str, int] = {}
    engine.submit(make_request("long", long_prompt, 100))
    finished_at = 0
    for step in range(3 * runner.num_steps):
        submitted[f"short {step}"] = step
        engine.submit(make_request(f"short {step}", [step + 500, 2, 3], 5, principal="other"))
        for event in engine.step()[0]:
            first_token.setdefault(event.request_id, step)
            if event.request_id == "long" and event.is_terminal:
                finished_at = busy.num_steps
    assert 0 < finished_at <= 3 * runner.num_steps
    waits = [first_token[name] - at for name, at in submitted.items() if name in first_token]
    assert len(waits) >= len(submitted) - 10 and max(waits) <= 10
    run_to_end(engine)


def test_a_sibling_runs_right_after_the_prefill_it_waits_for() -> None:
    """Others pass it while it waits, and only then: they fill the rest of the prefill's last step."""
    engine, runner = make_engine(max_batch_size=64, max_batch_tokens=16)
    started = watch_starts(runner)
    prompt = list(range(1, 41))
    engine.submit(make_request("first", prompt, 4))
    engine.submit(make_request("sibling", prompt, 4))
    seen = []
    for i in range(20):
        engine.submit(make_request(f"other {i}", [100 + i] * 3, 2))
        seen += [event for event in engine.step()[0] if event.request_id == "sibling"]
    assert started[:5] == ["first", "other 0", "other 1", "other 2", "sibling"]
    assert seen[0].num_cached_tokens == 36
    assert tokens(seen) == expected_output(prompt, 4)
    run_to_end(engine)


def test_nobody_makes_a_sibling_wait_for_ever_by_giving_up() -> None:
    """Another principal keeps sending the same prompt and cancels it before its prefill ends."""
    engine, _ = make_engine(max_batch_tokens=3)
    prompt = list(range(1, 41))
    engine.submit(make_request("b0", prompt, 4, principal="b"))
    engine.step()
    engine.submit(make_request("patient", prompt, 4, principal="a"))
    seen = []
    for i in range(1, 30):
        engine.submit(make_request(f"b{i}", prompt, 4, principal="b", prompt_logprobs=i % 2 == 0))
        seen += [event for event in engine.step()[0] if event.request_id == "patient"]
        engine.cancel(f"b{i - 1}")
        engine.check_invariants()
    assert tokens(seen) == expected_output(prompt, 4)
    run_to_end(engine)


def test_every_sibling_of_a_crowd_is_served_when_blocks_are_short() -> None:
    engine, _ = make_engine(num_blocks=12, max_batch_size=64)
    prompt = list(range(1, 30))
    events = serve(engine, *(make_request(f"r{i}", prompt, 12, principal="ab"[i % 2]) for i in range(40)))
    assert len(events) == 40
    assert all(tokens(e) == expected_output(prompt, 12) for e in events.values())


def test_the_queue_forgets_principals_and_puts_preempted_sequences_first() -> None:
    queue = WaitingQueue()
    a1, a2, b1, old, older = (
        Sequence(make_request(name, [1], 1, principal=name[0])) for name in ("a1", "a2", "b1", "old", "older")
    )
    for sequence in (a1, a2, b1):
        queue.add(sequence)
    queue.put_back(old)
    queue.put_back(older)
    assert queue.candidates(10) == [older, old, a1, b1, a2] and len(queue) == 5
    assert queue.candidates(2) == [older, old]
    queue.take(older)
    assert queue.candidates(10) == [old, a1, b1, a2]
    queue.take(b1)
    assert queue.candidates(10) == [old, a1, a2]
    for sequence in (a1, old, a2):
        queue.remove(sequence)
    assert len(queue) == 0 and not queue._arrived and queue.candidates(1) == []
