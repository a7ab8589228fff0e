"""From the logits of a step to its tokens."""

from collections.abc import Sequence
from itertools import compress

import torch

from tgi_local.engine.step import StepRow
from tgi_local.model.logits import has_rule, process
from tgi_local.model.native.greedy import GreedyChooser
from tgi_local.model.sampler import sample
from tgi_local.model.token_counts import CountKeeper, TokenCounts
from tgi_local.model.transfer import to_device
from tgi_local.types import SampledToken

# Logits worked on at once by a CPU, 4 MB of them: what one rule writes is still in its cache when the next one reads.
CPU_CHUNK = 2**20


class TokenChooser:
    """Owns what is remembered of each sequence between steps. Used by the engine thread only."""

    def __init__(self, greedy: GreedyChooser | None = None) -> None:
        self._counts = CountKeeper()
        self._greedy = greedy

    def choose(
        self, logits: torch.Tensor, positions: Sequence[int], rows: Sequence[StepRow]
    ) -> list[SampledToken | None]:
        """One token per row; None for a row whose logits are not numbers.

        Row i has its logits at `positions[i]` of `logits`, float32 [positions, vocabulary], which are not written to.
        """
        counts = self._counts.step(rows)
        if self._greedy is None:
            return self._by_rules(logits, positions, rows, counts)
        is_plain = [_is_plain(row) for row in rows]
        plain = iter(self._greedy.choose(logits, list(compress(positions, is_plain))))
        others = [i for i, row_is_plain in enumerate(is_plain) if not row_is_plain]
        ruled = self._by_rules(
            logits, [positions[i] for i in others], [rows[i] for i in others], [counts[i] for i in others]
        )
        rest = iter(ruled)
        return [next(plain if row_is_plain else rest) for row_is_plain in is_plain]

    def _by_rules(
        self,
        logits: torch.Tensor,
        positions: Sequence[int],
        rows: Sequence[StepRow],
        counts: Sequence[TokenCounts | None],
    ) -> list[SampledToken | None]:
        tokens: list[SampledToken | None] = []
        size = max(1, CPU_CHUNK // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(rows))
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            chunk = process(_select(logits, positions[part]), rows[part], counts[part])
            tokens += sample(chunk, rows[part])
        return tokens


def _is_plain(row: StepRow) -> bool:
    """Whether its token is the most likely one, and nothing else is asked."""
    return row.sampling.is_greedy and not row.sampling.top_n_tokens and not has_rule(row)


def _select(logits: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """The logits at `positions`, without a copy when they follow each other."""
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions):  # they ascend
        return logits[first : last + 1]
    return logits.index_select(0, to_device(positions, logits.device, torch.long))
