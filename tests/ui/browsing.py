"""What a person does with the page, for tests that drive a real browser. Any server that mounts the page will do."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
CHROMIUM_ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
TIMEOUT_MS = 60_000  # only a test that fails waits so long


def require_chromium() -> None:
    """Without a browser these tests say so: a failure in CI, where it must be there, and a skip elsewhere."""
    if Path(CHROMIUM).exists():
        return
    reason = f"no Chromium at {CHROMIUM}: install Debian's `chromium`, or set CHROMIUM to its path"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def open_page(browser: Any, base_url: str, **context: Any) -> Any:
    """A fresh profile on the chat page, once it can be typed into. `page.foreign_requests` lists what left for other hosts."""
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.foreign_requests = foreign = []
    host = urlsplit(base_url).netloc
    page.on("request", lambda request: foreign.append(request.url) if is_foreign(request.url, host) else None)
    page.goto(base_url + "/")
    message_box(page).wait_for()
    return page


def is_foreign(url: str, host: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob", "about") and parts.netloc != host


def message_box(page: Any) -> Any:
    return page.locator("#message textarea")


def send(page: Any, text: str) -> None:
    box = message_box(page)
    box.fill(text)
    box.press("Enter")


def stop(page: Any) -> None:
    stop_button(page).click()


def stop_button(page: Any) -> Any:
    return page.locator("#message button.stop-button")


def send_button(page: Any) -> Any:
    return page.locator("#message button.submit-button")


def last_answer(page: Any) -> str:
    """The text of the newest message of the assistant, thoughts and notices included; empty while there is none."""
    answers = page.locator("#chatbot .bot.message")
    return str(answers.last.inner_text()) if answers.count() else ""


def wait_for_answer(page: Any, text: str) -> str:
    """Until the newest answer holds `text`."""
    page.locator("#chatbot .bot.message").last.get_by_text(text).first.wait_for()
    return last_answer(page)


def wait_until_idle(page: Any) -> None:
    """Until the answer is complete: the Send button is back."""
    send_button(page).wait_for()
