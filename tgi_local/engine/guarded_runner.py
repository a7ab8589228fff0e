"""A runner that may fail: what can be computed is, and only the rows that can not be get an error."""

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from tgi_local.engine.step import FatalModelError, OutOfMemoryError, RowResult, Runner, StepPlan, StepResult, StepRow

logger = logging.getLogger(__name__)

# Runs of one step that may fail before any succeeds: all rows, their halves, their quarters. Then it is not the rows.
MAX_FUTILE_RUNS = 7

FAILED = RowResult(error="the model failed in this step", is_corrupt=True)

Rows: TypeAlias = tuple[StepRow, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step: a result for each row of `plan`.

    `ran_out_at` is the number of tokens for which there was no memory, or 0; their rows are not in `plan`, and can be
    planned again.
    """

    plan: StepPlan
    result: StepResult
    ran_out_at: int = 0

    @property
    def has_failed(self) -> bool:
        """Whether rows were run and the model computed none of them."""
        return bool(self.result.rows) and all(row.is_corrupt for row in self.result.rows)


class GuardedRunner:
    """Owns the runner. Used by the engine thread only.

    Rows may be run again: they write the same keys and values to the same places, and nothing else changes before a
    step is booked. `last_return_s`, when the runner last returned or raised, may be read from any thread.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.last_return_s = time.monotonic()
        self.run_s = 0.0  # of the last plan, all its runs together

    def run(self, plan: StepPlan) -> Outcome:
        """Run `plan`; when that fails, its halves, and so on until rows fail alone, at least twice each.

        Raises FatalModelError.
        """
        self.run_s = 0.0
        results: dict[str, RowResult] = {}
        ran_out_at = num_failed = num_succeeded = 0
        parts = deque([plan.rows])
        while parts:
            rows = parts.popleft()
            is_hopeless = num_succeeded == 0 and num_failed >= MAX_FUTILE_RUNS
            try:
                result = None if is_hopeless else self._try(rows)
            except OutOfMemoryError as error:
                ran_out_at = _num_tokens(rows)
                logger.warning("no memory for a step of %d rows, %d tokens: %s", len(rows), ran_out_at, error)
                continue
            if result is not None:
                num_succeeded += 1
                results.update((row.request_id, outcome) for row, outcome in zip(rows, result.rows, strict=True))
                continue
            num_failed += 1
            if is_hopeless or (len(rows) == 1 and num_failed > 1):
                results.update((row.request_id, FAILED) for row in rows)
            else:
                parts.extend(_halves(rows))
        booked = tuple(row for row in plan.rows if row.request_id in results)
        return Outcome(StepPlan(booked), StepResult(tuple(results[row.request_id] for row in booked)), ran_out_at)

    def computes(self, row: StepRow) -> bool:
        """Whether the model computes anything: the token of this one row."""
        try:
            result = self._try((row,))
        except OutOfMemoryError:
            return False
        return result is not None and result.rows[0].token is not None

    def _try(self, rows: Rows) -> StepResult | None:
        """The result, or None when the runner failed. Raises OutOfMemoryError when fewer tokens may fit."""
        started = time.monotonic()
        try:
            return self._runner.run(StepPlan(rows))
        except FatalModelError:
            raise
        except OutOfMemoryError:
            if _num_tokens(rows) > 1:
                raise
            logger.exception("no memory for a single token")
        except Exception:
            logger.exception("a run of %d rows failed", len(rows))
        finally:
            self.last_return_s = time.monotonic()
            self.run_s += self.last_return_s - started
        return None


def _num_tokens(rows: Rows) -> int:
    return sum(len(row.token_ids) for row in rows)


def _halves(rows: Rows) -> list[Rows]:
    middle = len(rows) // 2
    return [part for part in (rows[:middle], rows[middle:]) if part]
