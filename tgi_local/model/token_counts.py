"""How often each token came in a sequence, kept from step to step: penalties cost the same at any length of context."""

from collections.abc import Sequence

import numpy as np

from tgi_local.engine.step import StepRow


class TokenCounts:
    """The distinct tokens of one sequence.

    Parallel arrays: `ids`; `seen`, how often in prompt and output; `generated`, how often in the output alone.
    """

    __slots__ = ("generated", "ids", "length", "seen", "step_index")

    def __init__(self, row: StepRow) -> None:
        history = np.fromiter(row.history, np.int64, len(row.history))
        self.ids, slots, counts = np.unique(history, return_inverse=True, return_counts=True)
        self.seen = counts.astype(np.float32)
        generated = np.bincount(slots[row.num_prompt_tokens :], minlength=len(self.ids))
        self.generated = generated.astype(np.float32)
        self.length = len(history)
        self.step_index = row.step_index

    def precedes(self, row: StepRow) -> bool:
        """Whether these are the counts of the step before, so that one token is all that came since."""
        return self.step_index + 1 == row.step_index and self.length + 1 == len(row.history)

    def add(self, token_id: int) -> None:
        """Count one more generated token."""
        found = np.flatnonzero(self.ids == token_id)
        if len(found) == 0:
            self.ids = np.append(self.ids, token_id)
            self.seen = np.append(self.seen, np.float32(1))
            self.generated = np.append(self.generated, np.float32(1))
        else:
            self.seen[found[0]] += 1
            self.generated[found[0]] += 1
        self.length += 1
        self.step_index += 1


class CountKeeper:
    """Owns the counts of the rows of the last step. Whoever was not in it, preempted or gone, is counted anew."""

    def __init__(self) -> None:
        self._counts: dict[str, TokenCounts] = {}

    def step(self, rows: Sequence[StepRow]) -> list[TokenCounts | None]:
        """The counts of each row; None for one without a rule that reads its history."""
        current: dict[str, TokenCounts] = {}
        for row in rows:
            if not row.history:
                continue
            counts = self._counts.get(row.request_id)
            if counts is not None and counts.precedes(row):
                counts.add(row.history[-1])
            else:
                counts = TokenCounts(row)
            current[row.request_id] = counts
        self._counts = current
        return [current.get(row.request_id) for row in rows]
