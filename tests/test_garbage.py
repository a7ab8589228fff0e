import asyncio
import gc
import weakref

import pytest

from tgi_local import garbage


class Knot:
    """Garbage that only a collection finds."""

    def __init__(self) -> None:
        self.itself = self


def old_garbage() -> weakref.ref[Knot]:
    knot = Knot()
    for _ in range(3):
        gc.collect(1)  # it lives through these: only a full collection finds it now
    found = weakref.ref(knot)
    del knot
    gc.collect(1)
    assert found() is not None
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "LOOK_EVERY_S", 0.01)


async def collected(knot: weakref.ref[Knot], looks: int) -> bool:
    for _ in range(looks):
        if knot() is None:
            return True
        await asyncio.sleep(0.01)
    return False


async def test_full_collections_wait_for_idle_moments() -> None:
    thresholds, is_idle = gc.get_threshold(), False
    task = asyncio.ensure_future(garbage.collect_between_requests(lambda: is_idle))
    await asyncio.sleep(0)
    knot = old_garbage()
    kept = [[i] for i in range(200_000)]  # the interpreter would long have looked
    assert not await collected(knot, looks=20) and kept
    is_idle = True
    assert await collected(knot, looks=500)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert gc.get_threshold() == thresholds


async def test_a_load_without_pauses_puts_them_off_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "OVERDUE_S", 0.05)
    task = asyncio.ensure_future(garbage.collect_between_requests(lambda: False))
    await asyncio.sleep(0)
    assert await collected(old_garbage(), looks=500)
    task.cancel()
