"""The two commands of the README, as far as they can be held without installing: what make would run, and what it says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-C", str(ROOT), "NODE=", *arguments], capture_output=True, text=True, timeout=60)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A virtual environment as it stands after the first start: a Python, and all stamps fresh."""
    venv = tmp_path / "venv"
    for name in ("venv/bin/python", "venv/.runtime-installed", "venv/.dev-installed", "venv-clients/.installed"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return venv


@pytest.mark.parametrize(("goal", "command"), [("run", "app.py --port 9000"), ("test", "-m pytest --port 9000")])
def test_second_start_asks_no_pip(goal: str, command: str, installed: Path) -> None:
    commands = make("-n", goal, f"VENV={installed}", "ARGS=--port 9000").stdout.splitlines()
    commands = [line for line in commands if not line.startswith("make")]
    assert commands == [f"{installed}/bin/python {command}"]


def test_old_python_is_one_helpful_line(tmp_path: Path) -> None:
    answer = make("run", f"VENV={tmp_path}/venv", "PYTHON=/bin/false")
    said = [line for line in answer.stderr.splitlines() if not line.startswith("make")]
    assert answer.returncode == 2
    assert len(said) == 1 and "Python 3.11" in said[0] and "make PYTHON=" in said[0]
    assert not (tmp_path / "venv").exists()


def test_the_gpu_check_takes_the_python_that_is_there(installed: Path, tmp_path: Path) -> None:
    for venv, python in ((installed, f"{installed}/bin/python"), (tmp_path / "none", "python3")):
        answer = make("-n", "gpu-check", f"VENV={venv}", "ARGS=--only graphs")
        commands = [line for line in answer.stdout.splitlines() if not line.startswith("make")]
        assert commands == [f"{python} tools/gpu_check.py --only graphs"]
