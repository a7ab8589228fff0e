"""Servers shared by the whole run; every test that uses one must leave it idle."""

import os

# Before torch is imported: the test models are small, and threads that spin for them starve each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import left_behind
from tests.checkpoints import make_checkpoint
from tests.serving import Server, running
from tgi_local.engine.engine import Engine

# The same examples every time, and as much time for each as a busy machine takes.
hypothesis.settings.register_profile(
    "every-run-alike",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("every-run-alike")


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests marked `leaves_work` may leave their engines busy, those marked `logs_errors` may log tracebacks."""
    engines: list[Engine] = []
    create = Engine.__init__

    def noted(self: Engine, *args: Any, **options: Any) -> None:
        create(self, *args, **options)
        engines.append(self)

    monkeypatch.setattr(Engine, "__init__", noted)
    threads, errors = left_behind.our_threads(), left_behind.ErrorLog()
    logger = logging.getLogger("tgi_local")
    logger.addHandler(errors)
    yield
    logger.removeHandler(errors)
    left_behind.settle(lambda: left_behind.our_threads() - threads)
    if request.node.get_closest_marker("leaves_work") is None:
        left_behind.check_engines(engines)
    if request.node.get_closest_marker("logs_errors") is None:
        assert not errors.messages, f"tracebacks in the log: {errors.messages}"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama without an EOS token: it always generates up to the limit."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def _tiny_server(tiny_folder: Path) -> Iterator[Server]:
    with running("--model-id", str(tiny_folder), "--dtype", "float32", "--max-best-of", "4", "--disable-ui") as server:
        yield server


@pytest.fixture(scope="session")
def _demo_server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def tiny_server(_tiny_server: Server) -> Iterator[Server]:
    """The random model behind the API, without the page."""
    with _tiny_server.undisturbed():
        yield _tiny_server


@pytest.fixture
def demo_server(_demo_server: Server) -> Iterator[Server]:
    """The built-in model with the page, as a new user starts it."""
    with _demo_server.undisturbed():
        yield _demo_server
