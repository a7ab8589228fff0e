"""The GPU check runs here as far as it can without a GPU, notices what is wrong, and outlives its sections."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.model.test_kernels import Changed
from tools import gpu_check
from tools.gpu_checks import models
from tools.gpu_checks.report import Finding, Reporter, read, table

ROOT = Path(__file__).resolve().parents[2]


def test_everything_that_needs_no_gpu(tmp_path: Path) -> None:
    path = tmp_path / "out" / "findings.json"
    sections = [section.name for section in gpu_check.SECTIONS if section.name not in ("1B", "1B nf4")]
    command = [sys.executable, "tools/gpu_check.py", "--device", "cpu", "--tiny", "--together", "--json", str(path)]
    command += ["--only", ",".join(sections)]  # without a GPU all shapes are the same one
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    findings = json.loads(path.read_text())["findings"]
    assert {f["section"] for f in findings} == {"environment", *sections}
    assert sum(f["ok"] is True for f in findings) > 30
    assert {f["section"] for f in findings if f["value"] == "failed"} == set()
    measured = {f["name"] for f in findings if f["section"] == "8B"}
    assert {"decode step, batch 1, context 64", "engine, batch 3: decode"} <= measured
    assert "transformers, batch 3: decode" in measured, "the peer in the same run"


def run_here(tmp_path: Path, *args: str) -> tuple[int, list[Finding]]:
    path = tmp_path / "findings.json"
    status = gpu_check.main(["--device", "cpu", "--tiny", "--together", "--json", str(path), *args])
    return status, [Finding(**f) for f in json.loads(path.read_text())["findings"]]


@pytest.mark.parametrize("section", ["parity", "halves", "kernels"])
def test_a_wrong_kernel_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str) -> None:
    wrong = Changed(lambda q, k, v, rows, rules: (q * 3, k, v, rows, rules))
    monkeypatch.setattr(models, "kernel_for", lambda _: wrong)
    monkeypatch.setattr("tools.gpu_checks.correctness.PlainKernel", lambda: wrong)
    few = models.ARCHITECTURES[:1] * (1 if section == "parity" else 6)
    monkeypatch.setattr("tools.gpu_checks.correctness.ARCHITECTURES", few)
    status, findings = run_here(tmp_path, "--only", section)
    assert status == 1
    wrong_ones = [finding.name for finding in findings if finding.ok is False]
    assert wrong_ones and not any("gathered" in name for name in wrong_ones if section == "parity")


def test_a_section_that_raises_does_not_stop_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr("tools.gpu_checks.correctness.kernels", fails)
    status, findings = run_here(tmp_path, "--only", "kernels,sampling")
    assert status == 1
    assert any(f.section == "kernels" and "illegal memory access" in f.note for f in findings)
    assert any(f.section == "sampling" and f.ok for f in findings)


@pytest.mark.parametrize(
    ("code", "limit_s", "value"),
    [
        ("pass", 60, None),
        ("raise SystemExit(1)", 60, None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 60, "died"),
        ("import time; time.sleep(600)", 0.5, "ended"),
    ],
    ids=["done", "failed itself", "killed", "hangs"],
)
def test_how_a_section_ends(tmp_path: Path, code: str, limit_s: float, value: str | None) -> None:
    process = subprocess.Popen([sys.executable, "-c", code])
    path = tmp_path / "graphs"
    Reporter("graphs", path)("found before", 1)
    gpu_check._finish(gpu_check.Running(gpu_check._section("graphs"), process, path, limit_s, time.monotonic()))
    findings = read(path)
    assert findings[0].name == "found before", "what was found is kept"
    assert [(finding.value, finding.ok) for finding in findings[1:]] == ([] if value is None else [(value, False)])


def test_a_section_without_time_is_named(tmp_path: Path) -> None:
    running = gpu_check.Running(gpu_check._section("oom"), None, tmp_path / "oom", 0.0, time.monotonic())
    gpu_check._finish(running)
    assert "no time was left" in table(read(tmp_path / "oom"))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    versions = {"transformers": None, "psutil": None}
    monkeypatch.setattr(gpu_check, "_version", lambda name: versions.get(name, "1.0"))
    assert gpu_check.main(["--device", "cpu"]) == 2
    assert "needs transformers, psutil;" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err


def test_no_such_section() -> None:
    with pytest.raises(SystemExit, match="there are kernels"):
        gpu_check.main(["--device", "cpu", "--only", "kernels,nonsense"])
