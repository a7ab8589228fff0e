"""schedule -> run -> update: one step of continuous batching."""

import logging
import time

from tgi_local.engine.scheduler import Scheduler
from tgi_local.engine.step import Runner, StepPlan, StepResult
from tgi_local.types import GenerationRequest, StepStats, TokenEvent

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_FAILURES = 3


class EngineFailedError(RuntimeError):
    """The model failed several steps in a row; the engine gives up."""


class Engine:
    """Owns scheduler and runner. Synchronous; one thread may call it."""

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._num_failures = 0
        self._forward_s = 0.0  # of the last step

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. Raises ValueError for one that can never run."""
        self._scheduler.add(request)

    def cancel(self, request_id: str) -> bool:
        return self._scheduler.cancel(request_id)

    def step(self) -> tuple[list[TokenEvent], StepStats]:
        """Run one step. A failing model ends the rows of that step; raises EngineFailedError when it keeps failing."""
        started = time.monotonic()
        num_preempted, num_cached = self._scheduler.num_preempted, self._scheduler.num_cached_prompt_tokens
        plan = self._scheduler.schedule()
        if plan is None:
            return [], self._stats(StepPlan(()), started)
        result = self._run(plan)
        if result is None:
            events = self._scheduler.fail([row.request_id for row in plan.rows], "the model failed in this step")
        else:
            events = self._scheduler.update(plan, result)
        num_preempted = self._scheduler.num_preempted - num_preempted
        num_cached = self._scheduler.num_cached_prompt_tokens - num_cached
        return events, self._stats(plan, started, num_preempted, num_cached, failed=result is None)

    def fail_all(self, reason: str) -> list[TokenEvent]:
        """End every request with an error event."""
        return self._scheduler.fail(self._scheduler.request_ids(), reason)

    def check_invariants(self) -> None:
        self._scheduler.blocks.check_invariants()

    def _run(self, plan: StepPlan) -> StepResult | None:
        started = time.monotonic()
        try:
            result = self._runner.run(plan)
        except Exception as error:
            self._num_failures += 1
            logger.exception("step of %d rows failed (%d in a row)", len(plan.rows), self._num_failures)
            if self._num_failures >= MAX_CONSECUTIVE_FAILURES:
                raise EngineFailedError(f"{self._num_failures} steps failed in a row") from error
            return None
        finally:
            self._forward_s = time.monotonic() - started
        self._num_failures = 0
        return result

    def stats(self) -> StepStats:
        """The present state, outside a step."""
        return self._stats(StepPlan(()), time.monotonic())

    def _stats(
        self, plan: StepPlan, started: float, num_preempted: int = 0, num_cached: int = 0, *, failed: bool = False
    ) -> StepStats:
        num_generated = sum(row.is_sampling for row in plan.rows)
        blocks = self._scheduler.blocks
        return StepStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_prompt_tokens=sum(len(row.token_ids) for row in plan.rows if row.step_index == 0),
            num_generated_tokens=0 if failed else num_generated,
            num_preempted=num_preempted,
            used_blocks=blocks.num_used,
            num_blocks=blocks.num_blocks,
            step_s=time.monotonic() - started,
            num_cached_prompt_tokens=num_cached,
            forward_s=self._forward_s,
            num_prefill_rows=sum(row.step_index == 0 for row in plan.rows),
            max_tokens=self._scheduler.max_running_tokens,
            failed=failed,
        )
