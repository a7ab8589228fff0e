"""What deciding costs: microseconds of schedule() and update() per step, without a model."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.engine.step import RowResult, StepPlan, StepResult
from tgi_local.types import GenerationRequest, SampledToken, SamplingParams, StopParams

BLOCK_SIZE = 16
NUM_NEW = 100_000
PLAIN = SamplingParams()
WITH_HISTORY = SamplingParams(repetition_penalty=1.1)
TOKEN = RowResult(SampledToken(7, -0.5))
NOTHING = RowResult()


def make_scheduler(num_tokens: int, *, max_batch_size: int = 128) -> Scheduler:
    return Scheduler(SchedulerLimits(max_batch_size, 2048), BlockManager(num_tokens // BLOCK_SIZE, BLOCK_SIZE))


def add(scheduler: Scheduler, name: str, prompt: tuple[int, ...], max_new: int = NUM_NEW, **fields: object) -> None:
    sampling = fields.pop("sampling", PLAIN)
    assert isinstance(sampling, SamplingParams)
    scheduler.add(GenerationRequest(name, "", prompt, sampling, StopParams(max_new), **fields))  # type: ignore[arg-type]


def book(scheduler: Scheduler, plan: StepPlan) -> None:
    scheduler.update(plan, StepResult(tuple(TOKEN if row.is_sampling else NOTHING for row in plan.rows)))


def step_times(scheduler: Scheduler, num_steps: int) -> Iterator[float]:
    """Seconds of schedule() and update() of each step; making the result is not counted."""
    for _ in range(num_steps):
        started = time.perf_counter()
        plan = scheduler.schedule()
        scheduled = time.perf_counter()
        assert plan is not None
        result = StepResult(tuple(TOKEN if row.is_sampling else NOTHING for row in plan.rows))
        updating = time.perf_counter()
        scheduler.update(plan, result)
        yield scheduled - started + time.perf_counter() - updating


def best_us(scheduler: Scheduler, num_steps: int = 300) -> float:
    """The mean step of the best run of 32: neither the machine's other jobs nor the full blocks' share is in it twice."""
    times = list(step_times(scheduler, num_steps))
    runs = [sum(times[i : i + 32]) / 32 for i in range(0, len(times) - 31, 8)]
    return min(runs) * 1e6


def decoding(batch_size: int, context: int, *, finished: int = 0, sampling: SamplingParams = PLAIN) -> float:
    scheduler = make_scheduler(batch_size * (context + NUM_NEW + 1000))
    for i in range(finished):
        add(scheduler, f"finished {i}", (i % 1000, i // 1000, *range(40)), 1)
        if i % 128 == 127:
            finish(scheduler)
    finish(scheduler)
    for i in range(batch_size):
        add(scheduler, f"r{i}", (i, *range(context - 1)), sampling=sampling)
    prefill(scheduler, batch_size)
    return best_us(scheduler)


def finish(scheduler: Scheduler) -> None:
    while (plan := scheduler.schedule()) is not None:
        book(scheduler, plan)


def prefill(scheduler: Scheduler, batch_size: int) -> None:
    """Step until all of a batch decode."""
    while (plan := scheduler.schedule()) is not None:
        book(scheduler, plan)
        if len(plan.rows) == batch_size and all(row.is_sampling for row in plan.rows):
            return


def queued(num_waiting: int) -> float:
    """128 rows decode and as many requests as given wait for a place."""
    scheduler = make_scheduler(128 * (NUM_NEW + 2000))
    for i in range(128 + num_waiting):
        add(scheduler, f"r{i}", (i, *range(100)), principal=f"p{i % 50}")
    prefill(scheduler, 128)
    return best_us(scheduler)


def copies(num_copies: int, length: int, num_blocks: int) -> tuple[float, float]:
    """The dearest and the usual one of the first steps of as many equal prompts, of which one is computed."""
    dearest, usual = float("inf"), float("inf")
    for _ in range(5):
        scheduler = make_scheduler(num_blocks * BLOCK_SIZE)
        for i in range(num_copies):
            add(scheduler, f"r{i}", tuple(range(length)), 64)
        times = list(step_times(scheduler, 40))
        dearest, usual = min(dearest, max(times)), min(usual, statistics.median(times))
    return dearest * 1e6, usual * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--finished", type=int, default=100_000)
    options = parser.parse_args()
    figures = {
        "decode, 1 row": decoding(1, 1000),
        "decode, 32 rows": decoding(32, 1000),
        "decode, 128 rows": decoding(128, 1000),
        "decode, 128 rows, finished before": decoding(128, 1000, finished=options.finished),
        "decode, 32 rows of 32k tokens": decoding(32, 32_000),
        "decode, 32 rows of 32k tokens, penalties": decoding(32, 32_000, sampling=WITH_HISTORY),
        "decode, 128 rows, 1000 waiting": queued(1000),
        "128 copies of 31k tokens, dearest step": copies(128, 31_000, 8 * 31_000 // BLOCK_SIZE)[0],
        "the same, waiting for room, usual step": copies(128, 31_000, 31_000 // BLOCK_SIZE + 6)[1],
    }
    for name, us in figures.items():
        print(f"{name:50} {us:10.1f} us")
    print(json.dumps({name: round(us, 1) for name, us in figures.items()}))


if __name__ == "__main__":
    main()
