"""The most likely tokens of plain greedy rows, by the kernels."""

from collections.abc import Sequence

import numpy as np
import torch

from tgi_local.model.native import library
from tgi_local.types import SampledToken


class GreedyChooser:
    """Uses the threads of a packed model, between its steps."""

    def __init__(self, team: int) -> None:
        self._library = library.load()
        self._team = team

    def choose(self, logits: torch.Tensor, positions: Sequence[int]) -> list[SampledToken | None]:
        """A token for each of the rows `positions` of logits, float32 [rows, vocabulary]; None beside a NaN."""
        rows = np.asarray(positions, dtype=np.int32)
        ids, logprobs = np.empty(len(rows), dtype=np.int32), np.empty(len(rows), dtype=np.float32)
        self._library.greedy_run(
            self._team,
            logits.data_ptr(),
            rows.ctypes.data,
            len(rows),
            logits.shape[1],
            ids.ctypes.data,
            logprobs.ctypes.data,
        )
        return [
            SampledToken(token, logprob) if logprob == logprob else None
            for token, logprob in zip(ids.tolist(), logprobs.tolist(), strict=True)
        ]
