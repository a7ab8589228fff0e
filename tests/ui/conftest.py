"""A browser, and a stand-in server with the page mounted on it."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

from fastapi import FastAPI

from tests.ui import browsing
from tests.ui.stand_in import Served, StandIn, bound_socket
from ui.chat import PageSettings
from ui.mount import mount_page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium. For one module: Playwright's loop runs in this thread while it lives, and no async test could run beside it."""
    browsing.require_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browsing.CHROMIUM, args=browsing.CHROMIUM_ARGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def _served() -> Iterator[tuple[Served, StandIn]]:
    """One server for all tests of the session: it takes longer to start than most of them run."""
    stand_in = StandIn()
    listener = bound_socket()
    app = stand_in.routes(FastAPI())
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    mount_page(app, PageSettings(base_url, api_key="the-key", page_token="the-token", poll_s=0.2))
    with Served(listener, app) as served:
        yield served, stand_in


@pytest.fixture
def stand_in(_served: tuple[Served, StandIn]) -> StandIn:
    """The stand-in server with its notes and wishes as new."""
    _, shared = _served
    vars(shared).update(vars(StandIn()))
    return shared


@pytest.fixture
def base_url(_served: tuple[Served, StandIn]) -> str:
    return _served[0].base_url


@pytest.fixture
def page(browser: Any, stand_in: StandIn, base_url: str) -> Iterator[Any]:
    """The chat page on the stand-in, open in a fresh profile."""
    opened = browsing.open_page(browser, base_url)
    yield opened
    opened.context.close()
