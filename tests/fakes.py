"""Stand-ins with the real interfaces: a model without torch."""

import zlib
from collections.abc import Callable

from tgi_local.engine.step import RowResult, StepPlan, StepResult, StepRow
from tgi_local.types import SampledToken


class FakeRunner:
    """Remembers what each cache position holds and derives every next token from the whole cached context.

    A wrong block table, position or mixed-up row changes the answer, so exact answers prove the bookkeeping.
    """

    def __init__(self, num_blocks: int = 64, block_size: int = 4, vocab_size: int = 1000) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.num_steps = 0
        self.before_step: Callable[[StepPlan], None] = lambda plan: None
        self._cache: dict[tuple[int, int], int] = {}

    def run(self, plan: StepPlan) -> StepResult:
        self.before_step(plan)
        self.num_steps += 1
        return StepResult(tuple(self._run_row(row) for row in plan.rows))

    def _run_row(self, row: StepRow) -> RowResult:
        for position, token_id in enumerate(row.token_ids, row.start):
            block = row.block_table[position // self.block_size]
            self._cache[block, position % self.block_size] = token_id
        if not row.is_sampling:
            return RowResult()
        end = row.start + len(row.token_ids)
        context = [self._cache[row.block_table[p // self.block_size], p % self.block_size] for p in range(end)]
        return RowResult(SampledToken(next_token(context, self.vocab_size), -1.0))


def next_token(context: list[int], vocab_size: int = 1000) -> int:
    """The token the fake model chooses after `context`; never id 0."""
    return zlib.crc32(repr(context).encode()) % (vocab_size - 1) + 1


def expected_output(prompt: list[int], num_tokens: int, vocab_size: int = 1000) -> list[int]:
    """What the fake model generates when it is alone."""
    context = list(prompt)
    for _ in range(num_tokens):
        context.append(next_token(context, vocab_size))
    return context[len(prompt) :]
