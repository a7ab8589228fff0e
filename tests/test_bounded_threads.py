"""Work that hangs costs its own request, and nobody else's."""

import asyncio
import threading

import pytest

from tests.waiting import PATIENCE_S, until
from tgi_local.bounded_threads import BoundedThreads
from tgi_local.errors import OverloadedError


def threads(num_threads: int = 1) -> BoundedThreads:
    return BoundedThreads("grammar", num_threads=num_threads, timeout_s=PATIENCE_S, max_lost=2)


async def hang(bounded: BoundedThreads, work: threading.Event) -> None:
    """Have `work` given up; what ends by itself is given more time than a busy machine needs."""
    bounded._timeout_s = 0.05
    with pytest.raises(TimeoutError):
        await bounded.run(work.wait)
    bounded._timeout_s = PATIENCE_S


async def test_results_and_errors_are_those_of_the_work() -> None:
    bounded = threads(2)
    assert await asyncio.gather(*(bounded.run(lambda n=n: n * n) for n in range(5))) == [0, 1, 4, 9, 16]  # type: ignore[misc]
    with pytest.raises(ValueError, match="wrong"):
        await bounded.run(lambda: (_ for _ in ()).throw(ValueError("wrong")))


async def test_what_hangs_is_given_up_and_others_go_on() -> None:
    bounded, goes_on = threads(), threading.Event()
    try:
        await hang(bounded, goes_on)
        assert await bounded.run(lambda: "next") == "next"
        await hang(bounded, goes_on)
        with pytest.raises(OverloadedError):  # two still hang
            await bounded.run(lambda: "more")
    finally:
        goes_on.set()
    await until(lambda: not bounded._num_lost)
    assert await bounded.run(lambda: "again") == "again"


async def test_a_caller_who_leaves_takes_no_place_with_him() -> None:
    bounded, goes_on = threads(), threading.Event()
    try:
        caller = asyncio.ensure_future(bounded.run(goes_on.wait))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert await bounded.run(lambda: "next") == "next"
    finally:
        goes_on.set()
