"""From the logits of a step to its tokens."""

from collections.abc import Sequence

import torch

from tgi_local.engine.step import StepRow
from tgi_local.model.logits import process
from tgi_local.model.sampler import sample
from tgi_local.model.token_counts import CountKeeper
from tgi_local.model.transfer import to_device
from tgi_local.types import SampledToken

# Logits worked on at once by a CPU, 4 MB of them: what one rule writes is still in its cache when the next one reads.
CPU_CHUNK = 2**20


class TokenChooser:
    """Owns what is remembered of each sequence between steps. Used by the engine thread only."""

    def __init__(self) -> None:
        self._counts = CountKeeper()

    def choose(
        self, logits: torch.Tensor, positions: Sequence[int], rows: Sequence[StepRow]
    ) -> list[SampledToken | None]:
        """One token per row; None for a row whose logits are not numbers.

        Row i has its logits at `positions[i]` of `logits`, float32 [positions, vocabulary], which are not written to.
        """
        counts = self._counts.step(rows)
        tokens: list[SampledToken | None] = []
        size = max(1, CPU_CHUNK // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(rows))
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            chunk = process(_select(logits, positions[part]), rows[part], counts[part])
            tokens += sample(chunk, rows[part])
        return tokens


def _select(logits: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """The logits at `positions`, without a copy when they follow each other."""
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions):  # they ascend
        return logits[first : last + 1]
    return logits.index_select(0, to_device(positions, logits.device, torch.long))
