"""What this server runs on, for bug reports; and what of its command line changes nothing."""

import logging
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from tgi_local import __version__
from tgi_local.settings import PROGRAM, Settings

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "tokenizers", "bitsandbytes", "huggingface_hub", "gradio")
QUERY_TIMEOUT_S = 10


def log_start(settings: Settings) -> None:
    """What TGI's launcher says first."""
    if settings.env:
        print("\n".join(runtime_lines()), flush=True)
    for note in settings.notes:
        logger.info("%s", note)


def runtime_lines() -> list[str]:
    """Versions and hardware; imports nothing heavy."""
    facts = {
        PROGRAM: __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
        "gpu": "; ".join(_gpus()) or "none found",
        **{name: _version(name) for name in PACKAGES},
    }
    return [f"{name}: {value}" for name, value in facts.items()]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpus() -> list[str]:
    """As the driver's own tool names them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ["Apple silicon"] if sys.platform == "darwin" and platform.machine() == "arm64" else []
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]
