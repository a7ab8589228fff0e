"""The threads for work on text that would hold up the event loop, and how much of it may wait."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from tgi_local.errors import OverloadedError

T = TypeVar("T")


class TextWorkers:
    """Owns the threads and counts the requests that use them. Event-loop thread only.

    Work that nobody waits for any more does not begin; what has begun ends, and its result is dropped.
    """

    def __init__(self, num_threads: int) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="text")
        self.num_requests = 0

    @contextmanager
    def admit(self, num_free: int) -> Iterator[None]:
        """One request uses the workers. Raises OverloadedError when `num_free` or more do already."""
        if self.num_requests >= num_free:
            raise OverloadedError()
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
