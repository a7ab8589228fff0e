"""`python app.py` around a model that does what prompts tell it: fail, hang, die. All but the model is the real server.

python tests/faulty_server.py --model-id FOLDER_WITH_A_TOKENIZER ...
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

import app
from tests.fakes import FakeRunner
from tgi_local import assembly
from tgi_local.api import sse
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import Engine
from tgi_local.engine.engine_thread import EngineThread
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.engine.step import FatalModelError, OutOfMemoryError, RowResult, StepPlan, StepResult, StepRow
from tgi_local.model.hub import ModelSource
from tgi_local.model_info import GenerationDefaults, ModelInfo
from tgi_local.service import ServedModel
from tgi_local.settings import Settings
from tgi_local.text.chat_template import ChatTemplate
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.types import Limits, StepStats

VOCAB_SIZE = 400  # the model never says a token from there on; a prompt may
LITTLE_MEMORY = 8  # tokens per step
SLOW_STEP_S = 0.01
INFO = ModelInfo("fake", None, "float32", "cpu", None, "Fake", "cpu", 2048, False, GenerationDefaults(), frozenset())


STRIKE = threading.Event()
GO_ON = threading.Event()


class Fault(IntEnum):
    """Tokens that bring trouble to the steps of the request whose prompt begins with them, or to all from then on.

    The next token of the prompt is the number of tokens that the request gets before; SIGUSR1 brings it at once. Steps
    with any of them take SLOW_STEP_S.
    """

    RAISE = 400
    NAN = 401
    HANG = 402
    EXIT = 403
    LOSE_DEVICE = 404
    BREAK = 405  # every step fails from now on
    LITTLE_MEMORY = 406  # from now on
    SLOW = 407  # and no more than that
    PAUSE = 408  # one step waits for SIGUSR2


class FaultyRunner(FakeRunner):
    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks, block_size=16, vocab_size=VOCAB_SIZE)
        self._faults: dict[str, tuple[Fault, int]] = {}
        self._lasting: set[Fault] = set()

    def run(self, plan: StepPlan) -> StepResult:
        now = {row.request_id: self._fault_of(row) for row in plan.rows}
        faults = set(now.values())
        self._lasting |= faults & {Fault.BREAK, Fault.LITTLE_MEMORY}
        if Fault.RAISE in faults or Fault.BREAK in self._lasting:
            raise RuntimeError("on purpose")
        if Fault.HANG in faults:
            threading.Event().wait()
        if Fault.EXIT in faults:
            raise SystemExit(0)
        if Fault.LOSE_DEVICE in faults:
            raise FatalModelError("CUDA error: device-side assert triggered")
        if Fault.LITTLE_MEMORY in self._lasting and plan.num_tokens > LITTLE_MEMORY:
            raise OutOfMemoryError("tried to allocate 2 GiB")
        if any(
            now[row.request_id] is Fault.PAUSE and row.step_index == self._faults[row.request_id][1]
            for row in plan.rows
        ):
            GO_ON.wait()
            GO_ON.clear()
        if any(row.request_id in self._faults for row in plan.rows):
            time.sleep(SLOW_STEP_S)
        result = super().run(plan)
        if Fault.NAN not in faults:
            return result
        nan = RowResult(error="the model produced values that are not numbers", is_corrupt=True)
        pairs = zip(plan.rows, result.rows, strict=True)
        return StepResult(tuple(nan if now[row.request_id] is Fault.NAN else good for row, good in pairs))

    def _fault_of(self, row: StepRow) -> Fault | None:
        if row.start == 0 and row.token_ids[0] >= VOCAB_SIZE:
            num_before = row.token_ids[1] if len(row.token_ids) > 1 else 0
            self._faults[row.request_id] = Fault(row.token_ids[0]), num_before
        fault, num_before = self._faults.get(row.request_id, (None, 0))
        return fault if row.step_index >= num_before or STRIKE.is_set() else None


def load_model(
    settings: Settings,
    source: ModelSource,
    *,
    report: Callable[[str], None],
    on_step: Callable[[StepStats], None],
    on_death: Callable[[BaseException], None],
) -> ServedModel:
    """In the place of `assembly.load_model`."""
    num_tokens = settings.max_batch_total_tokens or 65_536
    runner = FaultyRunner(num_tokens // 16)
    limits = Limits(2, 4, 5, 2047, 2048, 4, settings.max_concurrent_requests, num_tokens, VOCAB_SIZE + len(Fault))
    blocks = BlockManager(runner.num_blocks, runner.block_size)
    scheduler = Scheduler(SchedulerLimits(settings.max_batch_size, settings.max_batch_prefill_tokens), blocks)
    stall_s = settings.stall_timeout or 600.0
    engine = EngineThread(Engine(scheduler, runner), on_step, on_death, stall_s)
    tokenizer = TextTokenizer.load(Path(settings.model_id))
    return ServedModel(INFO, limits, tokenizer, ChatTemplate(tokenizer), engine)


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment] # it takes seconds to import, and nothing here computes
    signal.signal(signal.SIGUSR1, lambda *_: STRIKE.set())
    signal.signal(signal.SIGUSR2, lambda *_: GO_ON.set())
    assembly.load_model = load_model
    sse.KEEP_ALIVE_S = float(os.environ.get("KEEP_ALIVE_S", sse.KEEP_ALIVE_S))
    app.main()
