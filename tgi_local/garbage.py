"""When Python looks for garbage: between requests rather than in the middle of one.

A full collection visits every object that has lived for a while, and holds up all threads meanwhile: 60 ms while an answer
describes 100 000 tokens, 0.2 s while libraries are loaded. What dies young is collected as ever.
"""

import asyncio
import gc
from collections.abc import Callable

LOOK_EVERY_S = 1.0
# Under a load that never pauses, garbage may wait for so long.
OVERDUE_S = 30.0
_NEVER = 1_000_000


async def collect_between_requests(is_idle: Callable[[], bool]) -> None:
    """Full collections when `is_idle`, or when one is overdue; the interpreter decides again once this is cancelled."""
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    waited_s = 0.0
    try:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            waited_s += LOOK_EVERY_S
            has_more = gc.get_count()[2] > 0
            if has_more and (is_idle() or waited_s >= OVERDUE_S):
                gc.collect()
                waited_s = 0.0
    finally:
        gc.set_threshold(young, middle, old)
