"""schedule -> run -> update: one step of continuous batching."""

import logging
import time

from tgi_local.engine.guarded_runner import GuardedRunner, Outcome
from tgi_local.engine.scheduler import Counts, Scheduler
from tgi_local.engine.step import Runner, StepPlan, StepResult, StepRow
from tgi_local.types import GenerationRequest, SamplingParams, StepStats, TokenEvent

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_FAILURES = 3

_NOTHING = Outcome(StepPlan(()), StepResult(()))


class EngineFailedError(RuntimeError):
    """The model failed several steps in a row; the engine gives up."""


class Engine:
    """Owns scheduler and runner. Synchronous; one thread may call it."""

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self._scheduler = scheduler
        self._runner = GuardedRunner(runner)
        self._num_failures = 0  # steps in a row

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def last_return_s(self) -> float:
        """When the model last returned, on the monotonic clock. May be read from any thread."""
        return self._runner.last_return_s

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. Raises ValueError for one that can never run."""
        self._scheduler.add(request)

    def cancel(self, request_id: str) -> bool:
        return self._scheduler.cancel(request_id)

    def step(self) -> tuple[list[TokenEvent], StepStats]:
        """Run one step. Rows that the model can not compute end with an error; for want of memory, steps get smaller.

        Raises FatalModelError, and EngineFailedError when the model keeps failing.
        """
        started = time.monotonic()
        plan = self._scheduler.schedule()
        if plan is None:
            return [], self._stats(started, _NOTHING, self._scheduler.take_counts())
        outcome = self._runner.run(plan)
        events = self._scheduler.update(outcome.plan, outcome.result)
        self._learn(outcome)
        return events, self._stats(started, outcome, self._scheduler.take_counts(), plan.rows)

    def fail_all(self, reason: str) -> list[TokenEvent]:
        """End every request with an error event."""
        return self._scheduler.fail(self._scheduler.request_ids(), reason)

    def check_invariants(self) -> None:
        self._scheduler.blocks.check_invariants()

    def stats(self) -> StepStats:
        """The present state, outside a step."""
        return self._stats(time.monotonic(), _NOTHING, Counts())

    def _learn(self, outcome: Outcome) -> None:
        """Size the next steps by this one, and give up on a model that keeps failing."""
        if outcome.ran_out_at:
            self._scheduler.budget.ran_out(outcome.ran_out_at)
        elif not outcome.has_failed:
            self._scheduler.budget.step_done()
            if self._scheduler.pace is not None:
                self._scheduler.pace.learn(outcome.plan, self._runner.run_s)
        if not outcome.has_failed:
            self._num_failures = 0
            return
        self._num_failures += 1
        if self._num_failures < MAX_CONSECUTIVE_FAILURES:
            return
        if not self._model_is_well():
            raise EngineFailedError(f"{self._num_failures} steps in a row failed, and so did a token made up as a test")
        logger.warning("%d steps in a row failed, but not the model: it was their requests", self._num_failures)
        self._num_failures = 0

    def _model_is_well(self) -> bool:
        """Try one token of our own, lest one client's request, sent again and again, ends the server for all.

        There is a free block to try it in: each failed row has just given one back.
        """
        block = self._scheduler.blocks.unused_block()
        if block is None:
            return False
        return self._runner.computes(StepRow("test", (0,), 0, (block,), True, SamplingParams()))

    def _stats(self, started: float, outcome: Outcome, counts: Counts, rows: tuple[StepRow, ...] = ()) -> StepStats:
        scheduler = self._scheduler
        return StepStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            used_blocks=scheduler.blocks.num_used,
            num_blocks=scheduler.blocks.num_blocks,
            max_tokens=scheduler.max_running_tokens,
            max_step_tokens=scheduler.budget.tokens,
            step_s=time.monotonic() - started,
            forward_s=self._runner.run_s,
            num_rows=len(rows),
            num_prefill_rows=sum(row.is_prefill for row in rows),
            num_prompt_tokens=counts.num_prompt_tokens,
            num_cached_prompt_tokens=counts.num_cached_prompt_tokens,
            num_recomputed_tokens=counts.num_recomputed_tokens,
            num_generated_tokens=counts.num_generated_tokens,
            num_preempted=counts.num_preempted,
            failed=bool(rows) and (outcome.has_failed or not outcome.plan.rows),
        )
