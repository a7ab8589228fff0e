"""Waiting for what happens elsewhere, on machines that are slow, busy, or stand still for a while."""

import asyncio
import time
from collections.abc import Callable, Iterator

# Only a test that fails waits so long.
PATIENCE_S = 60.0
# More than this between two looks counts for no more: while the whole machine stands still nothing else can happen.
LONGEST_LOOK_S = 1.0


def _looks(condition: Callable[[], object], told: Callable[[], object], patience_s: float) -> Iterator[None]:
    """One item for each look in vain. Raises AssertionError with what `told` gives when patience is at its end."""
    left_s, looked_s = patience_s, time.monotonic()
    while not condition():
        now_s = time.monotonic()
        left_s -= min(now_s - looked_s, LONGEST_LOOK_S)
        looked_s = now_s
        assert left_s > 0, told()
        yield


def wait_until(
    condition: Callable[[], object],
    told: Callable[[], object] = lambda: "it did not happen",
    *,
    every_s: float = 0.01,
    patience_s: float = PATIENCE_S,
) -> None:
    """Return when `condition` holds."""
    for _ in _looks(condition, told, patience_s):
        time.sleep(every_s)


async def until(
    condition: Callable[[], object],
    told: Callable[[], object] = lambda: "it did not happen",
    *,
    every_s: float = 0.001,
    patience_s: float = PATIENCE_S,
) -> None:
    """The same, in an event loop that goes on meanwhile."""
    for _ in _looks(condition, told, patience_s):
        await asyncio.sleep(every_s)
