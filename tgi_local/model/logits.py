"""Rules that change logits before a token is chosen: pure functions on float32 [rows, vocabulary].

Order and formulas: TGI (repetition, then frequency), OpenAI's additive penalties and bias after them, grammars last.
"""

from collections.abc import Sequence

import numpy as np
import torch

from tgi_local.engine.step import StepRow

# Beyond these a repetition penalty excludes or repeats for any model, and float32 would overflow.
MIN_REPETITION_PENALTY = 1e-6
MAX_REPETITION_PENALTY = 1e6


def process(logits: torch.Tensor, rows: Sequence[StepRow]) -> torch.Tensor:
    """Apply every penalty, bias and grammar the rows ask for; rows that ask for none are untouched."""
    penalized = [i for i, row in enumerate(rows) if row.history]
    if penalized:
        logits = logits.clone()
        logits[penalized] = _penalize(logits[penalized], [rows[i] for i in penalized])
    biased = [(i, token, bias) for i, row in enumerate(rows) for token, bias in row.sampling.logit_bias]
    if biased:
        index = torch.tensor([(i, token) for i, token, _ in biased], device=logits.device).T
        values = torch.tensor([bias for *_, bias in biased], dtype=logits.dtype, device=logits.device)
        logits = logits.index_put((index[0], index[1]), values, accumulate=True)
    return _constrain(logits, rows)


def _constrain(logits: torch.Tensor, rows: Sequence[StepRow]) -> torch.Tensor:
    """Exclude what a row's grammar does not allow. Masks are computed while a GPU is still busy with the step."""
    masks = {i: row.constraint.allowed_tokens() for i, row in enumerate(rows) if row.constraint is not None}
    if not masks:
        return logits
    packed = torch.frombuffer(bytearray().join(masks.values()), dtype=torch.uint8).reshape(len(masks), -1)
    bits = torch.arange(8, dtype=torch.uint8, device=logits.device)
    allowed = (packed.to(logits.device)[:, :, None] >> bits & 1).flatten(1)[:, : logits.shape[1]].bool()
    constrained = logits[list(masks)].masked_fill_(~allowed, float("-inf"))
    logits = logits.clone()
    logits[list(masks)] = constrained
    return logits


def _penalize(logits: torch.Tensor, rows: Sequence[StepRow]) -> torch.Tensor:
    device = logits.device
    seen = token_counts([row.history for row in rows], logits.shape[1], device)
    lengths = torch.tensor([[float(len(row.history))] for row in rows], device=device)

    def column(name: str) -> torch.Tensor:
        return torch.tensor([[getattr(row.sampling, name)] for row in rows], dtype=logits.dtype, device=device)

    repetition = column("repetition_penalty").clamp(MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
    penalized = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen > 0, penalized, logits)
    logits = logits - column("relative_frequency_penalty") * seen / lengths
    if not any(row.sampling.frequency_penalty or row.sampling.presence_penalty for row in rows):
        return logits
    generated = token_counts([row.history[row.num_prompt_tokens :] for row in rows], logits.shape[1], device)
    return logits - column("frequency_penalty") * generated - column("presence_penalty") * (generated > 0)


def token_counts(histories: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> torch.Tensor:
    """How often each token occurs in each history: [rows, vocab_size], float32."""
    longest = max((len(history) for history in histories), default=0)
    # Padding counts into one extra column that is cut off.
    padded = np.full((len(histories), longest), vocab_size, dtype=np.int64)
    for row, history in zip(padded, histories, strict=True):
        row[: len(history)] = history
    ids = torch.from_numpy(padded).to(device)
    counts = torch.zeros(len(histories), vocab_size + 1, device=device)
    counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=counts.dtype))
    return counts[:, :vocab_size]
