"""The page in a window of its own."""

import logging
import webbrowser
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

WIDTH, HEIGHT = 1100, 820


def find_window() -> Callable[[str, str], None] | None:
    """What opens a window and returns when it is closed; None where pywebview is not installed."""
    try:
        import webview
    except ImportError:
        return None

    def show(url: str, title: str) -> None:
        toolkit: Any = webview
        toolkit.create_window(title, url, width=WIDTH, height=HEIGHT)
        toolkit.start()

    return show


def open_browser(url: str) -> None:
    """The default browser in place of a window."""
    logger.info("no window without pywebview (pip install pywebview); opening %s in the browser", url)
    if not webbrowser.open(url):
        logger.warning("no browser found; open %s yourself", url)
