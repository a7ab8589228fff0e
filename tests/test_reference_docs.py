"""docs/reference is what the code says."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import clean_environment
from tgi_local.api.operations import OPERATIONS
from tgi_local.bench.options import build_parser
from tgi_local.metrics import Metrics
from tgi_local.settings import Settings

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "reference"


def test_the_pages_are_current() -> None:
    """`make docs` writes them again."""
    command = [sys.executable, "tools/reference_docs.py", "--check"]
    # No setting of whoever runs the tests may show in them.
    result = subprocess.run(
        command, cwd=ROOT, env=clean_environment(PORT="1", API_KEY="secret"), capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("page", "names"),
    [
        (
            "flags",
            [
                f"`--{name.replace('_', '-')}`"
                for name in Settings.model_fields
                if not name.startswith(("aip_", "hf_", "sagemaker_", "sm_"))
            ],
        ),
        ("bench", [f"`{option}`" for action in build_parser()._actions for option in action.option_strings[:1]][1:]),
        ("routes", [f"`{operation.path}`" for operation in OPERATIONS]),
        ("metrics", [f"`{metric.name}`" for metric in Metrics().describe()]),
    ],
)
def test_the_pages_name_everything(page: str, names: list[str]) -> None:
    text = (FOLDER / f"{page}.md").read_text()
    assert not [name for name in names if name not in text]
    assert text.count("\n# ") + text.startswith("# ") == 1 and "README" not in text
