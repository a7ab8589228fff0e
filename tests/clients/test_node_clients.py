"""JavaScript's client libraries, unmodified, against a real server; each program under `node/` says what was wrong."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving import Server, clean_environment

PROGRAMS = Path(__file__).parent / "node"
TIMEOUT_S = 240

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(
    NODE is None or not (PROGRAMS / "node_modules" / ".package-lock.json").is_file(),
    reason="needs node and npm (Debian and Ubuntu: apt install nodejs npm), then: make node-clients",
)


def run(name: str, url: str) -> None:
    done = subprocess.run(
        [str(NODE), f"{name}.mjs", url],
        cwd=PROGRAMS,
        env=clean_environment(NO_COLOR="1"),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name", ["agents", "ai", "anthropic", "frontends", "gradio", "huggingface", "langchain", "openai"]
)
def test_client(demo_server: Server, name: str) -> None:
    run(name, demo_server.url)


def test_a_failing_program_fails(demo_server: Server) -> None:
    """The negative control: no server answers at this address."""
    with pytest.raises(AssertionError, match=r"fail|refused|Error"):
        run("anthropic", "http://127.0.0.1:9")
