"""Checks and measures GPU execution in one call: `make gpu-check`, or `python tools/gpu_check.py`.

Needs torch with CUDA, transformers, numpy, psutil and nothing else; what is missing is named, and what needs it is
skipped. Every section runs in a process of its own with a time limit, so that none can stop another.

    python tools/gpu_check.py --json build/gpu-check.json      all of it, within ten minutes on a large GPU
    python tools/gpu_check.py --only parity,graphs             some of it
    python tools/gpu_check.py --device cpu --tiny              what makes sense without a GPU, within a minute
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.gpu_checks.report import Finding, Reporter, read, table, write_json  # noqa: E402

NEEDED = ("torch", "transformers", "numpy", "psutil", "tokenizers", "safetensors")
USEFUL = ("triton", "bitsandbytes", "accelerate")


@dataclass(frozen=True)
class Section:
    """`function` is looked up by name, so that nothing heavy is imported before its process runs."""

    name: str
    module: str
    function: str
    limit_s: int
    alone: bool = True  # whether others would disturb its timings or its memory
    arguments: tuple[Any, ...] = ()


SECTIONS = (
    Section("kernels", "correctness", "kernels", 110, alone=False),
    Section("parity", "correctness", "parity", 150, alone=False),
    Section("halves", "correctness", "halves", 110, alone=False),
    Section("graphs", "correctness", "graphs", 110, alone=False),
    Section("sampling", "correctness", "sampling", 60, alone=False),
    Section("8B", "timings", "model_timings", 110, arguments=("8B", False)),
    Section("1B", "timings", "model_timings", 75, arguments=("1B", False)),
    Section("oom", "correctness", "oom", 60),
    Section("attention", "timings", "attention", 50),
    Section("profile", "timings", "profile", 35),
    Section("8B nf4", "timings", "model_timings", 90, arguments=("8B", True)),
    Section("1B nf4", "timings", "model_timings", 60, arguments=("1B", True)),
)


def main(args: Sequence[str] | None = None) -> int:
    options = _options(args)
    missing = [name for name in NEEDED if _version(name) is None]
    if missing:
        print(f"gpu-check needs {', '.join(missing)}; pip install -r requirements.txt", file=sys.stderr)
        return 2
    if options.section:
        return _run_here(_section(options.section), options, Path(options.findings))
    chosen = [_section(name) for name in options.only.split(",")] if options.only else list(SECTIONS)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        options.folder = folder
        findings = _environment(options, Path(folder) / "environment")
        if findings is None:
            return 2
        findings += _run_all(chosen, options, Path(folder), time.monotonic() + options.budget)
    print(f"\n{table(findings)}")
    failed = [finding for finding in findings if finding.ok is False]
    write_json(Path(options.json), {"arguments": sys.argv[1:], "failed": len(failed)}, findings)
    print(f"\n{len(failed)} failed; written to {options.json}")
    return 1 if failed else 0


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few repetitions: does it run at all")
    parser.add_argument("--only", default="", help=f"some of: {', '.join(section.name for section in SECTIONS)}")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything")
    parser.add_argument("--json", default=str(ROOT / "build" / "gpu-check.json"), help="where the findings go")
    parser.add_argument("--together", action="store_true", help="all sections in this process, one after another")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--findings", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args(args)


def _section(name: str) -> Section:
    for section in SECTIONS:
        if section.name == name:
            return section
    raise SystemExit(f"there is no section {name!r}; there are {', '.join(section.name for section in SECTIONS)}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _environment(options: argparse.Namespace, path: Path) -> list[Finding] | None:
    """What is here; None, and a line that says so, when the device is not."""
    import torch

    report = Reporter("environment", path)
    for name in (*NEEDED, *USEFUL):
        report(name, _version(name) or "missing", note="" if _version(name) else "what needs it is skipped")
    report("python", platform.python_version())
    if options.device == "cpu":
        return report.findings
    if not torch.cuda.is_available():
        print(
            f"torch {torch.__version__} finds no CUDA GPU; --device cpu --tiny checks what needs none", file=sys.stderr
        )
        return None
    properties = torch.cuda.get_device_properties(options.device)
    report("GPU", properties.name, note=f"{properties.multi_processor_count} processors")
    report("compute capability", f"{properties.major}.{properties.minor}")
    report("memory", properties.total_memory / 2**30, "GiB")
    report("CUDA", str(torch.version.cuda))
    return report.findings


def _run_all(chosen: Sequence[Section], options: argparse.Namespace, folder: Path, deadline: float) -> list[Finding]:
    """Those that disturb nobody side by side, then the others one by one."""
    if options.together:
        for section in chosen:
            _run_here(section, options, folder / section.name)
    else:
        together = [section for section in chosen if not section.alone]
        started = [_start(section, options, folder / section.name, deadline) for section in together]
        for process in started:
            _finish(process)
        for section in chosen:
            if section.alone:
                _finish(_start(section, options, folder / section.name, deadline))
    return [finding for section in chosen for finding in read(folder / section.name)]


@dataclass
class Running:
    section: Section
    process: subprocess.Popen[bytes] | None
    path: Path
    limit_s: float
    started: float


def _start(section: Section, options: argparse.Namespace, path: Path, deadline: float) -> Running:
    limit = min(section.limit_s, deadline - time.monotonic())
    running = Running(section, None, path, limit, time.monotonic())
    if limit < 10:
        return running
    command = [sys.executable, str(Path(__file__).resolve()), "--section", section.name, "--findings", str(path)]
    command += ["--device", options.device, "--folder", options.folder, "--budget", str(limit)]
    running.process = subprocess.Popen([*command, *(["--tiny"] if options.tiny else [])])
    return running


def _finish(running: Running) -> None:
    """Wait for a section, end it at its limit, and note how it ended where it did not do so itself."""
    report = Reporter(running.section.name, running.path)
    # A peer too slow to be measured in time is no fault of ours; a check that did not end is unanswered.
    ok = None if running.section.module == "timings" else False
    if running.process is None:
        return report("the section", "skipped", ok=ok, note="no time was left for it: --only chooses sections")
    try:
        status = running.process.wait(max(0.0, running.started + running.limit_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        running.process.kill()
        running.process.wait()
        return report("the section", "ended", ok=ok, note=f"after its limit of {running.limit_s:.0f} s")
    if status < 0 or status > 1:
        report("the section", "died", ok=False, note=f"exit status {status}")


def _run_here(section: Section, options: argparse.Namespace, path: Path) -> int:
    """Run one section in this process; its exception becomes a finding."""
    report = Reporter(section.name, path)
    logging.basicConfig(format="%(levelname)s %(message)s")
    logging.getLogger("tgi_local").setLevel(logging.INFO)
    started = time.monotonic()
    try:
        _function(section)(_context(options), report)
    except Exception as error:
        traceback.print_exc()
        report("the section", "failed", ok=False, note=f"{type(error).__name__}: {str(error).strip()[:300]}")
        return 1
    finally:
        report("time", time.monotonic() - started, "s")
    return 0


def _function(section: Section) -> Callable[..., None]:
    from tools.gpu_checks import correctness, timings

    function = getattr({"correctness": correctness, "timings": timings}[section.module], section.function)
    return function(*section.arguments) if section.arguments else function


def _context(options: argparse.Namespace) -> Any:
    import torch

    from tools.gpu_checks.models import Context

    device = torch.device(options.device)
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    return Context(device, options.tiny, folder, time.monotonic() + options.budget)


if __name__ == "__main__":
    raise SystemExit(main())
