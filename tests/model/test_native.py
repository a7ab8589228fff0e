"""The native decoder as a whole: the same bits in any batch, rows that fail alone, and what happens where it can not be had."""

import logging
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints import make_checkpoint
from tests.serving import ROOT, clean_environment
from tgi_local.engine.step import StepPlan, StepRow
from tgi_local.errors import StartupError
from tgi_local.model.loader import LoadedModel, LoadOptions, load
from tgi_local.model.native import library, packing
from tgi_local.model.native.forward import NativeForward
from tgi_local.model.runner import TorchRunner
from tgi_local.types import SamplingParams

README = (ROOT / "README.md").read_text()
BITS = (4, 8, 16, 32)
LENGTHS = (1, 5, 16, 33, 40, 70)
BLOCKS_PER_ROW = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 80, "intermediate_size": 112, "num_attention_heads": 6}  # no multiples of 64 or 32
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), "qwen2", **shape)


def load_on_cpu(folder: Path, **options: Any) -> LoadedModel:
    return load(folder, "some/model", None, False, LoadOptions(**{"device": "cpu", **options}))


@pytest.fixture(scope="module", autouse=True)
def has_kernels() -> None:
    try:
        library.load()
    except library.UnavailableError as error:
        pytest.skip(str(error))


def pack(folder: Path, bits: int, num_threads: int = 2) -> packing.PackedModel:
    dtype = torch.float32 if bits == 32 else torch.bfloat16
    model = load_on_cpu(folder, dtype=str(dtype).removeprefix("torch."), quantize="none", may_pack=False).model
    return packing.pack(model, bits, 256, num_threads, dtype)


Rows = Sequence[tuple[int, int, int]]  # sequence, from which of its tokens on, to which


class Sequences:
    """Random sequences of LENGTHS tokens, computed in steps of one's own cutting."""

    def __init__(self, forward: NativeForward) -> None:
        rng = random.Random(1)
        self.forward = forward
        self.ids = [[rng.randrange(3, 512) for _ in range(n)] for n in LENGTHS]

    def step(self, rows: Rows) -> dict[tuple[int, int], np.ndarray]:
        """Compute `rows` in one step: logits by (sequence, position)."""
        plan = StepPlan(tuple(self._row(*row) for row in rows))
        places = [(sequence, position) for sequence, first, last in rows for position in range(first, last)]
        logits = self.forward.logits(plan, range(len(places))).numpy()
        return dict(zip(places, logits, strict=True))

    def _row(self, sequence: int, first: int, last: int) -> StepRow:
        table = tuple(range(sequence, BLOCKS_PER_ROW * len(LENGTHS), len(LENGTHS)))
        return StepRow(f"r{sequence}", tuple(self.ids[sequence][first:last]), first, table, True, SamplingParams())


def whole(sequence: int) -> tuple[int, int, int]:
    return sequence, 0, LENGTHS[sequence]


def alone() -> list[Rows]:
    return [[whole(i)] for i in range(len(LENGTHS))]


def together() -> list[Rows]:
    return [[whole(i) for i in range(len(LENGTHS))]]


def backwards() -> list[Rows]:
    return [[whole(i) for i in reversed(range(len(LENGTHS)))]]


def token_by_token() -> list[Rows]:
    return [[(i, t, t + 1) for i, n in enumerate(LENGTHS) if t < n] for t in range(max(LENGTHS))]


def at_random(seed: int) -> list[Rows]:
    """Chunks of any length, rows in any order, some of them waiting."""
    rng = random.Random(seed)
    done, steps = [0] * len(LENGTHS), []
    while any(d < n for d, n in zip(done, LENGTHS, strict=True)):
        rows = []
        for i in rng.sample(range(len(LENGTHS)), rng.randint(1, len(LENGTHS))):
            if done[i] < LENGTHS[i]:
                last = min(LENGTHS[i], done[i] + rng.choice([1, 2, 3, 7, 17, 40]))
                rows.append((i, done[i], last))
                done[i] = last
        if rows:
            steps.append(rows)
    return steps


def compute(packed: packing.PackedModel, steps: list[Rows]) -> dict[tuple[int, int], np.ndarray]:
    sequences = Sequences(NativeForward(packed, BLOCKS_PER_ROW * len(LENGTHS)))
    return {place: logits for rows in steps for place, logits in sequences.step(rows).items()}


def are_equal(a: dict[tuple[int, int], np.ndarray], b: dict[tuple[int, int], np.ndarray]) -> bool:
    assert a.keys() == b.keys() and all(np.isfinite(row).all() for row in a.values())
    return all(np.array_equal(a[place], b[place]) for place in a)


@pytest.fixture(scope="module", params=BITS)
def packed(request: pytest.FixtureRequest, folder: Path) -> packing.PackedModel:
    return pack(folder, request.param)


def test_the_same_bits_in_any_batch(packed: packing.PackedModel) -> None:
    want = compute(packed, alone())
    for steps in (together(), backwards(), token_by_token(), *map(at_random, range(6))):
        assert are_equal(compute(packed, steps), want)


@pytest.mark.parametrize("bits", BITS)
def test_the_same_bits_with_any_number_of_threads(folder: Path, bits: int) -> None:
    one, two, three = (compute(pack(folder, bits, threads), at_random(7)) for threads in (1, 2, 3))
    assert are_equal(one, two) and are_equal(one, three)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 13, 25, 40])
def test_the_same_bits_in_batches_of_every_size(packed: packing.PackedModel, size: int) -> None:
    """One sequence among `size` - 1 others, a token each."""
    forward = NativeForward(packed, size)

    def logits(rows: Sequence[int]) -> np.ndarray:
        plan = StepPlan(tuple(StepRow(f"{i}", (3 + 7 * i,), 0, (i,), True, SamplingParams()) for i in rows))
        return forward.logits(plan, range(len(rows))).numpy()

    everyone = logits(range(size))
    for i in {0, size // 2, size - 1}:
        assert np.array_equal(everyone[i], logits([i])[0])


def test_a_step_without_tokens_ends(packed: packing.PackedModel) -> None:
    """No phase of it has a piece whose end could begin the next one."""
    forward = NativeForward(packed, 1)
    assert forward._library.decoder_run(packed.team, forward._decoder, library.Step(), forward._workspace) == 0


def test_one_scale_for_all_activations_would_depend_on_the_batch() -> None:
    """What the tests above can see: the usual dynamic quantization fails them."""
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((4, 64)), rng.standard_normal((64, 8))

    def product(x: np.ndarray) -> np.ndarray:
        scale = np.abs(x).max() / 127
        return np.rint(x / scale) @ weights * scale

    assert not np.array_equal(product(x)[0], product(x[:1])[0])


@pytest.mark.parametrize(("bits", "most"), [(4, 0.7), (8, 0.08), (16, 0.015), (32, 1e-5)])
def test_logits_are_near_those_of_transformers(folder: Path, bits: int, most: float) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    got = compute(pack(folder, bits), together())
    ids = Sequences(NativeForward(pack(folder, bits), 1)).ids
    with torch.inference_mode():
        want = np.concatenate([model(torch.tensor([row])).logits[0].numpy() for row in ids])
    error = np.stack(list(got.values())) - want
    assert np.sqrt((error**2).mean() / (want**2).mean()) < most


def test_a_row_that_is_no_number_ends_alone(folder: Path) -> None:
    packed = pack(folder, 8)
    clean = compute(packed, together())
    with torch.no_grad():
        packed.embed.weight[2] = torch.nan
    sequences = Sequences(NativeForward(packed, BLOCKS_PER_ROW * len(LENGTHS)))
    sequences.ids[3][20] = 2
    logits = sequences.step(together()[0])
    for place, row in logits.items():
        if place[0] == 3 and place[1] >= 20:
            assert np.isnan(row).all()
        elif place[0] != 3:
            assert np.array_equal(row, clean[place])
    rows = tuple(sequences._row(i, 0, LENGTHS[i]) for i in range(len(LENGTHS)))
    results = TorchRunner(sequences.forward).run(StepPlan(rows)).rows
    assert [result.error is not None for result in results] == [i == 3 for i in range(len(LENGTHS))]
    assert results[3].is_corrupt and "not numbers" in str(results[3].error)


# ---- Where they can not be used.


def test_the_readme_names_those_they_know() -> None:
    named = re.search(r"### On the CPU\n\n(.+?) run on C kernels", README, re.DOTALL)
    assert named
    names = {name.replace(" ", "") for name in re.split(r", | and ", named[1].lower())}
    assert names == packing.MODEL_TYPES


class Config:
    """As much of a model's config as matters."""

    def __init__(self, **values: Any) -> None:
        defaults = {"model_type": "llama", "hidden_act": "silu", "hidden_size": 64, "num_attention_heads": 4}
        self.__dict__.update({**defaults, "intermediate_size": 128, **values})

    def get_text_config(self) -> "Config":
        return self


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"model_type": "gemma2"}, "architecture 'gemma2'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope'"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"head_dim": 24}, "head size 24"),
        ({"head_dim": 272}, "head size 272"),
        ({"num_attention_heads": 8}, "head size 8"),
        ({"mlp_bias": True}, "MLP with biases"),
        ({"intermediate_size": 100}, "MLP of 100 channels"),
    ],
)
def test_what_they_do_not_know_is_said_by_name(values: dict[str, Any], word: str) -> None:
    assert packing.refusal(Config()) is None
    assert word in str(packing.refusal(Config(**values)))


@pytest.mark.parametrize("overrides", [{"mlp_bias": True}, {"intermediate_size": 100}, {"hidden_act": "gelu"}])
def test_what_they_do_not_know_is_executed_by_modules(tmp_path: Path, overrides: dict[str, Any]) -> None:
    folder = make_checkpoint(tmp_path, "llama", **overrides)
    assert load_on_cpu(folder, dtype="bfloat16").packed is None


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine on which the kernels were never compiled; its folder for them."""
    monkeypatch.setattr(library.paths, "cache_dir", lambda: tmp_path)
    library.load.cache_clear()
    yield tmp_path / "kernels"
    monkeypatch.undo()
    library.load.cache_clear()


def without_compiler(patch: pytest.MonkeyPatch, folder: Path) -> str:
    patch.setattr(library, "compiler", lambda: None)
    return "no C compiler is installed"


def failing_compiler(patch: pytest.MonkeyPatch, folder: Path) -> str:
    broken = folder / "cc"
    broken.write_text("#!/bin/sh\necho 'main.c:1: error: stddef.h is missing' >&2\nexit 1\n")
    broken.chmod(0o755)
    patch.setattr(library, "compiler", lambda: str(broken))
    return "stddef.h is missing"


def vanished_compiler(patch: pytest.MonkeyPatch, folder: Path) -> str:
    patch.setattr(library, "compiler", lambda: str(folder / "gone"))
    return "could not be run"


def other_machine(patch: pytest.MonkeyPatch, folder: Path) -> str:
    patch.setattr(library.platform, "machine", lambda: "riscv64")
    return "this is riscv64"


def old_processor(patch: pytest.MonkeyPatch, folder: Path) -> str:
    patch.setattr(library, "FLAGS", tuple("-march=x86-64" if f == "-march=native" else f for f in library.FLAGS))
    patch.setattr(library, "SOURCES", ("linear.c",))  # less to wait for
    return "need AVX2 and FMA"


def unwritable_cache(patch: pytest.MonkeyPatch, folder: Path) -> str:
    (folder / "file").touch()
    patch.setattr(library.paths, "cache_dir", lambda: folder / "file")
    return "can not be written"


@pytest.mark.parametrize(
    "break_machine",
    [without_compiler, failing_compiler, vanished_compiler, other_machine, old_processor, unwritable_cache],
)
def test_without_them_transformers_modules_execute_it(
    folder: Path,
    unbuilt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    break_machine: Callable[[pytest.MonkeyPatch, Path], str],
) -> None:
    reason = break_machine(monkeypatch, tmp_path)
    with caplog.at_level(logging.INFO):
        loaded = load_on_cpu(folder, dtype="bfloat16")
    assert loaded.packed is None and loaded.info.quantize is None
    assert any("Transformers' modules" in line and reason in line for line in caplog.messages)
    if break_machine is without_compiler:
        promised = "executed by Transformers' modules: no C compiler is installed"
        assert f"`{promised}`" in README and any(line.startswith(promised) for line in caplog.messages)
    with pytest.raises(StartupError) as caught:
        load_on_cpu(folder, quantize="int8")
    assert "--quantize int8" in str(caught.value) and reason in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("kernels/*"))


def test_quantize_without_a_compiler_exits_with_2(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "app.py", "--port", "0", "--model-id", str(folder), "--quantize", "int8", "--disable-ui"],
        cwd=ROOT,
        env={**clean_environment(HF_HUB_OFFLINE="1", XDG_CACHE_HOME=str(tmp_path)), "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2, done.stderr
    assert "--quantize int8 needs the CPU kernels" in done.stderr and "no C compiler is installed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("dtype", "quantize"), [("bfloat16", "int8"), ("float16", "int8"), ("float32", None)])
def test_16_bit_checkpoints_are_served_in_8(tmp_path: Path, dtype: str, quantize: str | None) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_checkpoint(tmp_path)
    AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).save_pretrained(folder)
    loaded = load_on_cpu(folder)
    assert loaded.packed is not None and loaded.info.quantize == quantize


# ---- Compiling.

FAST = ("-std=gnu11", "-O0", "-march=native", "-Wno-psabi", "-pthread")  # the machine code does not matter here
COMPILE = """
import sys
from pathlib import Path
from tgi_local.model.native import library
library.paths.cache_dir = lambda: Path(sys.argv[1])
library.FLAGS = tuple(sys.argv[2:])
print(library.load().team_create(1) is not None)
"""


def test_processes_may_compile_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMPILE, str(tmp_path), *FAST]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=240)[0] for process in both] == ["True\n", "True\n"]
    assert [path.suffix for path in (tmp_path / "kernels").iterdir()] == [".so"], "nothing half done is left"


def test_a_library_of_other_sources_is_not_loaded(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {library._fingerprint()}
    monkeypatch.setattr(library, "FLAGS", FAST)
    names.add(library._fingerprint())
    monkeypatch.setattr(library, "compiler", lambda: "/opt/other/cc")
    names.add(library._fingerprint())
    monkeypatch.setattr(library, "_instructions", lambda: "flags: fpu")
    names.add(library._fingerprint())
    monkeypatch.setattr(library, "SOURCES", library.SOURCES[1:])
    names.add(library._fingerprint())
    assert len(names) == 5
    monkeypatch.undo()
    monkeypatch.setattr(library.paths, "cache_dir", lambda: unbuilt.parent)
    monkeypatch.setattr(library, "FLAGS", FAST)
    unbuilt.mkdir()
    old = [unbuilt / f"{name}.so" for name in names - {library._fingerprint()}]
    for path in old:
        path.write_bytes(b"not for this machine")
    assert library.load().team_create(1) is not None
    assert len(list(unbuilt.iterdir())) == len(old) + 1


@pytest.mark.long
def test_sources_compile_without_warnings(tmp_path: Path) -> None:
    """For either instruction set."""
    sources = [str(Path(library.__file__).parent / name) for name in library.SOURCES]
    for machine in ("x86-64-v3", "x86-64-v4"):
        flags = ["-std=gnu11", "-O1", f"-march={machine}", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
        done = subprocess.run(
            [str(library.compiler()), *flags, "-fsyntax-only", *sources], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


EXIT = """
import sys, threading
from pathlib import Path
import numpy as np
from tgi_local.model.native import library
lib = library.load()
pages = library.Pages(1 << 22)
team = lib.team_create(2)
class Owner: pass
owner = Owner()
library.when_gone(owner, lib.team_destroy, team)
weights, started = np.ones((1024, 1024), np.float32), threading.Event()
def work():
    while True:
        lib.linear_pack(team, 32, 1024, 1024, weights.ctypes.data, pages.address)
        started.set()
threading.Thread(target=work, daemon=True).start()
started.wait()
"""


def test_a_thread_that_computes_at_exit_crashes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", EXIT], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
