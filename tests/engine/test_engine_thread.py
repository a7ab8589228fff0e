"""The engine's thread and asyncio: every event arrives once and in order, and nobody is ever left waiting."""

import asyncio
import math
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes import FakeRunner, expected_output
from tests.waiting import until
from tgi_local.engine import engine_thread
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import MAX_CONSECUTIVE_FAILURES, Engine
from tgi_local.engine.engine_thread import MANY_CONSUMERS, WAKE_EVERY_S, WATCH_EVERY_S, EngineThread, StalledError
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.engine.step import FatalModelError, StepPlan
from tgi_local.errors import GenerationError, NotReadyError
from tgi_local.types import FinishReason, GenerationRequest, SamplingParams, StepStats, StopParams, TokenEvent

# Not the machine's speed is tested, but that nobody waits for ever.
SOON_S = 60.0


class Box:
    """An engine thread on a fake model, and what it said of itself."""

    def __init__(self, num_blocks: int = 64, max_batch_size: int = 8, stall_s: float = math.inf) -> None:
        self.runner = FakeRunner(num_blocks)
        blocks = BlockManager(self.runner.num_blocks, self.runner.block_size)
        self.engine = Engine(Scheduler(SchedulerLimits(max_batch_size, 32), blocks), self.runner)
        self.stats: list[StepStats] = []
        self.deaths: list[BaseException] = []
        self.thread = EngineThread(self.engine, self.stats.append, self.deaths.append, stall_s)
        self._permits = threading.Semaphore(0)

    def hold_after(self, num_steps: int) -> None:
        """Steps beyond these wait for `go_on`, so that what the test does falls between two it knows."""
        self._permits = threading.Semaphore(num_steps)
        self.runner.before_step = self._wait_for_permit

    def go_on(self, num_steps: int = 1000) -> None:
        self._permits.release(num_steps)

    def _wait_for_permit(self, plan: StepPlan) -> None:
        assert self._permits.acquire(timeout=SOON_S)

    async def idle(self) -> None:
        """Wait until nothing runs and every block is free again."""
        await until(lambda: bool(self.stats) and self.stats[-1].num_running == self.stats[-1].num_waiting == 0)
        assert self.stats[-1].used_blocks == 0
        assert not self.thread._mailboxes


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Box]:
    box = Box(**options)
    box.thread.start()
    try:
        yield box
    finally:
        box.go_on()
        await asyncio.to_thread(box.thread.stop)


@pytest.fixture
async def box() -> AsyncIterator[Box]:
    async with running() as started:
        yield started


def make_request(request_id: str, prompt: Sequence[int] = (1, 2, 3), max_new_tokens: int = 5) -> GenerationRequest:
    return GenerationRequest(request_id, "", tuple(prompt), SamplingParams(), StopParams(max_new_tokens))


async def collect(thread: EngineThread, *requests: GenerationRequest) -> list[TokenEvent]:
    async with asyncio.timeout(SOON_S), aclosing(thread.submit(requests)) as batches:
        return [event async for batch in batches for event in batch]


def token_ids(events: list[TokenEvent]) -> list[int]:
    return [event.token.id for event in events if event.token is not None]


def check_complete(events: list[TokenEvent], request: GenerationRequest) -> None:
    mine = [event for event in events if event.request_id == request.request_id]
    assert token_ids(mine) == expected_output(list(request.prompt_token_ids), request.stopping.max_new_tokens)
    assert [event.is_terminal for event in mine] == [False] * (len(mine) - 1) + [True]
    assert mine[-1].finish_reason is FinishReason.LENGTH


# Delivery.


async def test_many_consumers_get_their_own_events_in_order(box: Box) -> None:
    rng = random.Random(0)
    requests = [
        make_request(f"r{i}", [rng.randrange(1, 999) for _ in range(rng.randrange(1, 40))], rng.randrange(1, 40))
        for i in range(60)
    ]

    async def one(request: GenerationRequest) -> None:
        await asyncio.sleep(rng.random() * 0.05)
        check_complete(await collect(box.thread, request), request)

    await asyncio.gather(*map(one, requests))
    await box.idle()


async def test_a_group_shares_one_stream(box: Box) -> None:
    requests = [make_request(f"r{i}", [i + 1] * 3, 3 + 4 * i) for i in range(5)]
    events = await collect(box.thread, *requests)
    for request in requests:
        check_complete(events, request)
    assert len(events) == sum(request.stopping.max_new_tokens for request in requests)
    await box.idle()


async def test_a_step_is_delivered_in_one_call(box: Box) -> None:
    box.hold_after(1)
    batches = []
    async with asyncio.timeout(SOON_S):
        async for batch in box.thread.submit([make_request("a", [1], 4), make_request("b", [2], 4)]):
            batches.append([event.request_id for event in batch])
            box.go_on(1)
    assert batches[1] == batches[2] == ["a", "b"]  # the first step may have begun before "b" came


async def test_an_empty_group_ends_at_once(box: Box) -> None:
    assert await collect(box.thread) == []


async def test_a_request_that_can_never_fit_gets_an_error_event(box: Box) -> None:
    good = make_request("good")
    events = await collect(box.thread, make_request("big", [1] * 100, 1000), good)
    big = [event for event in events if event.request_id == "big"]
    assert len(big) == 1 and isinstance(big[0].error, GenerationError) and "never fit" in str(big[0].error)
    check_complete(events, good)
    await box.idle()


@pytest.mark.logs_errors
async def test_a_failing_step_ends_its_rows_and_the_engine_goes_on() -> None:
    async with running(max_batch_size=1) as box:

        def fail_bad(plan: StepPlan) -> None:
            if plan.rows[0].request_id == "bad":
                raise RuntimeError("boom")

        box.runner.before_step = fail_bad
        bad, good = await asyncio.gather(
            collect(box.thread, make_request("bad")), collect(box.thread, make_request("good"))
        )
        assert [isinstance(event.error, GenerationError) for event in bad] == [True]
        assert "boom" not in str(bad[0].error), "the inside of the server is nobody's business"
        check_complete(good, make_request("good"))
        assert [stats.failed for stats in box.stats].count(True) == 1
        assert box.thread.is_alive and not box.deaths
        await box.idle()


async def test_a_failing_observer_does_not_cost_anyone_an_event(box: Box) -> None:
    def fail(stats: StepStats) -> None:
        raise RuntimeError("the metrics are broken")

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    box.thread._on_step = fail
    check_complete(await collect(box.thread, make_request("r")), make_request("r"))


# Leaving early.


async def test_leaving_the_iterator_cancels(box: Box) -> None:
    box.hold_after(3)
    requests = [make_request("a", [1], 200), make_request("b", [2], 200)]
    async with aclosing(box.thread.submit(requests)) as batches:
        async for _ in batches:
            break
    box.go_on()
    await box.idle()
    assert box.runner.num_steps <= 4, "the one that had begun is the last"


async def test_a_cancelled_task_cancels(box: Box) -> None:
    box.hold_after(3)
    task = asyncio.create_task(collect(box.thread, make_request("a", [1], 200)))
    await until(lambda: box.runner.num_steps == 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    box.go_on()
    await box.idle()
    assert box.runner.num_steps <= 4, "the one that had begun is the last"


async def test_a_queued_request_can_leave() -> None:
    async with running(max_batch_size=1) as box:
        box.hold_after(3)
        first = asyncio.create_task(collect(box.thread, make_request("first", [1], 60)))
        await until(lambda: box.runner.num_steps == 3)
        queued = asyncio.create_task(collect(box.thread, make_request("queued", [2], 60)))
        await until(lambda: "queued" in box.thread._mailboxes)
        box.go_on(2)  # the step that had begun, and one that knows of it
        await until(lambda: box.stats[-1].num_waiting == 1)
        queued.cancel()
        await asyncio.gather(queued, return_exceptions=True)
        box.go_on()
        check_complete(await first, make_request("first", [1], 60))
        await box.idle()
        assert box.runner.num_steps == 60


async def test_cancelling_one_of_a_group_leaves_the_others(box: Box) -> None:
    box.hold_after(4)
    requests = [make_request("a", [1], 100), make_request("b", [2], 20)]
    events: list[TokenEvent] = []
    num_before = 0
    async with asyncio.timeout(SOON_S):
        async for batch in box.thread.submit(requests):
            events += batch
            if len(events) >= 6 and not num_before:
                num_before = sum(event.request_id == "a" for event in events)
                box.thread.cancel("a")
                box.thread.cancel("a")
                box.go_on()
    check_complete(events, requests[1])
    assert 1 <= sum(event.request_id == "a" for event in events) == num_before, "no events after the cancel"
    await box.idle()


async def test_cancelling_the_last_one_ends_the_stream(box: Box) -> None:
    """From elsewhere, while its consumer waits for the next token."""
    box.hold_after(3)
    waiting = asyncio.create_task(collect(box.thread, make_request("a", [1], 200)))
    await until(lambda: box.runner.num_steps == 3)
    box.thread.cancel("a")
    events = await waiting
    assert not any(event.is_terminal for event in events)
    box.go_on()
    await box.idle()


async def test_cancel_of_an_unknown_or_finished_request_is_harmless(box: Box) -> None:
    await collect(box.thread, make_request("a"))
    box.thread.cancel("a")
    box.thread.cancel("never heard of")
    check_complete(await collect(box.thread, make_request("a")), make_request("a"))


# A consumer that does not read.


async def test_a_consumer_that_stops_reading_is_cut_off_and_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "MAX_PENDING_EVENTS", 60)
    async with running(num_blocks=200) as box:
        sleeper = box.thread.submit([make_request("sleeper", [1], 400)])
        events = list(await anext(sleeper))
        others = [make_request(f"r{i}", [i + 5], 50) for i in range(4)]
        for other, got in zip(others, await asyncio.gather(*(collect(box.thread, o) for o in others)), strict=True):
            check_complete(got, other)
        await box.idle()
        async with asyncio.timeout(SOON_S):
            events += [event async for batch in sleeper for event in batch]
        assert token_ids(events) == expected_output([1], 400)[: len(events) - 1]
        assert [event.is_terminal for event in events] == [False] * (len(events) - 1) + [True]
        assert "too slowly" in str(events[-1].error)
        assert 60 <= len(events) < 400


async def test_the_whole_group_of_a_consumer_that_stops_reading_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "MAX_PENDING_EVENTS", 10)
    async with running() as box:
        stream = box.thread.submit([make_request(name, [ord(name)], 80) for name in "abc"])
        events = list(await anext(stream))
        await box.idle()
        async with asyncio.timeout(SOON_S):
            events += [event async for batch in stream for event in batch]
        for name in "abc":
            assert [event.is_terminal for event in events if event.request_id == name].count(True) == 1
        assert 20 < len(events) <= 40  # three that share a consumer may be three times as far behind as one


# Death.


def die(error: BaseException) -> Callable[[StepPlan], None]:
    def before_step(plan: StepPlan) -> None:
        raise error

    return before_step


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), FatalModelError("gone"), MemoryError("all gone"), RuntimeError("boom")],
)
@pytest.mark.logs_errors
async def test_everyone_hears_of_a_dead_engine(error: BaseException) -> None:
    async with running(max_batch_size=1, num_blocks=200) as box:
        box.hold_after(3)
        streams = [asyncio.create_task(collect(box.thread, make_request(f"r{i}", [i + 1], 400 - i))) for i in range(6)]
        streams.append(asyncio.create_task(collect(box.thread, *(make_request(f"g{i}", [1], 200) for i in range(3)))))
        await until(lambda: box.runner.num_steps == 3)
        box.runner.before_step = die(error)
        box.go_on()
        results = await asyncio.gather(*streams)
        for events in results:
            for request_id in {event.request_id for event in events}:
                terminal = [e for e in events if e.request_id == request_id and e.is_terminal]
                # The first failures of a model that may recover are those of their requests.
                assert len(terminal) == 1 and isinstance(terminal[0].error, NotReadyError | GenerationError)
        late = [events[-1].error for events in results if isinstance(events[-1].error, NotReadyError)]
        assert len(late) >= len(results) - (MAX_CONSECUTIVE_FAILURES - 1)
        assert {error.state for error in late} == {"dead"}
        assert {event.request_id for events in results for event in events} == {
            *(f"r{i}" for i in range(6)),
            *(f"g{i}" for i in range(3)),
        }
        assert not box.thread.is_alive and box.thread.fatal_error is not None
        assert box.deaths == [box.thread.fatal_error]
        assert not box.thread._mailboxes and box.thread.stalled_for_s() == 0.0
        with pytest.raises(NotReadyError):
            await collect(box.thread, make_request("late"))


@pytest.mark.logs_errors
async def test_a_model_that_fails_every_step_is_given_up(box: Box) -> None:
    box.runner.before_step = die(RuntimeError("boom"))
    for i in range(MAX_CONSECUTIVE_FAILURES):
        events = await collect(box.thread, make_request(f"r{i}"))
        is_last = i == MAX_CONSECUTIVE_FAILURES - 1
        assert len(events) == 1 and isinstance(events[0].error, NotReadyError if is_last else GenerationError)
    await until(lambda: len(box.deaths) == 1)
    assert not box.thread.is_alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.leaves_work
@pytest.mark.logs_errors
async def test_a_thread_that_ends_without_a_word_is_noticed(box: Box) -> None:
    def end(reason: str) -> list[TokenEvent]:
        raise SystemExit

    box.engine.fail_all = end  # type: ignore[method-assign]
    box.hold_after(3)
    waiting = asyncio.create_task(collect(box.thread, make_request("a", [1], 200)))
    await until(lambda: box.runner.num_steps == 3)
    box.runner.before_step = die(SystemExit())
    box.go_on()
    events = await waiting
    assert isinstance(events[-1].error, NotReadyError) and len(box.deaths) == 1
    with pytest.raises(NotReadyError):
        await collect(box.thread, make_request("late"))


@pytest.mark.logs_errors
async def test_a_request_that_can_not_even_be_queued_is_the_only_one_to_fail(box: Box) -> None:
    class Broken:
        def start(self) -> Any:
            raise KeyError("a bug in the grammar")

    bad = replace(make_request("bad"), grammar=Broken())
    good = make_request("good", max_new_tokens=20)
    events, others = await asyncio.gather(collect(box.thread, bad), collect(box.thread, good))
    assert len(events) == 1 and isinstance(events[0].error, GenerationError) and "bug" not in str(events[0].error)
    check_complete(others, good)


@pytest.mark.leaves_work
@pytest.mark.logs_errors
async def test_an_engine_that_can_not_even_clean_up_still_tells_everyone(box: Box) -> None:
    def broken(reason: str) -> list[TokenEvent]:
        raise RuntimeError("the bookkeeping is broken, too")

    box.engine.fail_all = broken  # type: ignore[method-assign]
    box.hold_after(3)
    waiting = asyncio.create_task(collect(box.thread, make_request("a", [1], 200)))
    await until(lambda: box.runner.num_steps == 3)
    box.runner.before_step = die(SystemExit())
    box.go_on()
    events = await waiting
    assert isinstance(events[-1].error, NotReadyError)
    await until(lambda: len(box.deaths) == 1)


async def test_stop_ends_everyone_and_is_idempotent() -> None:
    async with running(max_batch_size=1, num_blocks=800) as box:
        box.runner.before_step = lambda plan: time.sleep(0.002)  # 24 s for all of them
        streams = [asyncio.create_task(collect(box.thread, make_request(f"r{i}", [i + 1], 3000))) for i in range(4)]
        await until(lambda: box.runner.num_steps > 2)
        await asyncio.to_thread(box.thread.stop)
        for events in await asyncio.gather(*streams):
            assert [event.is_terminal for event in events] == [False] * (len(events) - 1) + [True]
            assert "shutting down" in str(events[-1].error)
        box.thread.stop()
        assert not box.thread.is_alive and not box.deaths and box.thread.fatal_error is None
        assert not any(thread is box.thread._thread for thread in threading.enumerate())
        with pytest.raises(NotReadyError):
            await collect(box.thread, make_request("late"))


async def test_stop_before_start() -> None:
    Box().thread.stop()


async def test_stop_of_an_idle_engine_ends_its_thread(box: Box) -> None:
    await asyncio.to_thread(box.thread.stop, SOON_S)
    assert not box.thread._thread.is_alive()


def test_a_closed_event_loop_does_not_crash_the_thread() -> None:
    box = Box()
    box.runner.before_step = lambda plan: time.sleep(0.002)

    async def leave_without_stopping() -> None:
        box.thread.start()
        await anext(box.thread.submit([make_request("a", [1], 100)]))

    asyncio.run(leave_without_stopping())
    box.thread.stop()
    assert not box.thread._thread.is_alive() and box.thread.fatal_error is None


# What the health check reads.


class Hang:
    """Holds the model in a step until it is let go; `since` says for how long it seems to have been there."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._release = threading.Event()
        self.is_entered = threading.Event()
        box.runner.before_step = self._wait

    def _wait(self, plan: StepPlan) -> None:
        self.is_entered.set()
        assert self._release.wait(2 * SOON_S)

    def since(self, seconds: float) -> None:
        self._box.thread._waiting_since_s = time.monotonic() - seconds
        self._box.engine._runner.last_return_s = time.monotonic() - seconds

    def release(self) -> None:
        self._box.runner.before_step = lambda plan: None
        self._release.set()


@asynccontextmanager
async def hanging(stall_s: float) -> AsyncIterator[tuple[Box, Hang, asyncio.Task[list[TokenEvent]]]]:
    """An engine whose very first step hangs."""
    async with running(stall_s=stall_s) as box:
        hang = Hang(box)
        waiting = asyncio.create_task(collect(box.thread, make_request("a")))
        await until(hang.is_entered.is_set)
        try:
            yield box, hang, waiting
        finally:
            hang.release()
            await asyncio.gather(waiting, return_exceptions=True)


async def test_a_step_may_take_its_time_and_is_stalled_after_that() -> None:
    async with hanging(stall_s=100) as (box, hang, waiting):
        hang.since(90)
        assert not box.thread.is_stalled
        hang.since(101)
        assert box.thread.is_stalled and box.thread.is_alive
        await asyncio.sleep(2 * WATCH_EVERY_S)
        assert not box.deaths, "it may still come back"
        hang.release()
        check_complete(await waiting, make_request("a"))
        assert not box.thread.is_stalled


async def test_a_hanging_engine_is_given_up_and_everyone_told() -> None:
    async with hanging(stall_s=100) as (box, hang, waiting):
        while not waiting.done():
            hang.since(201)  # again and again: where the whole process stood still, the count begins anew
            await asyncio.sleep(0.01)
        events = await waiting
        assert len(events) == 1 and isinstance(events[0].error, NotReadyError) and events[0].error.state == "dead"
        assert [type(death) for death in box.deaths] == [StalledError]
        assert not box.thread.is_alive
        async with asyncio.timeout(SOON_S):
            await asyncio.to_thread(box.thread.stop, 2 * SOON_S)  # nobody waits for a thread that hangs
        hang.release()
        await until(lambda: not box.thread._thread.is_alive())
        assert len(box.deaths) == 1


async def test_when_the_whole_process_slept_nobody_is_to_blame() -> None:
    async with hanging(stall_s=100) as (box, hang, _):
        hang.since(1000)
        box.thread._watch(time.monotonic() - 1000)
        assert not box.deaths and not box.thread.is_stalled


async def test_stop_tells_everyone_though_the_model_hangs() -> None:
    async with hanging(stall_s=100) as (box, _, waiting):
        await asyncio.to_thread(box.thread.stop, 0.05)
        (event,) = await waiting
        assert isinstance(event.error, NotReadyError) and event.error.state == "draining"
        assert not box.deaths


async def test_an_idle_engine_is_never_stalled(box: Box) -> None:
    box.thread.stall_s = 100
    Hang(box).since(1000)
    assert box.thread.stalled_for_s() == 0.0 and not box.thread.is_stalled
    box.runner.before_step = lambda plan: None
    await collect(box.thread, make_request("a"))
    assert not box.thread.is_stalled and not box.deaths


class Clock:
    """The part of an event loop that tells the time; `tick` passes it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, callback: Callable[[], None]) -> "Clock":
        self.timers.append((when_s, callback))
        return self

    def cancel(self) -> None:
        self.timers.clear()

    def tick(self, seconds: float) -> None:
        self.now_s += seconds
        for when_s, callback in list(self.timers):
            if when_s <= self.now_s:
                callback()


class Consumer:
    """Notes when it was woken."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.woken_s: list[float] = []

    def wake(self) -> None:
        self.woken_s.append(self.clock.now_s)


@pytest.mark.parametrize(
    ("num_consumers", "step_s", "num_woken"),
    [
        (MANY_CONSUMERS - 1, WAKE_EVERY_S / 4, 40),
        (MANY_CONSUMERS, WAKE_EVERY_S * 0.6, 40),
        (MANY_CONSUMERS, WAKE_EVERY_S / 4, 10),
    ],
    ids=[
        "few are woken for every token",
        "nobody waits for a step that takes long",
        "many are woken for several tokens",
    ],
)
def test_when_consumers_are_woken(num_consumers: int, step_s: float, num_woken: int) -> None:
    clock = Clock()
    waking = engine_thread._Waking(clock, lambda: None)  # type: ignore[arg-type]
    consumer = Consumer(clock)
    given_s = []
    for _ in range(40):
        waking.add(consumer)  # type: ignore[arg-type]
        given_s.append(clock.now_s)
        waking.wake(num_consumers)
        clock.tick(step_s)
    clock.tick(WAKE_EVERY_S)
    assert len(consumer.woken_s) == pytest.approx(num_woken, abs=2)
    for given in given_s:
        assert any(0 <= woken - given <= WAKE_EVERY_S + step_s for woken in consumer.woken_s), (
            "each token is told in time"
        )


async def test_many_consumers_get_several_tokens_at_once_and_all_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "WAKE_EVERY_S", 3600.0)  # no machine is so slow
    monkeypatch.setattr(engine_thread, "MANY_CONSUMERS", 1)  # some come before the others, and go after them
    async with running(num_blocks=512, max_batch_size=64) as box:
        requests = [make_request(f"r{i}", (i, 1, 2), 40) for i in range(2 * MANY_CONSUMERS)]
        num_batches = 0

        async def read(request: GenerationRequest) -> list[TokenEvent]:
            nonlocal num_batches
            events = []
            async with aclosing(box.thread.submit([request])) as batches:
                async for batch in batches:
                    num_batches += 1
                    events += batch
            return events

        async with asyncio.timeout(SOON_S):
            answers = await asyncio.gather(*map(read, requests))
        assert num_batches < 4 * len(requests), "the first token at once, the others with the last"
        for request, events in zip(requests, answers, strict=True):
            assert token_ids(events) == expected_output(request.prompt_token_ids, 40)


async def test_the_loop_is_not_called_for_what_it_will_look_for_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "WAKE_EVERY_S", 3600.0)  # no machine is so slow
    monkeypatch.setattr(engine_thread, "MANY_CONSUMERS", 1)  # some come before the others, and go after them
    async with running(num_blocks=512, max_batch_size=64) as box:
        calls = 0
        call = box.thread._call_loop

        def counting(function: Callable[..., None], *args: object) -> None:
            nonlocal calls
            calls += 1
            call(function, *args)

        box.thread._call_loop = counting  # type: ignore[method-assign]
        requests = [make_request(f"r{i}", (i, 1, 2), 200) for i in range(2 * MANY_CONSUMERS)]
        answers = await asyncio.gather(*(collect(box.thread, request) for request in requests))
        for request, events in zip(requests, answers, strict=True):
            assert token_ids(events) == expected_output(request.prompt_token_ids, 200)
        await box.idle()
        assert calls <= 4 * len(requests) < 200 <= len(box.stats), (
            "for the first and the last of each, and little besides"
        )


async def test_nothing_is_missed_while_the_loop_is_about_to_look() -> None:
    """Whatever the moment: some of many rounds hit it."""
    async with running(num_blocks=512, max_batch_size=64) as box:
        for _ in range(5):
            requests = [make_request(f"r{i}", (i, 1, 2), 100) for i in range(2 * MANY_CONSUMERS)]
            answers = await asyncio.gather(*(collect(box.thread, request) for request in requests))
            for request, events in zip(requests, answers, strict=True):
                assert token_ids(events) == expected_output(request.prompt_token_ids, 100)
        await box.idle()
