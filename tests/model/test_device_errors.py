"""What the engine hears when a forward pass fails: too little memory, a lost device, or the error itself."""

import weakref
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from tgi_local.engine.step import FatalModelError, OutOfMemoryError, StepPlan, StepRow
from tgi_local.model import device_errors, runner
from tgi_local.model.runner import TorchRunner
from tgi_local.types import SamplingParams

PLAN = StepPlan((StepRow("r", (1,), 0, (0,), True, SamplingParams()),))


class Failing:
    """A forward pass that ends as the test says; `activation` is what it held in memory."""

    num_blocks, block_size = 4, 4
    device = torch.device("cpu")

    def __init__(self, fail: Callable[[], object]) -> None:
        self.fail = fail
        self.activation: weakref.ref[torch.Tensor] | None = None

    def logits(self, plan: StepPlan, kept: Sequence[int]) -> torch.Tensor:
        activation = torch.zeros(1000)
        self.activation = weakref.ref(activation)
        self.fail()
        raise AssertionError("it was to fail")


def raising(error: Exception) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


def raising_new(kind: type[Exception], *args: object) -> Callable[[], object]:
    """Each time another one: an exception that the test holds would hold the pass, too."""

    def fail() -> object:
        raise kind(*args)

    return fail


@pytest.mark.parametrize(
    "fail",
    [
        raising_new(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"),
        raising_new(RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        lambda: torch.empty(2**50),
        lambda: np.zeros(2**50),
    ],
    ids=["cuda", "cublas", "cpu", "numpy"],
)
def test_too_little_memory(fail: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Failing(fail)
    still_held: list[bool] = []

    def note(device: torch.device) -> None:
        assert forward.activation is not None
        still_held.append(forward.activation() is not None)

    monkeypatch.setattr(runner, "free_cached_memory", note)
    with pytest.raises(OutOfMemoryError) as caught:
        TorchRunner(forward).run(PLAN)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is None and caught.value.__context__ is None
    assert still_held == [False], "the failed pass must be gone before the reserve is given back"


def test_a_lost_device_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_errors, "_works", lambda device: False)
    with pytest.raises(FatalModelError, match="device-side assert"):
        TorchRunner(Failing(raising(torch.AcceleratorError("CUDA error: device-side assert triggered")))).run(PLAN)


def test_an_error_after_which_the_device_works_is_not() -> None:
    error = torch.AcceleratorError("CUDA error: invalid configuration argument")
    with pytest.raises(torch.AcceleratorError) as caught:
        TorchRunner(Failing(raising(error))).run(PLAN)
    assert caught.value is error


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), IndexError("out of range"), KeyError(7)])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        TorchRunner(Failing(raising(error))).run(PLAN)
    assert caught.value is error
