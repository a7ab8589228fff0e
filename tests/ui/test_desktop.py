"""`--desktop`: a window when there is a toolkit, the browser when there is none."""

import stat
import subprocess
import sys
from pathlib import Path

from tests.serving import ROOT, Server, clean_environment
from tests.waiting import wait_until

# Stands in for pywebview, which needs a display: "shows" the page by fetching it, then is closed.
WEBVIEW = """
import urllib.request
opened = []
def create_window(title, url, **size):
    opened.append((title, url))
def start():
    title, url = opened[0]
    page = urllib.request.urlopen(url, timeout=60).read().decode()
    print("window:", title, "gradio" in page, flush=True)
"""


def test_closing_the_window_ends_the_server(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "webview.py").write_text(WEBVIEW)
    done = subprocess.run(
        [sys.executable, "app.py", "--port", "0", "--desktop", "--model-id", str(tiny_folder)],
        cwd=ROOT,
        env=clean_environment(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "window: tgi-local True" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_browser_is_opened_where_no_window_is_to_be_had(tmp_path: Path, tiny_folder: Path) -> None:
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "webview.py").write_text("raise ImportError('not installed')")
    environment = {"BROWSER": str(browser), "PYTHONPATH": str(tmp_path)}
    server = Server("--desktop", "--model-id", str(tiny_folder), env=environment)
    try:
        wait_until(lambda: opened.exists() and opened.read_text(), lambda: server.log)
        assert opened.read_text().strip() == server.url
    finally:
        assert server.stop() == 0
