"""Work that can neither be interrupted nor trusted to end: in threads that are given up after a while."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from tgi_local.errors import OverloadedError

T = TypeVar("T")


class BoundedThreads:
    """Owns up to `num_threads` running pieces of work. Event-loop thread only.

    A piece that takes longer than `timeout_s` is given up: its thread makes place for others, and ends when it ends,
    or with the process. While `max_lost` of them still run, nothing new is begun.
    """

    def __init__(self, name: str, *, num_threads: int, timeout_s: float, max_lost: int) -> None:
        self._name = name
        self._slots = asyncio.Semaphore(num_threads)
        self._timeout_s = timeout_s
        self._max_lost = max_lost
        self._num_lost = 0

    async def run(self, function: Callable[[], T]) -> T:
        """What `function` gives or raises. Raises TimeoutError when it, not the wait for a thread, takes too long."""
        async with self._slots:
            if self._num_lost >= self._max_lost:
                raise OverloadedError
            done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            threading.Thread(target=_work, args=(function, done), name=self._name, daemon=True).start()
            try:
                await asyncio.wait([done], timeout=self._timeout_s)
            finally:
                if not done.done():
                    self._num_lost += 1
                    done.add_done_callback(self._found)
            if not done.done():
                raise TimeoutError
            return done.result()

    def _found(self, done: "asyncio.Future[T]") -> None:
        self._num_lost -= 1
        done.exception()  # nobody asks any more, and nothing shall be logged


def _work(function: Callable[[], T], done: "asyncio.Future[T]") -> None:
    try:
        result = function()
    except BaseException as error:  # every end must be told, whatever it is
        _tell(done, lambda error=error: done.set_exception(error))  # type: ignore[misc]
    else:
        _tell(done, lambda: done.set_result(result))


def _tell(done: "asyncio.Future[T]", end: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to hear it
        done.get_loop().call_soon_threadsafe(end)
