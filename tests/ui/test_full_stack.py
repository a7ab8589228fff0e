"""The page as a new user gets it: `python app.py`, a real browser, a real model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Server, running
from tests.ui import browsing
from tests.waiting import wait_until

SCREENSHOTS = Path(__file__).parents[2] / "test-results"


@pytest.fixture(scope="module")
def endless_server(tiny_folder: Path) -> Iterator[Server]:
    """A model that never ends its turn, so that there is something to stop."""
    with running("--model-id", str(tiny_folder), "--dtype", "float32") as server:
        yield server


def test_count_to_ten(browser: Any, demo_server: Server) -> None:
    page = browsing.open_page(browser, demo_server.url, viewport={"width": 1200, "height": 860})
    page.get_by_text("tgi-local/demo").first.wait_for()
    browsing.send(page, "Count to 10")
    answer = browsing.wait_for_answer(page, "10")
    browsing.wait_until_idle(page)
    assert "1, 2, 3, 4, 5, 6, 7, 8, 9, 10" in answer
    browsing.send(page, "What is deep learning?")
    browsing.wait_for_answer(page, "Deep learning")
    browsing.wait_until_idle(page)
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "page.png")
    assert page.foreign_requests == []


def test_stop_frees_the_engine_and_keeps_the_text(browser: Any, endless_server: Server) -> None:
    page = browsing.open_page(browser, endless_server.url)
    page.get_by_text("Model settings").click()
    limit = page.get_by_label("number input for Max tokens")
    limit.fill("4000")
    limit.press("Tab")
    browsing.send(page, "hello")
    browsing.stop_button(page).wait_for()
    wait_until(lambda: endless_server.metric("tgi_batch_current_size") and browsing.last_answer(page))
    browsing.stop(page)
    browsing.wait_until_idle(page)
    endless_server.wait_idle()
    assert browsing.last_answer(page)
    assert endless_server.metric("tgi_request_failure", err="dropped") == 1


def test_a_closed_tab_frees_the_engine(browser: Any, endless_server: Server) -> None:
    page = browsing.open_page(browser, endless_server.url)
    browsing.send(page, "hello")
    wait_until(lambda: endless_server.metric("tgi_batch_current_size"))
    page.context.close()
    endless_server.wait_idle()
