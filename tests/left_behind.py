"""What a test may not leave behind: engines with work or blocks in use, their threads, and errors nobody expected."""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from tgi_local.engine.engine import Engine

SETTLES_WITHIN_S = 2.0
OUR_THREADS = ("engine", "text", "grammar", "loader")


class ErrorLog(logging.Handler):
    """Keeps what was logged with a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.messages.append(record.getMessage())


def busy(engine: Engine) -> str:
    """What an engine still has; "" when it is idle."""
    stats = engine.stats()
    counts = (stats.num_running, stats.num_waiting, stats.used_blocks)
    return "" if counts == (0, 0, 0) else f"{counts[0]} running, {counts[1]} waiting, {counts[2]} blocks in use"


def our_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(OUR_THREADS)}


def settle(what: Callable[[], object]) -> None:
    """Wait until nothing is left of `what`."""
    deadline = time.monotonic() + SETTLES_WITHIN_S
    while left := what():
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.005)


def check_engines(engines: Iterable[Engine]) -> None:
    left = [what for engine in engines if (what := busy(engine))]
    assert not left, f"left behind: {left}"
