"""Stand-ins with the real interfaces: a model without torch."""

import zlib
from collections import Counter
from collections.abc import Callable

from tgi_local.engine.step import RowResult, StepPlan, StepResult, StepRow
from tgi_local.types import SampledToken, TokenLogprob


class FakeRunner:
    """Remembers what each cache position holds and derives every next token from the whole cached context.

    As in a real model, what a position holds depends on all tokens before it: a position is worth something only
    after the ones it was computed after. A wrong block table, position or mixed-up row changes the answer, so exact answers prove the bookkeeping. Writing
    to a block that another row reads, and a row without work, raise.
    """

    def __init__(self, num_blocks: int = 64, block_size: int = 4, vocab_size: int = 1000) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.num_steps = 0
        self.before_step: Callable[[StepPlan], None] = lambda plan: None
        self._cache: dict[tuple[int, int], tuple[int, int]] = {}  # (block, offset) -> (token, digest up to it)

    def run(self, plan: StepPlan) -> StepResult:
        self.before_step(plan)
        self.num_steps += 1
        self._check_writes(plan)
        return StepResult(tuple(self._run_row(row) for row in plan.rows))

    def _run_row(self, row: StepRow) -> RowResult:
        end = row.start + len(row.token_ids)
        slots = [(row.block_table[p // self.block_size], p % self.block_size) for p in range(end)]
        digest = 0
        for slot in slots[: row.start]:
            token_id, cached = self._cache[slot]
            digest = hash((digest, token_id))
            if cached != digest:
                raise RuntimeError(f"{row.request_id} reads a position computed after other tokens")
        for slot, token_id in zip(slots[row.start :], row.token_ids, strict=True):
            digest = hash((digest, token_id))
            self._cache[slot] = token_id, digest
        context = [self._cache[slot][0] for slot in slots] if row.is_sampling else []
        target_logprobs = tuple(TokenLogprob(target, -1.0) for target in row.logprob_targets)
        token = SampledToken(next_token(context, self.vocab_size), -1.0) if row.is_sampling else None
        return RowResult(token, target_logprobs=target_logprobs)

    def _check_writes(self, plan: StepPlan) -> None:
        num_rows = Counter(block for row in plan.rows for block in row.block_table)
        for row in plan.rows:
            if not row.token_ids:
                raise RuntimeError(f"{row.request_id} has a row without work")
            first, last = row.start // self.block_size, (row.start + len(row.token_ids) - 1) // self.block_size
            if any(num_rows[block] > 1 for block in row.block_table[first : last + 1]):
                raise RuntimeError(f"{row.request_id} writes to a block that another row reads")


def next_token(context: list[int], vocab_size: int = 1000) -> int:
    """The token the fake model chooses after `context`; never id 0."""
    return zlib.crc32(repr(context).encode()) % (vocab_size - 1) + 1


def expected_output(prompt: list[int], num_tokens: int, vocab_size: int = 1000) -> list[int]:
    """What the fake model generates when it is alone."""
    context = list(prompt)
    for _ in range(num_tokens):
        context.append(next_token(context, vocab_size))
    return context[len(prompt) :]
