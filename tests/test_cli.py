"""`python app.py` in fresh processes: what is wrong is said in one line, at once, before anything heavy is imported."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import clean_environment

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "gradio", "fastapi", "bitsandbytes"}


def run(*args: str, options: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "app.py", *args],
        cwd=ROOT,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


def refused(*args: str, **variables: str) -> str:
    """The one line on stderr of a start that must fail with status 2."""
    result = run(*args, **variables)
    lines = result.stderr.splitlines()
    assert (result.returncode, result.stdout, len(lines)) == (2, "", 1), result.stderr
    assert lines[0].startswith("tgi-local: ")
    return lines[0]


def imported(*args: str) -> set[str]:
    result = run(*args, options=("-X", "importtime"))
    assert result.returncode == 2
    names = re.findall(r"^import time:[^|]*\|[^|]*\| +([\w.]+)$", result.stderr, flags=re.MULTILINE)
    assert "tgi_local.settings" in names
    return {name.partition(".")[0] for name in names}


@pytest.fixture
def taken_port() -> Iterator[str]:
    """A port on which somebody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield str(listener.getsockname()[1])


def test_a_wrong_flag() -> None:
    assert "--bogus" in refused("--bogus")
    assert not imported("--bogus") & HEAVY


def test_a_wrong_variable() -> None:
    assert "PORT" in refused(PORT="many")


def test_a_missing_model_folder() -> None:
    args = ("--port", "0", "--model-id", "./no/such/folder")
    line = refused(*args)
    assert "./no/such/folder" in line and "--model-id" in line
    assert not imported(*args) & HEAVY


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "safetensors" in refused("--port", "0", "--model-id", str(tmp_path))


def test_a_hub_model_without_a_hub() -> None:
    line = refused("--port", "0", "--model-id", "some-owner/no-such-model", HF_HUB_OFFLINE="1")
    assert "some-owner/no-such-model" in line and "HF_HUB_OFFLINE" in line


def test_a_port_in_use_is_named_before_the_model_loads(taken_port: str) -> None:
    args = ("--port", taken_port, "--model-id", "./no/such/folder")
    line = refused(*args)
    assert f"127.0.0.1:{taken_port} is in use" in line and "--port" in line
    assert not imported(*args) & HEAVY


def test_an_address_that_is_not_ours() -> None:
    line = refused("--hostname", "192.0.2.1", "--api-key", "key", "--port", "0")
    assert "192.0.2.1" in line


def test_others_reach_it_only_with_a_key() -> None:
    assert "--api-key" in refused("--hostname", "0.0.0.0")


def test_help() -> None:
    result = run("--help")
    assert result.returncode == 0 and "--model-id" in result.stdout and result.stderr == ""


def test_env_prints_what_the_server_runs_on() -> None:
    result = run("--env", "--port", "0", "--model-id", "./no/such/folder", "--prometheus-port", "9000")
    lines = result.stdout.splitlines()
    assert result.returncode == 2 and [line.partition(":")[0] for line in lines[:3]] == [
        "tgi-local",
        "python",
        "platform",
    ]
    assert any(re.match(r"torch: \d", line) for line in lines)
    assert "--prometheus-port (PROMETHEUS_PORT) has no effect here" in result.stderr
