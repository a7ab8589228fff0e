"""Kernels that read the block table compute what gathering contexts computes, and are chosen only where they do."""

import inspect
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.model.varlen_emulation import varlen_attn
from tgi_local.engine.step import StepPlan, StepRow
from tgi_local.model import kernel_choice
from tgi_local.model.attention import AttentionRules
from tgi_local.model.attention_varlen import VarlenKernel
from tgi_local.model.block_attention import BlockRows, Kernel, PlainKernel
from tgi_local.model.eager import EagerForward
from tgi_local.model.kernel_choice import check, choose_kernel, make_rows
from tgi_local.model.kv_cache import KVCache, LayerShape
from tgi_local.model.loader import LoadedModel, LoadOptions, load
from tgi_local.model.runner import build_runner
from tgi_local.types import SamplingParams

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPES = (LayerShape(2, 16, 16, group=2), LayerShape(2, 16, 16, group=1, window=40), LayerShape(1, 24, 24, group=3))


@pytest.fixture
def varlen(monkeypatch: pytest.MonkeyPatch) -> VarlenKernel:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    return VarlenKernel()


class Changed(PlainKernel):
    """A kernel that is wrong in one way."""

    def __init__(self, change: Callable[[torch.Tensor, BlockRows, AttentionRules], Any]) -> None:
        self._change = change

    def __call__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: BlockRows, rules: AttentionRules
    ) -> torch.Tensor:
        return super().__call__(*self._change(query, keys, values, rows, rules))


def test_the_emulation_has_the_signature_of_the_installed_function() -> None:
    from torch.nn.attention.varlen import varlen_attn as installed

    if "block_table" not in inspect.signature(installed).parameters:
        pytest.skip("this torch is older than the function")

    def form(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    assert form(varlen_attn) == form(installed)


def test_varlen_attn_is_called_so_that_it_computes_the_same(varlen: VarlenKernel) -> None:
    assert check(varlen, SHAPES, torch.float32, CPU) is None
    assert check(varlen, SHAPES, torch.bfloat16, CPU) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v, rows, rules: (q, k, v, rows, AttentionRules(None, rules.window and rules.window - 1)),
        lambda q, k, v, rows, rules: (q, k, v, rows, AttentionRules(0.26, rules.window)),
        lambda q, k, v, rows, rules: (q.flip(1), k, v, rows, rules),
        lambda q, k, v, rows, rules: (q, k, v.flip(0), rows, rules),
        lambda q, k, v, rows, rules: (q * float("nan"), k, v, rows, rules),
    ],
    ids=["window", "scale", "heads", "blocks", "nan"],
)
def test_a_kernel_that_is_wrong_is_noticed(change: Callable[..., Any]) -> None:
    assert "off by" in (check(Changed(change), SHAPES, torch.float32, CPU) or "")


def test_soft_caps_are_tried_where_a_layer_has_them() -> None:
    no_cap = Changed(lambda q, k, v, rows, rules: (q * 3, k, v, rows, AttentionRules(None, rules.window)))
    assert check(no_cap, (LayerShape(2, 16, 16, softcap=20.0),), torch.float32, CPU) is not None


# The whole model, step by step.

ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("mistral", {"sliding_window": 24}),
    ("gemma3_text", {"sliding_window": 24, "query_pre_attn_scalar": 16}),
    ("qwen3", {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 24}),
    ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
]
WITH_SOFTCAP = ("gemma2", {"sliding_window": 24, "query_pre_attn_scalar": 16})


def load_eager(folder: Path, model_type: str, overrides: dict[str, Any]) -> LoadedModel:
    make_checkpoint(folder, model_type, **overrides)
    return load(folder, model_type, None, False, LoadOptions(dtype="float32", device="cpu", may_pack=False))


def make_forward(loaded: LoadedModel, block_size: int, kernel: Kernel | None) -> EagerForward:
    cache = KVCache(loaded.layer_shapes, 2048 // block_size, block_size, loaded.dtype, CPU)
    for tensor in (*cache._keys, *cache._values):
        tensor.fill_(float("nan"))  # whoever reads what nobody wrote is found out
    return EagerForward(loaded, cache, kernel)


def random_plans(seed: int, block_size: int) -> list[tuple[StepPlan, list[int]]]:
    """Steps of rows that come and go: prefill chunks and decodes in any order, each with the logits it wants."""
    rng = random.Random(seed)
    free = list(range(2048 // block_size))
    rng.shuffle(free)
    lengths = {f"r{i}": rng.choice([1, 2, 17, 40, 90]) for i in range(4)}
    done = dict.fromkeys(lengths, 0)
    tables: dict[str, list[int]] = {name: [] for name in lengths}
    plans = []
    for _ in range(12):
        rows, kept, offset = [], [], 0
        for name in rng.sample(sorted(lengths), rng.randint(1, 4)):
            left = lengths[name] - done[name]
            num_new = min(left, rng.choice([1, 13, 64])) if left > 0 else 1
            while len(tables[name]) * block_size < done[name] + num_new:
                tables[name].append(free.pop())
            ids = tuple(rng.randrange(VOCAB_SIZE) for _ in range(num_new))
            rows.append(StepRow(name, ids, done[name], tuple(tables[name]), True, SamplingParams()))
            kept += rng.choice([[offset + num_new - 1], list(range(offset, offset + num_new)), []])
            done[name] += num_new
            offset += num_new
        plans.append((StepPlan(tuple(rows)), kept))
    return plans


def assert_same_logits(loaded: LoadedModel, kernel: Kernel) -> None:
    block_size = kernel.block_size(16)
    gathering, reading = make_forward(loaded, block_size, None), make_forward(loaded, block_size, kernel)
    with torch.inference_mode():
        for plan, kept in random_plans(0, block_size):
            want = gathering.logits(plan, kept)
            torch.testing.assert_close(reading.logits(plan, kept), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("model_type", "overrides"), ARCHITECTURES)
def test_varlen_attn_in_a_model(
    tmp_path: Path, varlen: VarlenKernel, model_type: str, overrides: dict[str, Any]
) -> None:
    loaded = load_eager(tmp_path, model_type, overrides)
    heads = loaded.model.config.num_attention_heads
    assert {shape.num_heads * shape.group for shape in loaded.layer_shapes} == {heads}
    assert {shape.window for shape in loaded.layer_shapes} <= {None, overrides.get("sliding_window")}
    assert varlen.refusal(loaded.layer_shapes, torch.bfloat16, (9, 0)) in (None, WITHOUT_FLASH)
    assert_same_logits(loaded, varlen)


@pytest.mark.parametrize(("model_type", "overrides"), [*ARCHITECTURES, WITH_SOFTCAP])
def test_plain_torch_in_a_model(tmp_path: Path, model_type: str, overrides: dict[str, Any]) -> None:
    loaded = load_eager(tmp_path, model_type, overrides)
    assert all((shape.softcap is not None) == (model_type == "gemma2") for shape in loaded.layer_shapes)
    assert_same_logits(loaded, PlainKernel())


# The choice.

WITHOUT_FLASH = "this torch was built without FlashAttention"


@pytest.mark.parametrize(
    ("shapes", "dtype", "capability", "reason"),
    [
        (SHAPES, torch.bfloat16, (8, 0), None),
        (SHAPES, torch.float16, (12, 0), None),
        (SHAPES, torch.bfloat16, (7, 5), "7.5"),
        (SHAPES, torch.float32, (9, 0), "float32"),
        ((LayerShape(2, 16, 16, softcap=20.0),), torch.bfloat16, (9, 0), "cap"),
        ((*SHAPES, LayerShape(2, 20, 20)), torch.bfloat16, (9, 0), "20"),
        ((LayerShape(2, 192, 128),), torch.bfloat16, (9, 0), "192"),
        ((LayerShape(2, 512, 512),), torch.bfloat16, (9, 0), "512"),
    ],
)
def test_what_varlen_attn_refuses(
    monkeypatch: pytest.MonkeyPatch,
    shapes: Sequence[LayerShape],
    dtype: torch.dtype,
    capability: tuple[int, int],
    reason: str | None,
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    said = VarlenKernel().refusal(shapes, dtype, capability)
    assert said is None if reason is None else reason in (said or "")


def test_an_older_torch_has_no_block_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(query: torch.Tensor, key: torch.Tensor) -> None: ...

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", older)
    assert "without block_table, num_splits" in (VarlenKernel().refusal(SHAPES, torch.bfloat16, (9, 0)) or "")


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice for CUDA, tried on the CPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    real = kernel_choice.check
    monkeypatch.setattr(kernel_choice, "check", lambda kernel, shapes, dtype, _: real(kernel, shapes, dtype, CPU))


def test_on_the_cpu_contexts_are_gathered() -> None:
    assert choose_kernel(SHAPES, torch.bfloat16, CPU) is None


@pytest.mark.usefixtures("on_a_gpu")
def test_the_first_kernel_that_is_right_is_chosen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(_: torch.device) -> Kernel:
        raise ModuleNotFoundError("No module named 'triton'")

    wrong = Changed(lambda q, k, v, rows, rules: (q * 2, k, v, rows, rules))
    right = PlainKernel()
    candidates = (("absent", missing), ("wrong", lambda _: wrong), ("right", lambda _: right))
    monkeypatch.setattr(kernel_choice, "CANDIDATES", candidates)
    with caplog.at_level(logging.INFO):
        assert choose_kernel(SHAPES, torch.float32, CUDA) is right
    assert "plain torch" in caplog.text


@pytest.mark.usefixtures("on_a_gpu")
def test_without_any_kernel_contexts_are_gathered_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = Changed(lambda q, k, v, rows, rules: (q * 2, k, v, rows, rules))
    monkeypatch.setattr(kernel_choice, "CANDIDATES", (("first", lambda _: wrong), ("second", lambda _: VarlenKernel())))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    assert choose_kernel((LayerShape(2, 512, 512),), torch.bfloat16, CUDA) is None
    assert "first: its results are off by" in caplog.text and "second: it does not take heads of 512" in caplog.text


def test_rows_made_up_have_blocks_of_their_own() -> None:
    rows = make_rows((1, 5), (40, 5), 16, CPU)
    used = [*rows.table[0].tolist(), rows.table[1, 0].item()]
    assert sorted(used) == list(range(4))
    assert rows.starts.tolist() == [0, 1, 6] and rows.context_starts.tolist() == [0, 40, 45]


@pytest.mark.parametrize(("sizes", "is_said"), [([1, 2], True), ([0], False), (None, False)])
def test_graphs_that_can_not_be_had_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sizes: list[int] | None, is_said: bool
) -> None:
    loaded = load_eager(tmp_path, "llama", {})
    build_runner(loaded, block_size=16, min_tokens=16, max_tokens=64, requested_tokens=64, graph_sizes=sizes)
    assert ("--cuda-graphs has no effect" in caplog.text) is is_said
