"""The forward pass by Transformers' own modules, with our attention in them."""

from collections.abc import Sequence

import numpy as np
import torch

from tgi_local.engine.step import StepPlan, StepRow
from tgi_local.model.attention import PagedStep, PrefillSpan
from tgi_local.model.kv_cache import KVCache
from tgi_local.model.loader import LoadedModel
from tgi_local.model.native.greedy import GreedyChooser


class EagerForward:
    """Runs a Transformers model over the tokens of a step. Owns its KV cache."""

    def __init__(self, loaded: LoadedModel, cache: KVCache) -> None:
        self._model = loaded.model
        self._cache = cache
        self.device = loaded.device
        self.greedy: GreedyChooser | None = None

    @property
    def num_blocks(self) -> int:
        return self._cache.num_blocks

    @property
    def block_size(self) -> int:
        return self._cache.block_size

    def logits(self, plan: StepPlan, kept: Sequence[int]) -> torch.Tensor:
        """Logits float32 [len(kept), vocabulary] of the plan's tokens at the offsets `kept`."""
        ids = np.concatenate([np.asarray(row.token_ids, dtype=np.int64) for row in plan.rows])
        positions = np.concatenate([np.arange(row.start, row.start + len(row.token_ids)) for row in plan.rows])
        output = self._model(
            input_ids=self._to_device(ids)[None],
            position_ids=self._to_device(positions)[None],
            use_cache=False,
            logits_to_keep=self._to_device(np.asarray(kept, dtype=np.int64)),
            paged=self._paged_step(plan),
        )
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def _paged_step(self, plan: StepPlan) -> PagedStep:
        """Slots of the new tokens, and each row's context: one padded table for decodes, one span per prefill."""
        slots, decode_tokens, decode_contexts, prefills = [], [], [], []
        offset = 0
        for row in plan.rows:
            end = row.start + len(row.token_ids)
            context = self._slots(row, end)
            slots.append(context[row.start :])
            if len(row.token_ids) == 1 and row.start > 0:
                decode_tokens.append(offset)
                decode_contexts.append(context)
            else:
                earlier = self._to_device(context) if row.start > 0 else None
                prefills.append(PrefillSpan(offset, offset + len(row.token_ids), row.start, earlier))
            offset += len(row.token_ids)
        longest = max((len(context) for context in decode_contexts), default=0)
        table = np.zeros((len(decode_contexts), longest), dtype=np.int64)
        for i, context in enumerate(decode_contexts):
            table[i, : len(context)] = context
            # Padding points at the row's own memory: masked or not, no row ever reads another's values.
            table[i, len(context) :] = context[0]
        return PagedStep(
            cache=self._cache,
            slots=self._to_device(np.concatenate(slots)),
            decode_tokens=self._to_device(np.asarray(decode_tokens, dtype=np.int64)),
            decode_slots=self._to_device(table),
            decode_lens=self._to_device(np.asarray([len(c) for c in decode_contexts], dtype=np.int64)),
            prefills=prefills,
        )

    def _slots(self, row: StepRow, end: int) -> np.ndarray:
        """Cache slots of positions 0..end of a row."""
        blocks = np.asarray(row.block_table, dtype=np.int64)[:, None] * self.block_size
        return (blocks + np.arange(self.block_size)).reshape(-1)[:end]

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)
