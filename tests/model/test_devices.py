"""On a GPU nothing mixes tensors of two devices: the same code on tensors that only claim to be on one.

Such fake tensors hold no numbers, and every operation checks its arguments' devices; a torch that was built for CUDA
makes them without a GPU. What reads numbers back ends the run, which is as far as this reaches.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv

from tests.checkpoints import SHAPE, VOCAB_SIZE
from tests.model.test_decoding import random_rows
from tests.model.test_kernels import random_plans
from tgi_local.engine.step import StepRow
from tgi_local.model import attention, eager, filters, logits, rows, sampler
from tgi_local.model.attention import AttentionRules
from tgi_local.model.block_attention import BlockRows, PlainKernel
from tgi_local.model.eager import EagerForward
from tgi_local.model.kv_cache import KVCache, LayerShape
from tgi_local.model.loader import LoadedModel
from tgi_local.model.token_counts import TokenCounts

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is None, reason="this torch was built without CUDA"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is better than a fake one"),
    pytest.mark.filterwarnings("ignore"),
]

READS_BACK = (GuardOnDataDependentSymNode, AssertionError)  # the latter: bounds of a number that is not known


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    def to_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
        tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.tensor(values, dtype=dtype)
        return tensor.to(device)  # page-locked memory needs a driver

    class Upload:
        def __init__(self, device: torch.device) -> None:
            self._device = device

        def __call__(self, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
            return [torch.from_numpy(np.ascontiguousarray(array)).to(self._device) for array in arrays]

    for module in (filters, logits, rows, sampler):
        monkeypatch.setattr(module, "to_device", to_device)
    monkeypatch.setattr(filters, "largest", lambda numbers, count: numbers.topk(count))
    monkeypatch.setattr(eager, "Upload", Upload)
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        yield torch.device("cuda")


def choose(device: torch.device, step_rows: Sequence[StepRow]) -> None:
    counts = [TokenCounts(row) if row.history else None for row in step_rows]
    numbers = torch.randn(len(step_rows), 300, device=device)
    with pytest.raises(READS_BACK):
        sampler.sample(logits.process(numbers, step_rows, counts), step_rows)


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_of_tokens(gpu: torch.device, seed: int) -> None:
    choose(gpu, random_rows(9, seed))


def test_a_mixture_is_noticed(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "to_device", lambda values, _, dtype: torch.tensor(values, dtype=dtype))
    step_rows = random_rows(9, 0)
    counts = [TokenCounts(row) if row.history else None for row in step_rows]
    with pytest.raises(RuntimeError, match=r"two different devices|same device"):
        sampler.sample(logits.process(torch.randn(9, 300, device=gpu), step_rows, counts), step_rows)


class Kernel(PlainKernel):
    """Checks what it is given."""

    def __call__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: BlockRows, rules: AttentionRules
    ) -> torch.Tensor:
        tensors = (query, keys, values, rows.starts, rows.lens, rows.context_starts, rows.table)
        assert {tensor.device.type for tensor in tensors} == {"cuda"}
        return torch.empty_like(query)


@pytest.mark.parametrize("make_kernel", [lambda: None, Kernel], ids=["gathering", "kernel"])
@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 24}),
        ("gemma2", {"sliding_window": 24, "query_pre_attn_scalar": 16}),
    ],
)
def test_a_model(
    gpu: torch.device, model_type: str, overrides: dict[str, Any], make_kernel: Callable[[], Kernel | None]
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    attention.register()
    config = AutoConfig.for_model(model_type, **{**SHAPE, **overrides})
    with gpu:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention.NAME)
    shapes = (LayerShape(2, 16, 16),) * config.num_hidden_layers
    loaded = LoadedModel(model.eval(), shapes, torch.bfloat16, gpu, VOCAB_SIZE, info=None)  # type: ignore[arg-type]
    cache = KVCache(shapes, 128, 16, torch.bfloat16, gpu)
    forward = EagerForward(loaded, cache, make_kernel())
    seed = random.Random(model_type).randrange(100)
    with torch.no_grad():
        for plan, kept in random_plans(seed, 16):
            got = forward._logits(plan, kept)
            assert got.device.type == "cuda" and got.shape == (len(kept), VOCAB_SIZE) and got.dtype is torch.float32
