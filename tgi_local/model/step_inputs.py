"""A step plan as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tgi_local.engine.step import StepPlan, StepRow


@dataclass(frozen=True, slots=True)
class StepArrays:
    """The tokens of a step end to end, rows with one new token first, and what attention needs to know of the rows.

    T tokens, N kept ones, R rows, M blocks of the longest row: `ids`, `positions` and `slots` [T] and `kept` [N] are
    int64; `starts` and `context_starts` [R + 1], `lens` [R] and `table` [R, M] int32, of which the first
    `num_decodes` rows have one new token each. `max_new` and the two longest contexts are over the rows they name.
    """

    ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    kept: np.ndarray
    starts: np.ndarray
    lens: np.ndarray
    context_starts: np.ndarray
    table: np.ndarray
    num_decodes: int

    @property
    def num_rows(self) -> int:
        return len(self.lens)

    @property
    def is_decode(self) -> bool:
        """Whether every row has one new token and wants its logits."""
        return self.num_decodes == self.num_rows == len(self.kept)


class PlanReader:
    """Turns plans into arrays. Keeps what a running row's block table was, which rarely changes between steps."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._tables: dict[str, tuple[tuple[int, ...], np.ndarray]] = {}

    def read(self, plan: StepPlan, kept: Sequence[int]) -> StepArrays:
        """Arrays of `plan`; `kept` are offsets among its tokens, in its own order."""
        order = sorted(range(len(plan.rows)), key=lambda i: len(plan.rows[i].token_ids) > 1)
        rows = [plan.rows[i] for i in order]
        num_new = np.array([len(row.token_ids) for row in rows], dtype=np.int64)
        starts = _running_sum(num_new)
        lens = np.array([row.start for row in rows], dtype=np.int64) + num_new
        tables = self._read_tables(rows)
        table = np.zeros((len(rows), max(len(blocks) for blocks in tables)), dtype=np.int32)
        for row, blocks in zip(table, tables, strict=True):
            row[: len(blocks)] = blocks
            row[len(blocks) :] = blocks[0]  # its own memory, though nobody reads it
        row_of_token = np.repeat(np.arange(len(rows)), num_new)
        positions = np.arange(starts[-1]) - starts[row_of_token] + (lens - num_new)[row_of_token]
        blocks = table[row_of_token, positions // self._block_size].astype(np.int64)
        return StepArrays(
            ids=np.fromiter((i for row in rows for i in row.token_ids), dtype=np.int64, count=int(starts[-1])),
            positions=positions,
            slots=blocks * self._block_size + positions % self._block_size,
            kept=_reordered(np.asarray(kept, dtype=np.int64), plan, order, starts),
            starts=starts.astype(np.int32),
            lens=lens.astype(np.int32),
            context_starts=_running_sum(lens).astype(np.int32),
            table=table,
            num_decodes=int((num_new == 1).sum()),
        )

    def _read_tables(self, rows: Sequence[StepRow]) -> list[np.ndarray]:
        fresh = {}
        for row in rows:
            known = self._tables.get(row.request_id)
            if known is None or (known[0] is not row.block_table and known[0] != row.block_table):
                known = row.block_table, np.array(row.block_table, dtype=np.int32)
            fresh[row.request_id] = known
        self._tables = fresh
        return [fresh[row.request_id][1] for row in rows]


def _running_sum(counts: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], counts.cumsum()))


def _reordered(kept: np.ndarray, plan: StepPlan, order: Sequence[int], starts: np.ndarray) -> np.ndarray:
    """Offsets in the plan's own order of rows -> offsets in ours."""
    before = _running_sum(np.array([len(row.token_ids) for row in plan.rows], dtype=np.int64))
    after = np.empty(len(order), dtype=np.int64)
    after[list(order)] = starts[:-1]
    row_of_kept = np.searchsorted(before, kept, side="right") - 1
    return kept - before[row_of_kept] + after[row_of_kept]
