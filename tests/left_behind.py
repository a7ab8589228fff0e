"""What a test may not leave behind: engines with work or blocks in use, their threads, and errors nobody expected."""

import logging
import threading
from collections.abc import Callable, Iterable

from tests.waiting import wait_until
from tgi_local.engine.engine import Engine

# Longer than a cancelled request needs, and shorter than most need to end by themselves.
SETTLES_WITHIN_S = 5.0
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
    wait_until(lambda: not what(), lambda: f"left behind: {what()}", every_s=0.005, patience_s=SETTLES_WITHIN_S)


def check_engines(engines: Iterable[Engine]) -> None:
    left = [what for engine in engines if (what := busy(engine))]
    assert not left, f"left behind: {left}"
