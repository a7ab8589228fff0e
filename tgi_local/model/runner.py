"""Turns a step plan into one forward pass and its result back into plain data."""

import numpy as np
import psutil
import torch

from tgi_local.engine.step import RowResult, StepPlan, StepResult, StepRow
from tgi_local.model import logits as logits_rules
from tgi_local.model import sampler
from tgi_local.model.attention import PagedStep, PrefillSpan
from tgi_local.model.kv_cache import KVCache, bytes_per_token, choose_num_blocks
from tgi_local.model.loader import LoadedModel
from tgi_local.types import SampledToken, SamplingParams


class TorchRunner:
    """Owns the model and its KV cache. Used by the engine thread only."""

    def __init__(self, loaded: LoadedModel, cache: KVCache) -> None:
        self._model = loaded.model
        self._device = loaded.device
        self._cache = cache

    @property
    def num_blocks(self) -> int:
        return self._cache.num_blocks

    @property
    def block_size(self) -> int:
        return self._cache.block_size

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Compute all rows in one pass. Rows whose logits are not numbers get an error, the others their tokens."""
        kept = _kept_positions(plan)
        logits = self._forward(plan, kept)
        sampling = [(i, row) for i, row in enumerate(plan.rows) if row.is_sampling]
        last = torch.tensor([kept.last_of_row[i] for i, _ in sampling], dtype=torch.long, device=self._device)
        rows = [row for _, row in sampling]
        tokens = sampler.sample(logits_rules.process(logits[last], rows), rows) if rows else []
        sampled = {i: token for (i, _), token in zip(sampling, tokens, strict=True)}
        return StepResult(
            tuple(
                _row_result(sampled.get(i), row, _target_logprobs(logits, kept.first_of_row[i], row))
                for i, row in enumerate(plan.rows)
            )
        )

    def _forward(self, plan: StepPlan, kept: "_Kept") -> torch.Tensor:
        """Logits float32 [kept positions, vocabulary]."""
        ids = np.concatenate([np.asarray(row.token_ids, dtype=np.int64) for row in plan.rows])
        positions = np.concatenate([np.arange(row.start, row.start + len(row.token_ids)) for row in plan.rows])
        output = self._model(
            input_ids=self._to_device(ids)[None],
            position_ids=self._to_device(positions)[None],
            use_cache=False,
            logits_to_keep=self._to_device(np.asarray(kept.positions, dtype=np.int64)),
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
        return torch.from_numpy(array).to(self._device)


class _Kept:
    """Which token positions of a step need logits, and where each row's first and last of them are."""

    __slots__ = ("first_of_row", "last_of_row", "positions")

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.first_of_row: list[int] = []
        self.last_of_row: list[int] = []


def _kept_positions(plan: StepPlan) -> _Kept:
    kept = _Kept()
    offset = 0
    for row in plan.rows:
        end = offset + len(row.token_ids)
        kept.first_of_row.append(len(kept.positions))
        if row.logprob_targets:
            kept.positions.extend(range(offset, end))
        elif row.is_sampling:
            kept.positions.append(end - 1)
        kept.last_of_row.append(len(kept.positions) - 1)
        offset = end
    return kept


def _target_logprobs(logits: torch.Tensor, first: int, row: StepRow) -> tuple[float, ...]:
    """Log-probabilities of the row's prompt tokens, from unmodified logits."""
    if not row.logprob_targets:
        return ()
    count = len(row.logprob_targets)
    targets = torch.tensor(row.logprob_targets, dtype=torch.long, device=logits.device)
    scored = logits[first : first + count]
    # Equal to log_softmax at the targets, without a second tensor of [count, vocabulary].
    return tuple((scored.gather(1, targets[:, None])[:, 0] - scored.logsumexp(dim=-1)).tolist())


def _row_result(token: SampledToken | None, row: StepRow, target_logprobs: tuple[float, ...]) -> RowResult:
    error = None
    if row.is_sampling and token is None:
        what = "values that are not numbers" if row.constraint is None else "no token that the grammar allows"
        error = f"the model produced {what}"
    is_corrupt = error is not None and row.constraint is None
    return RowResult(token, error, is_corrupt, target_logprobs)


def build_runner(
    loaded: LoadedModel,
    *,
    block_size: int,
    min_tokens: int,
    max_tokens: int,
    requested_tokens: int | None,
    memory_fraction: float = 1.0,
) -> TorchRunner:
    """Size the KV cache for the memory that is free after loading, allocate it, and warm up.

    `min_tokens` is the longest single request, `max_tokens` what is useful at most, `requested_tokens` what the user
    asked for, `memory_fraction` the share of a GPU that this process may use. Raises StartupError when it does not fit.
    """
    token_bytes = bytes_per_token(loaded.layer_shapes, loaded.dtype)
    free = free_memory_bytes(loaded.device, memory_fraction)
    num_blocks = choose_num_blocks(token_bytes, free, block_size, min_tokens, max_tokens, requested_tokens)
    cache = KVCache(loaded.layer_shapes, num_blocks, block_size, loaded.dtype, loaded.device)
    runner = TorchRunner(loaded, cache)
    runner.run(StepPlan((StepRow("warm-up", (0,), 0, (0,), True, SamplingParams()),)))
    return runner


def free_memory_bytes(device: torch.device, fraction: float = 1.0) -> int:
    """What the KV cache may take: 85 % of the GPU memory that is free and ours, or a quarter of the available RAM."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(min(free, total * fraction - torch.cuda.memory_reserved(device)) * 0.85)
    return int(psutil.virtual_memory().available * 0.25)
