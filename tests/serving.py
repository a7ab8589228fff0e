"""Real servers for tests: `python app.py` in a fresh process on a free port."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent
START_TIMEOUT_S = 180.0
# Longer than a cancelled request needs, and shorter than the long ones need to end by themselves.
IDLE_WITHIN_S = 5.0


def clean_environment(**variables: str) -> dict[str, str]:
    """What a fresh user has: no server variables, no token, no stray proxies."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR", "SYSTEMROOT") if name in os.environ}
    return {**kept, "PYTHONUNBUFFERED": "1", **variables}


class Server:
    """A running `python app.py`; `url` without a trailing slash, `log` is everything it has printed."""

    def __init__(
        self, *args: str, env: dict[str, str] | None = None, cwd: Path = ROOT, program: tuple[str, ...] = ("app.py",)
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *program, "--port", "0", *args],
            cwd=cwd,
            # The hub is not asked in tests, and a machine without it serves all the same.
            env=clean_environment(HF_HUB_OFFLINE="1", **(env or {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        # One client for all of the server's tests: making one reads every CA certificate.
        self.client = httpx.Client(headers={"x-api-key": "secret-key"}, timeout=60)
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""
        try:
            self._wait(self._found_url)
        except BaseException:
            self.process.kill()
            self.stop()
            raise

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def wait_ready(self) -> "Server":
        self._wait(self._is_ready)
        return self

    def metric(self, name: str, **labels: str) -> float:
        """One sample of /metrics; 0 when it has none."""
        return next((v for n, found, v in self._samples() if n in (name, f"{name}_total") and found == labels), 0.0)

    def wait_idle(self) -> None:
        """Nothing runs, waits or holds memory: what must be true after every test."""
        gauges = ("tgi_batch_current_size", "tgi_queue_size", "tgi_kv_blocks_used")

        def busy() -> dict[str, float]:
            return {name: value for name, _, value in self._samples() if name in gauges and value}

        wait_until(lambda: not busy(), lambda: f"still busy: {busy()}", every_s=0.02, patience_s=IDLE_WITHIN_S)

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """What happens here leaves the server idle, and no traceback in its log."""
        start = len(self._lines)
        yield
        self.wait_idle()
        log = "".join(self._lines[start:])
        assert "Traceback" not in log, log

    def _samples(self) -> list[tuple[str, dict[str, str], float]]:
        lines = self.client.get(f"{self.url}/metrics").text.splitlines(keepends=True)
        # Buckets are most of the text and no test asks for one.
        families = text_string_to_metric_families("".join(line for line in lines if "_bucket{" not in line))
        return [(s.name, s.labels, float(s.value)) for family in families for s in family.samples]

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.client.close()
            self._reader.join(10)
            if self.process.stdout is not None:
                self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Until `condition` holds. Raises RuntimeError when the server ends first."""

        def holds() -> bool:
            if self.process.poll() is not None:
                self._reader.join(10)
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log}")
            return condition()

        wait_until(
            holds, lambda: f"not after {START_TIMEOUT_S} s:\n{self.log}", every_s=0.02, patience_s=START_TIMEOUT_S
        )

    def _found_url(self) -> bool:
        found = re.search(r"listening on (http://\S+?),", self.log)
        self.url = found.group(1) if found else ""
        return bool(found)

    def _is_ready(self) -> bool:
        try:
            return self.client.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            return False


@contextlib.contextmanager
def running(*args: str, env: dict[str, str] | None = None, program: tuple[str, ...] = ("app.py",)) -> Iterator[Server]:
    server = Server(*args, env=env, program=program)
    try:
        yield server.wait_ready()
    finally:
        server.stop()
    assert "Traceback" not in server.log, server.log
