"""The kernels under the compiler's sanitizers: memory, undefined behaviour, races between threads."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tgi_local.model.native import library

STRESS = Path(__file__).with_name("native_stress.c")
SOURCES = Path(library.__file__).parent

pytestmark = pytest.mark.skipif(
    library.compiler() is None or platform.machine() != "x86_64", reason="the kernels can not be compiled here"
)


def build(folder: Path, sanitizers: str, stress: str) -> Path | None:
    """A program that runs `stress` (C) under `sanitizers`; None where the compiler lacks them."""
    (folder / "stress.c").write_text(stress)
    program = folder / "stress"
    flags = [flag for flag in library.FLAGS if flag != "-O3"]
    sources = [str(SOURCES / name) for name in library.SOURCES if name != "threads.c"]
    command = [str(library.compiler()), *flags, "-O1", "-g", "-Wall", "-Wextra", f"-I{SOURCES}"]
    command += ["-Werror", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    done = subprocess.run(
        [*command, "-o", str(program), str(folder / "stress.c"), *sources, "-lm"], capture_output=True, text=True
    )
    if "cannot find" in done.stderr:
        return None
    assert done.returncode == 0, done.stderr
    return program


def run(program: Path) -> subprocess.CompletedProcess[str]:
    # Without random addresses, among which ThreadSanitizer does not always find room for itself.
    prefix = ["setarch", "-R"] if shutil.which("setarch") else []
    return subprocess.run([*prefix, str(program), "1"], capture_output=True, text=True, timeout=300)


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_nothing_is_found(tmp_path: Path, sanitizers: str) -> None:
    program = build(tmp_path, sanitizers, STRESS.read_text())
    if program is None:
        pytest.skip(f"the compiler has no {sanitizers} sanitizer")
    done = run(program)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr[-4000:]


OVERRUN = ("exactly(linear_bytes(bits, inputs, outputs))", "exactly(1)")
RACE = (
    "int main(int count, char **arguments) {",
    """static volatile int shared;
static void *add(void *unused) { return shared++, unused; }
int main(int count, char **arguments) {
  pthread_t other;
  pthread_create(&other, NULL, add, NULL), add(NULL), pthread_join(other, NULL);""",
)


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("sanitizers", "change"), [("address,undefined", OVERRUN), ("thread", RACE)])
def test_what_is_wrong_is_found(tmp_path: Path, sanitizers: str, change: tuple[str, str]) -> None:
    assert change[0] in STRESS.read_text()
    program = build(tmp_path, sanitizers, STRESS.read_text().replace(*change))
    if program is None:
        pytest.skip(f"the compiler has no {sanitizers} sanitizer")
    done = run(program)
    assert done.returncode != 0 and "Sanitizer" in done.stderr
