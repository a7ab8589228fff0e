"""Servers shared by the whole run; every test that uses one must leave it idle."""

import os

# Before torch is imported: the test models are small, and threads that spin for them starve each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.serving import Server, running


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
    yield _tiny_server
    _tiny_server.wait_idle()


@pytest.fixture
def demo_server(_demo_server: Server) -> Iterator[Server]:
    """The built-in model with the page, as a new user starts it."""
    yield _demo_server
    _demo_server.wait_idle()
