"""Python's client libraries, unmodified, against a real server: each program in `python/` runs in an interpreter of its own.

The libraries live in environments beside the project's, which `make test` makes.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import Server, clean_environment

PROGRAMS = Path(__file__).parent / "python"
CLIENTS = Path(f"{sys.prefix}-clients")
HERE = ["openai_client", "huggingface_hub_client"]  # libraries that the project itself pins
THERE = sorted({path.stem for path in PROGRAMS.glob("*_client.py")} - {"openai_client", "lm_eval_client"})


def interpreter(environment: Path, command: str) -> str:
    python = environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"the client libraries are not installed; `{command}` does it")
    return str(python)


def run(python: str, name: str, *arguments: str, **environment: str) -> str:
    """What a client program prints; its failures are the test's."""
    done = subprocess.run(
        [python, PROGRAMS / f"{name}.py", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=clean_environment(**environment),
    )
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


def test_programs_are_found() -> None:
    assert "huggingface_hub_client" in THERE and len(THERE) >= 9


@pytest.mark.parametrize("name", HERE)
def test_with_the_projects_own_libraries(demo_server: Server, name: str) -> None:
    assert " 0 failed" in run(sys.executable, name, demo_server.url)


@pytest.mark.parametrize("name", THERE)
def test_with_libraries_of_its_own(demo_server: Server, name: str) -> None:
    assert " 0 failed" in run(interpreter(CLIENTS, "make clients"), name, demo_server.url)


def test_a_program_that_fails_is_noticed(demo_server: Server) -> None:
    with pytest.raises(AssertionError, match="completions_echo"):
        run(sys.executable, "openai_client", f"{demo_server.url}/nowhere")
