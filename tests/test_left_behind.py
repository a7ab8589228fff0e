"""The negative controls of what is checked after every test."""

import logging
import threading

import pytest

from tests import left_behind
from tests.engine.simulating import make_engine, make_request, run_to_end
from tests.left_behind import ErrorLog, check_engines, our_threads, settle


def test_a_busy_engine_is_found() -> None:
    engine, _ = make_engine(max_batch_size=1)
    for name in ("a", "b"):
        engine.submit(make_request(name, [1, 2, 3], 5))
    engine.step()
    with pytest.raises(AssertionError, match="1 running, 1 waiting, 1 blocks in use"):
        check_engines([engine])
    run_to_end(engine)
    check_engines([engine])


def test_a_thread_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_behind, "SETTLES_WITHIN_S", 0.02)
    before, end = our_threads(), threading.Event()
    thread = threading.Thread(target=end.wait, name="engine")
    thread.start()
    with pytest.raises(AssertionError, match="left behind"):
        settle(lambda: our_threads() - before)
    end.set()
    settle(lambda: our_threads() - before)


@pytest.mark.logs_errors
def test_a_traceback_is_found() -> None:
    logger, errors = logging.getLogger("tgi_local.test"), ErrorLog()
    logger.addHandler(errors)
    logger.error("no traceback")
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        logger.exception("one")
    logger.removeHandler(errors)
    assert errors.messages == ["one"]
