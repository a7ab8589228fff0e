"""Rules that change logits before a token is chosen: functions on float32 [rows, vocabulary].

Order and formulas: TGI (watermark, repetition, frequency), OpenAI's additive penalties and bias after them, then the end
that must not come yet; grammars last.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from tgi_local.constraints import TokenConstraint
from tgi_local.engine.step import StepRow
from tgi_local.model.rows import put_rows, take_rows
from tgi_local.model.token_counts import TokenCounts
from tgi_local.model.transfer import to_device
from tgi_local.model.watermark import green_list

# Beyond these a repetition penalty excludes or repeats for any model, and float32 would overflow.
MIN_REPETITION_PENALTY = 1e-6
MAX_REPETITION_PENALTY = 1e6

# The eight bits of every byte, the lowest first, as numbers: to look masks up is faster than to shift and compare.
_BITS = torch.from_numpy(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float32)
)
_LIMITS = torch.where(_BITS > 0, float("inf"), float("-inf"))


def process(logits: torch.Tensor, rows: Sequence[StepRow], counts: Sequence[TokenCounts | None]) -> torch.Tensor:
    """Apply every rule the rows ask for; rows that ask for none are untouched, and so is the tensor given.

    `counts` are those of each row's history, None for a row without.
    """
    if not any(has_rule(row) for row in rows):
        return logits
    logits = logits.clone(memory_format=torch.contiguous_format)
    _favour_green(logits, rows)
    _penalize(logits, rows, counts)
    _add_bias(logits, rows)
    _postpone_end(logits, rows)
    _constrain(logits, rows)
    return logits


def has_rule(row: StepRow) -> bool:
    """Whether anything changes the row's logits before a token is chosen."""
    return bool(
        row.history
        or row.constraint is not None
        or row.sampling.logit_bias
        or row.sampling.watermark is not None
        or _must_go_on(row)
    )


def _must_go_on(row: StepRow) -> bool:
    return row.step_index < row.sampling.min_new_tokens


def _favour_green(logits: torch.Tensor, rows: Sequence[StepRow]) -> None:
    """The last token known chooses whom the next one is drawn from more often."""
    marks = {i: row.sampling.watermark for i, row in enumerate(rows) if row.sampling.watermark is not None}
    if not marks:
        return
    indices = list(marks)
    packed = [green_list(rows[i].token_ids[-1], logits.shape[1], mark.gamma) for i, mark in marks.items()]
    deltas = to_device([[mark.delta] for mark in marks.values()], logits.device, logits.dtype)
    part = take_rows(logits, indices)
    put_rows(logits, indices, part + _unpack(_BITS, np.stack(packed), part) * deltas)


def _penalize(logits: torch.Tensor, rows: Sequence[StepRow], counts: Sequence[TokenCounts | None]) -> None:
    """Touches only the tokens that have come before."""
    counted = [(i, rows[i].sampling, count) for i, count in enumerate(counts) if count is not None]
    if not counted:
        return
    sizes = [len(count.ids) for *_, count in counted]

    def spread(values: Sequence[float]) -> torch.Tensor:
        """One value per row to one per token of that row."""
        return to_device(np.repeat(np.array(values, dtype=np.float32), sizes), logits.device)

    starts = np.repeat(np.array([i * logits.shape[1] for i, *_ in counted]), sizes)
    index = to_device(starts + np.concatenate([count.ids for *_, count in counted]), logits.device)
    seen = to_device(np.concatenate([count.seen for *_, count in counted]), logits.device)
    generated = to_device(np.concatenate([count.generated for *_, count in counted]), logits.device)
    flat = logits.view(-1)
    found = flat.index_select(0, index)
    repetition = spread(
        [min(max(p.repetition_penalty, MIN_REPETITION_PENALTY), MAX_REPETITION_PENALTY) for _, p, _ in counted]
    )
    found = torch.where(found > 0, found / repetition, found * repetition)
    found = found - spread([p.relative_frequency_penalty for _, p, _ in counted]) * seen / spread(
        [count.length for *_, count in counted]
    )
    found = found - spread([p.frequency_penalty for _, p, _ in counted]) * generated
    found = found - spread([p.presence_penalty for _, p, _ in counted]) * (generated > 0)
    flat.index_copy_(0, index, found)


def _add_bias(logits: torch.Tensor, rows: Sequence[StepRow]) -> None:
    biased = [(i, token, bias) for i, row in enumerate(rows) for token, bias in row.sampling.logit_bias]
    if biased:
        index = to_device([(i, token) for i, token, _ in biased], logits.device).T
        values = to_device([bias for *_, bias in biased], logits.device, logits.dtype)
        logits.index_put_((index[0], index[1]), values, accumulate=True)


def _postpone_end(logits: torch.Tensor, rows: Sequence[StepRow]) -> None:
    early = [
        (i, token)
        for i, row in enumerate(rows)
        if _must_go_on(row) and row.constraint is None
        for token in row.sampling.end_token_ids
        if token < logits.shape[1]  # a checkpoint can name any
    ]
    if early:
        index = to_device(early, logits.device).T
        logits[index[0], index[1]] = float("-inf")


def _constrain(logits: torch.Tensor, rows: Sequence[StepRow]) -> None:
    """Exclude what a row's grammar does not allow. Masks are computed while a GPU is still busy with the step."""
    masks = {i: _allowed_tokens(row, row.constraint) for i, row in enumerate(rows) if row.constraint is not None}
    if masks:
        packed = np.frombuffer(bytearray().join(masks.values()), dtype=np.uint8).reshape(len(masks), -1)
        part = take_rows(logits, list(masks))
        put_rows(logits, list(masks), torch.minimum(part, _unpack(_LIMITS, packed, part)))


def _allowed_tokens(row: StepRow, constraint: TokenConstraint) -> bytes | bytearray:
    allowed = constraint.allowed_tokens()
    if not _must_go_on(row):
        return allowed
    others = bytearray(allowed)
    for token in row.sampling.end_token_ids:
        if token // 8 < len(others):
            others[token // 8] &= ~(1 << token % 8) & 0xFF
    return others if any(others) else allowed  # a finished grammar ends


@cache
def _table_on(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    return table.to(device)


def _unpack(table: torch.Tensor, packed: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """The number that `table` has for each bit of `packed` [rows, bytes], in the shape of `like`."""
    index = to_device(packed, like.device).flatten().int()
    return _table_on(table, like.device).index_select(0, index).view(len(packed), -1)[:, : like.shape[1]]
