"""The forward pass by Transformers' own modules, with our attention in them."""

from collections.abc import Sequence

import numpy as np
import torch

from tgi_local.engine.step import StepPlan, StepRow
from tgi_local.model.attention import AttentionStep, DecodeRows, PagedStep, PrefillSpan
from tgi_local.model.block_attention import BlockRows, BlockStep, Kernel
from tgi_local.model.graphs import DecodeGraphs
from tgi_local.model.kv_cache import KVCache
from tgi_local.model.loader import LoadedModel
from tgi_local.model.step_inputs import PlanReader, StepArrays
from tgi_local.model.transfer import Upload

# Contexts are gathered for this many tokens at a time: a copy of all of them could be larger than the cache.
MAX_GATHERED_TOKENS = 1 << 16


class EagerForward:
    """Runs a Transformers model over the tokens of a step, its operations one by one. Owns its KV cache.

    With a kernel, attention reads the cache in place; without one it gathers every row's context for torch's own.
    """

    def __init__(self, loaded: LoadedModel, cache: KVCache, kernel: Kernel | None = None) -> None:
        self._model = loaded.model
        self.cache = cache
        self._kernel = kernel
        self._graphs: DecodeGraphs | None = None
        self._reader = PlanReader(cache.block_size)
        self._upload = Upload(loaded.device)
        self.device = loaded.device
        self.vocab_size = loaded.vocab_size

    @property
    def num_blocks(self) -> int:
        return self.cache.num_blocks

    @property
    def block_size(self) -> int:
        return self.cache.block_size

    def use_graphs(self, graphs: DecodeGraphs | None) -> None:
        """Let `graphs` compute the steps that they fit."""
        self._graphs = graphs

    def logits(self, plan: StepPlan, kept: Sequence[int]) -> torch.Tensor:
        """Logits float32 [len(kept), vocabulary] of the plan's tokens at the offsets `kept`."""
        if self.device.type != "cuda":
            return self._logits(plan, kept)
        with torch.cuda.device(self.device):  # some libraries launch their kernels on whatever device is current
            return self._logits(plan, kept)

    def _logits(self, plan: StepPlan, kept: Sequence[int]) -> torch.Tensor:
        if self._kernel is None:
            return self._gathering(plan, kept)
        arrays = self._reader.read(plan, kept)
        if self._graphs is not None and self._graphs.fits(arrays):
            return self._graphs.logits(arrays)
        ids, positions, kept_offsets, *tensors = self._upload(
            (arrays.ids, arrays.positions, arrays.kept, arrays.slots, *_rows_of(arrays))
        )
        step = _block_step(self.cache, self._kernel, arrays, tensors)
        return self._compute(ids, positions, step, kept_offsets).float()

    def compute_all(self, ids: torch.Tensor, positions: torch.Tensor, step: AttentionStep) -> torch.Tensor:
        """Logits [T, vocabulary] of all tokens, in the model's own dtype."""
        return self._compute(ids, positions, step, 0)

    def _compute(
        self, ids: torch.Tensor, positions: torch.Tensor, step: AttentionStep, kept: torch.Tensor | int
    ) -> torch.Tensor:
        """`kept` are the offsets of the tokens whose logits are wanted, or 0 for all."""
        output = self._model(
            input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=kept, paged=step
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _gathering(self, plan: StepPlan, kept: Sequence[int]) -> torch.Tensor:
        ids = np.concatenate([np.asarray(row.token_ids, dtype=np.int64) for row in plan.rows])
        positions = np.concatenate([np.arange(row.start, row.start + len(row.token_ids)) for row in plan.rows])
        kept_offsets = self._to_device(np.asarray(kept, dtype=np.int64))
        step = self._paged_step(plan)
        return self._compute(self._to_device(ids), self._to_device(positions), step, kept_offsets).float()

    def _paged_step(self, plan: StepPlan) -> PagedStep:
        """Slots of the new tokens, and each row's context: padded tables for decodes, one span per prefill."""
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
        return PagedStep(
            cache=self.cache,
            slots=self._to_device(np.concatenate(slots)),
            decodes=self._decode_rows(decode_tokens, decode_contexts),
            prefills=prefills,
        )

    def _decode_rows(self, tokens: Sequence[int], contexts: Sequence[np.ndarray]) -> list[DecodeRows]:
        """All decode rows at once, or as many as may be gathered together."""
        longest = max((len(context) for context in contexts), default=1)
        at_once = max(1, MAX_GATHERED_TOKENS // longest)
        groups = []
        for first in range(0, len(tokens), at_once):
            group = contexts[first : first + at_once]
            table = np.zeros((len(group), max(len(context) for context in group)), dtype=np.int64)
            for row, context in zip(table, group, strict=True):
                row[: len(context)] = context
                # Padding points at the row's own memory: masked or not, no row ever reads another's values.
                row[len(context) :] = context[0]
            offsets = np.asarray(tokens[first : first + at_once], dtype=np.int64)
            lens = np.asarray([len(context) for context in group], dtype=np.int64)
            groups.append(DecodeRows(self._to_device(offsets), self._to_device(table), self._to_device(lens)))
        return groups

    def _slots(self, row: StepRow, end: int) -> np.ndarray:
        """Cache slots of positions 0..end of a row."""
        blocks = np.asarray(row.block_table, dtype=np.int64)[:, None] * self.block_size
        return (blocks + np.arange(self.block_size)).reshape(-1)[:end]

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def _rows_of(arrays: StepArrays) -> list[np.ndarray]:
    """What kernels read of decode rows and of prefill rows, four arrays for each kind that is there."""
    split = arrays.num_decodes
    groups = []
    if split:
        groups += [arrays.starts[: split + 1], arrays.lens[:split], arrays.context_starts[: split + 1]]
        groups.append(arrays.table[:split])
    if split < arrays.num_rows:
        context_starts = arrays.context_starts[split:] - arrays.context_starts[split]
        groups += [arrays.starts[split:] - arrays.starts[split], arrays.lens[split:], context_starts]
        groups.append(arrays.table[split:])
    return groups


def _block_step(cache: KVCache, kernel: Kernel, arrays: StepArrays, tensors: Sequence[torch.Tensor]) -> BlockStep:
    """`tensors` are the slots and what `_rows_of` lists."""
    split = arrays.num_decodes
    slots, groups = tensors[0], list(tensors[1:])
    decodes = prefills = None
    if split:
        starts, lens, context_starts, table = groups[:4]
        decodes = BlockRows(starts, lens, context_starts, table, 1, int(arrays.lens[:split].max()))
    if split < arrays.num_rows:
        starts, lens, context_starts, table = groups[-4:]
        longest_new = int(np.diff(arrays.starts[split:]).max())
        prefills = BlockRows(starts, lens, context_starts, table, longest_new, int(arrays.lens[split:].max()))
    return BlockStep(cache, kernel, slots, decodes, prefills)
