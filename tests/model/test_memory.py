"""What is left for the KV cache, and that the step it is measured with is the largest that can be planned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import make_checkpoint
from tgi_local.engine.step import OutOfMemoryError
from tgi_local.errors import StartupError
from tgi_local.model import memory
from tgi_local.model.block_attention import PlainKernel
from tgi_local.model.eager import EagerForward
from tgi_local.model.kv_cache import KVCache
from tgi_local.model.loader import LoadOptions, load
from tgi_local.model.memory import GraphPlan, StepLimits, cache_bytes, decode_step, free_for_cache, worst_step
from tgi_local.model.runner import TorchRunner

GIB = 1 << 30
BLOCK = 16
LIMITS = [
    StepLimits(128, 2048, 4096),
    StepLimits(1, 2048, 4096),
    StepLimits(1, 2048, 512),
    StepLimits(16, 16, 64),
    StepLimits(8, 4096, 131_072),
    StepLimits(64, 100, 2),
]


@pytest.mark.parametrize("limits", LIMITS)
def test_the_worst_step_is_legal_and_full(limits: StepLimits) -> None:
    plan = worst_step(limits, BLOCK)
    assert len(plan.rows) == min(limits.max_rows, limits.max_tokens)
    assert plan.num_tokens <= limits.max_tokens
    lens = [row.start + len(row.token_ids) for row in plan.rows]
    assert max(lens) <= limits.max_len and all(row.start >= 0 for row in plan.rows)
    assert plan.num_tokens == limits.max_tokens or all(
        len(row.token_ids) in (limits.max_len, memory.SCORED_CHUNK) for row in plan.rows
    ), "nothing more can be added"
    for row, length in zip(plan.rows, lens, strict=True):
        assert len(row.block_table) == -(-length // BLOCK) and set(row.block_table) == {0}
    assert len({row.request_id for row in plan.rows}) == len(plan.rows)
    assert all(row.is_sampling and row.history for row in plan.rows)


def test_the_worst_step_scores_as_many_tokens_as_may_be_scored() -> None:
    rows = worst_step(StepLimits(128, 2048, 4096), BLOCK).rows
    assert sum(len(row.logprob_targets) for row in rows) > 1900
    assert max(len(row.logprob_targets) for row in rows) < memory.SCORED_CHUNK


@pytest.mark.parametrize("kernel", [None, PlainKernel()], ids=["gathering", "kernel"])
@pytest.mark.parametrize("limits", [StepLimits(6, 600, 700), StepLimits(1, 40, 30)])
def test_the_worst_step_runs_in_a_cache_of_one_block(
    tmp_path: Path, kernel: PlainKernel | None, limits: StepLimits
) -> None:
    folder = make_checkpoint(tmp_path)
    loaded = load(folder, "tiny", None, False, LoadOptions(dtype="float32", device="cpu", may_pack=False))
    cache = KVCache(loaded.layer_shapes, 1, BLOCK, torch.float32, torch.device("cpu"))
    runner = TorchRunner(EagerForward(loaded, cache, kernel))
    for plan in (worst_step(limits, BLOCK), decode_step(limits.max_rows)):
        result = runner.run(plan)
        assert [row.error for row in result.rows] == [None] * len(plan.rows)


def test_what_is_left_is_what_nobody_needs_less_a_margin() -> None:
    numbers: dict[str, Any] = {"total": 100 * GIB, "reserved": 20 * GIB, "allocated": 16 * GIB, "fraction": 1.0}
    alone = cache_bytes(**numbers, free=79 * GIB, step=3 * GIB, graphs=GIB)
    assert alone == pytest.approx((99 - 16 - 3 - 1) * GIB * 0.9)
    beside_another = cache_bytes(**numbers, free=49 * GIB, step=3 * GIB, graphs=GIB)
    assert alone - beside_another == pytest.approx(30 * GIB * 0.9)
    half = cache_bytes(**{**numbers, "fraction": 0.5}, free=79 * GIB, step=3 * GIB, graphs=GIB)
    assert half == pytest.approx((50 - 16 - 3 - 1) * GIB * 0.9)
    assert cache_bytes(**numbers, free=GIB, step=30 * GIB, graphs=0) == 0


class Gpu:
    """A device whose steps take what they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, decode: int) -> None:
        self.plans: list[int] = []

        def measure(_: torch.device, run: Callable[[], object]) -> int:
            run()
            return step if self.plans[-1] > 8 else decode

        monkeypatch.setattr(memory, "measure", measure)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (79 * GIB, 80 * GIB))
        for name in ("memory_reserved", "memory_allocated"):
            monkeypatch.setattr(torch.cuda, name, lambda _: GIB // 2)

    def free(self, graphs: GraphPlan) -> int:
        run = lambda plan: self.plans.append(plan.num_tokens)  # noqa: E731
        return free_for_cache(torch.device("cuda"), 1.0, StepLimits(8, 64, 64), BLOCK, graphs, run)


def test_the_largest_step_and_the_largest_graph_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, step=4 * GIB, decode=GIB)
    without = gpu.free(GraphPlan())
    assert gpu.plans == [64]
    within = gpu.free(GraphPlan((1, 2, 4), GIB))
    assert gpu.plans[1:] == [64, 4]
    assert without - within == pytest.approx((2 * GIB + 3 * memory.GRAPH_BYTES) * 0.9)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, OutOfMemoryError])
def test_a_step_that_does_not_fit_is_one_line_with_the_flags_to_change(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    gpu = Gpu(monkeypatch, 0, 0)

    def fails(*_: object) -> int:
        raise kind("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")

    monkeypatch.setattr(memory, "measure", fails)
    with pytest.raises(StartupError) as caught:
        gpu.free(GraphPlan())
    line = str(caught.value)
    assert "\n" not in line and "64 tokens and 8 rows" in line
    assert "--max-batch-prefill-tokens" in line and "--quantize" in line
