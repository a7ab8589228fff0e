"""/docs in a real browser, under the gate's content security policy, with and without the network's help: without."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.serving import Server, running
from tests.ui import browsing


@pytest.fixture(scope="module")
def keyed_server(tiny_folder: Any) -> Iterator[Server]:
    with running("--model-id", str(tiny_folder), "--api-key", "secret-key") as server:
        yield server


def test_docs_need_the_key_and_nothing_from_elsewhere(browser: Any, keyed_server: Server) -> None:
    """Signed in, every route is listed, and one can be tried with the example that stands there."""
    page = browser.new_context().new_page()
    page.set_default_timeout(browsing.TIMEOUT_MS)
    host = urlsplit(keyed_server.url).netloc
    foreign: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: foreign.append(request.url) if browsing.is_foreign(request.url, host) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Security Policy" in message.text else None)
    assert page.goto(keyed_server.url + "/docs/").status == 401
    page.locator("input[type=password]").fill("secret-key")
    page.locator("button").click()
    page.wait_for_url(keyed_server.url + "/")
    page.goto(keyed_server.url + "/docs")
    block = page.locator("#operations-Text_Generation_Inference-generate")
    block.wait_for()
    assert page.locator(".opblock").count() >= 25
    block.locator("button.opblock-summary-control").click()
    block.locator("button.try-out__btn").click()
    block.locator("button.execute").click()
    page.locator(".live-responses-table", has_text="generated_text").wait_for()
    assert not foreign and not errors
    page.context.close()
