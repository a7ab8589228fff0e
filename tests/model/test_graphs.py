"""Decode steps of captured sizes compute the same as one by one, in memory that is theirs, or are not used at all.

What a graph does on a GPU, a captured function does here: it runs again on the same tensors, whatever they hold then.
"""

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.model.test_parity import NUM_NEW, make_request, reference, run, token_ids
from tests.model.varlen_emulation import varlen_attn
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import Engine
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.engine.step import StepPlan, StepRow
from tgi_local.model.attention_varlen import VarlenKernel
from tgi_local.model.block_attention import Kernel, PlainKernel
from tgi_local.model.eager import EagerForward
from tgi_local.model.graphs import DecodeGraphs, choose_sizes
from tgi_local.model.kv_cache import KVCache
from tgi_local.model.loader import LoadedModel, LoadOptions, load
from tgi_local.model.runner import TorchRunner, capture_decodes
from tgi_local.types import SamplingParams

CPU = torch.device("cpu")
SIZES = (1, 2, 4, 8)
PROMPT_LENS = (1, 2, 3, 15, 16, 17, 31, 33, 64, 100, 150, 7)


class Replays:
    """Captures by keeping the function; counts what is run again."""

    def __init__(self) -> None:
        self.num_captured = 0
        self.num_replayed = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        function()
        self.num_captured += 1

        def replay() -> None:
            self.num_replayed += 1
            function()

        return replay


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load(folder, "tiny", None, False, LoadOptions(dtype="float32", device="cpu", may_pack=False))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, VOCAB_SIZE) for _ in range(n)] for n in PROMPT_LENS]


@pytest.fixture(scope="module")
def expected(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    return reference(folder, prompts)


@pytest.fixture(params=["plain", "varlen"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    yield VarlenKernel() if request.param == "varlen" else PlainKernel()


def make_forward(loaded: LoadedModel, kernel: Kernel, num_tokens: int = 8192) -> EagerForward:
    block_size = kernel.block_size(16)
    cache = KVCache(loaded.layer_shapes, -(-num_tokens // block_size), block_size, loaded.dtype, CPU, has_scratch=True)
    return EagerForward(loaded, cache, kernel)


def with_graphs(forward: EagerForward, kernel: Kernel, capture: Callable, max_len: int = 512) -> DecodeGraphs | None:  # type: ignore[type-arg]
    graphs = capture_decodes(forward, kernel, SIZES, max_len, capture)
    forward.use_graphs(graphs)
    return graphs


def make_engine(forward: EagerForward, batch_size: int = 64, batch_tokens: int = 4096) -> Engine:
    blocks = BlockManager(forward.num_blocks, forward.block_size)
    return Engine(Scheduler(SchedulerLimits(batch_size, batch_tokens), blocks), TorchRunner(forward))


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("limits", [(64, 4096), (12, 40)], ids=["whole", "chunked"])
def test_the_same_tokens(
    loaded: LoadedModel,
    kernel: Kernel,
    prompts: list[list[int]],
    expected: list[list[int]],
    seed: int | None,
    limits: tuple[int, int],
) -> None:
    forward = make_forward(loaded, kernel)
    replays = Replays()
    assert with_graphs(forward, kernel, replays) is not None
    checks = replays.num_replayed
    engine = make_engine(forward, *limits)
    requests = [make_request(i, prompt) for i, prompt in enumerate(prompts)]
    events = run(engine, requests, None if seed is None else random.Random(seed))
    assert [token_ids(events[f"r{i}"]) for i in range(len(prompts))] == expected
    assert replays.num_replayed > checks or seed is None, "twelve rows at once are more than the largest size"


def test_preempted(loaded: LoadedModel, prompts: list[list[int]], expected: list[list[int]]) -> None:
    kernel = PlainKernel()
    forward = make_forward(loaded, kernel, num_tokens=192)
    with_graphs(forward, kernel, Replays())
    engine = make_engine(forward, batch_size=6)
    events = run(engine, [make_request(i, prompt) for i, prompt in enumerate(prompts)])
    assert [token_ids(events[f"r{i}"]) for i in range(len(prompts))] == expected
    assert engine._scheduler.num_preempted > 0


def decode_plan(num_rows: int, start: int = 20) -> StepPlan:
    rows = (
        StepRow(f"r{i}", (3 + i,), start + i, (2 * i + 1, 2 * i + 2, 2 * i + 3), True, SamplingParams())
        for i in range(num_rows)
    )
    return StepPlan(tuple(rows))


def all_kept(plan: StepPlan) -> range:
    return range(len(plan.rows))


@pytest.mark.parametrize("num_rows", [1, 3, 5, 8])
def test_rows_that_fill_up_a_step_touch_nothing_of_others(loaded: LoadedModel, num_rows: int) -> None:
    kernel = PlainKernel()
    forward = make_forward(loaded, kernel, num_tokens=512)
    with_graphs(forward, kernel, Replays())
    cache = forward.cache
    plan = decode_plan(num_rows)
    written = {row.block_table[row.start // 16] * 16 + row.start % 16 for row in plan.rows}
    scratch = set(range(cache.scratch_block * 16, cache.scratch_block * 16 + 16))
    before = [tensor.clone() for tensor in (*cache._keys, *cache._values)]
    with torch.inference_mode():
        forward.logits(plan, all_kept(plan))
    for old, new in zip(before, (*cache._keys, *cache._values), strict=True):
        changed = set((old != new).flatten(1).any(1).nonzero()[:, 0].tolist())
        assert changed - scratch == written


def test_no_row_reads_anothers_memory(loaded: LoadedModel) -> None:
    """Blocks outside the step hold values that are not numbers, and so do those of earlier, wider steps."""
    kernel = PlainKernel()
    forward = make_forward(loaded, kernel, num_tokens=1024)
    with_graphs(forward, kernel, Replays())
    wide = StepPlan((StepRow("wide", (5,), 400, tuple(range(30, 56)), True, SamplingParams()),) * 1)
    plan = decode_plan(3)
    with torch.inference_mode():
        forward.logits(wide, [0])
        want = forward.logits(plan, all_kept(plan)).clone()
        own = {block for row in plan.rows for block in row.block_table}
        for tensor in (*forward.cache._keys, *forward.cache._values):
            blocks = tensor.view(-1, 16, *tensor.shape[1:])
            for block in set(range(forward.num_blocks)) - own:
                blocks[block] = float("nan")
        assert torch.equal(forward.logits(plan, all_kept(plan)), want)


def test_what_does_not_fit_is_computed_one_by_one(loaded: LoadedModel) -> None:
    kernel = PlainKernel()
    forward, plainly = make_forward(loaded, kernel), make_forward(loaded, kernel)
    replays = Replays()
    graphs = with_graphs(forward, kernel, replays, max_len=128)
    assert graphs is not None and graphs.sizes == SIZES
    too_long = StepPlan((StepRow("long", (5,), 200, tuple(range(13)), True, SamplingParams()),))
    chunk = StepPlan((StepRow("chunk", (5, 6), 0, (0,), True, SamplingParams()),))
    silent = StepPlan((StepRow("silent", (5,), 0, (0,), False, SamplingParams()),))
    checks = replays.num_replayed
    with torch.inference_mode():
        for plan, kept in [(decode_plan(9), range(9)), (too_long, [0]), (chunk, [1]), (silent, [])]:
            torch.testing.assert_close(forward.logits(plan, kept), plainly.logits(plan, kept))
        assert replays.num_replayed == checks
        forward.logits(decode_plan(8), range(8))
        assert replays.num_replayed == checks + 1


def refuses(function: Callable[[], None]) -> Callable[[], None]:
    function()
    raise RuntimeError("called a synchronizing CUDA operation\nmore")


def does_nothing(function: Callable[[], None]) -> Callable[[], None]:
    function()
    return lambda: None


@pytest.mark.parametrize(
    ("capture", "reason"), [(refuses, "synchronizing"), (does_nothing, "something else")], ids=["waits", "unfaithful"]
)
def test_what_can_not_be_captured_is_computed_one_by_one(
    loaded: LoadedModel,
    caplog: pytest.LogCaptureFixture,
    capture: Callable[..., Callable[[], None]],
    reason: str,
) -> None:
    kernel = PlainKernel()
    forward = make_forward(loaded, kernel)
    with caplog.at_level(logging.INFO):
        assert with_graphs(forward, kernel, capture) is None
    assert reason in caplog.text and "more" not in caplog.text
    plan = decode_plan(2)
    with torch.inference_mode():
        assert forward.logits(plan, all_kept(plan)).isfinite().all()


def test_a_graph_that_keeps_its_first_inputs_is_not_used(loaded: LoadedModel) -> None:
    """As one would whose kernels ran at the capture only, or read memory that was copied then."""
    kernel = PlainKernel()
    forward = make_forward(loaded, kernel)
    graphs = DecodeGraphs(
        forward.compute_all,
        forward.cache,
        kernel,
        sizes=SIZES,
        max_len=64,
        vocab_size=forward.vocab_size,
        device=CPU,
    )

    def frozen(function: Callable[[], None]) -> Callable[[], None]:
        function()
        first = graphs._logits.clone()

        def replay() -> None:
            graphs._logits.copy_(first)

        return replay

    graphs.capture(frozen)
    assert graphs.sizes == ()


@pytest.mark.parametrize(
    ("requested", "max_batch_size", "sizes"),
    [
        (None, 1, (1,)),
        (None, 6, (1, 2, 4, 6)),
        (None, 128, (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)),
        (None, 300, (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 300)),
        ([1, 2, 4, 8, 16, 32], 128, (1, 2, 4, 8, 16, 32)),
        ([32, 8, 8, 500], 128, (8, 32)),
        ([0], 128, ()),
    ],
)
def test_sizes(requested: list[int] | None, max_batch_size: int, sizes: tuple[int, ...]) -> None:
    assert choose_sizes(requested, max_batch_size) == sizes


def test_requests_are_as_long_as_the_parity_tests_say() -> None:
    assert NUM_NEW > 16, "so that every row comes to a new block"
