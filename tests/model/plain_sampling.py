"""The sampling rules as one would first write them: over the whole vocabulary, and from nothing in every step.

What the server does must give the same tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch

from tgi_local.engine.step import StepRow
from tgi_local.model.sampler import MAX_TEMPERATURE, MAX_TIED, MIN_TEMPERATURE, uniform
from tgi_local.types import SampledToken, SamplingParams, TokenLogprob

NEG_INF = float("-inf")


def sample(logits: torch.Tensor, rows: Sequence[StepRow]) -> list[SampledToken | None]:
    return [_sample_row(row_logits, row) for row_logits, row in zip(process(logits, rows), rows, strict=True)]


def process(logits: torch.Tensor, rows: Sequence[StepRow]) -> torch.Tensor:
    return torch.stack([_process_row(row_logits, row) for row_logits, row in zip(logits, rows, strict=True)])


def warp(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    return torch.stack([_warp_row(row_logits, p) for row_logits, p in zip(logits, params, strict=True)])


def _process_row(logits: torch.Tensor, row: StepRow) -> torch.Tensor:
    p = row.sampling
    if row.history:
        seen = token_counts(row.history, len(logits))
        repetition = torch.tensor(p.repetition_penalty, dtype=torch.float32).clamp(1e-6, 1e6)
        logits = torch.where(seen > 0, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
        logits = logits - p.relative_frequency_penalty * seen / len(row.history)
        generated = token_counts(row.history[row.num_prompt_tokens :], len(logits))
        logits = logits - p.frequency_penalty * generated - p.presence_penalty * (generated > 0)
    logits = logits.clone()
    for token, bias in p.logit_bias:
        logits[token] += bias
    if row.constraint is not None:
        allowed = np.unpackbits(np.frombuffer(row.constraint.allowed_tokens(), np.uint8), bitorder="little")
        logits[torch.from_numpy(allowed[: len(logits)] == 0)] = NEG_INF
    return logits


def token_counts(history: Sequence[int], vocab_size: int) -> torch.Tensor:
    return torch.bincount(torch.tensor(history, dtype=torch.long), minlength=vocab_size).float()


def _sample_row(logits: torch.Tensor, row: StepRow) -> SampledToken | None:
    p = row.sampling
    warped = _warp_row(logits, p)
    logprobs = warped.log_softmax(dim=-1)
    if logprobs.isnan().any():
        return None
    token = int(warped.argmax())
    if not p.is_greedy:
        cumulative = logprobs.double().exp().cumsum(dim=-1)
        target = cumulative[-1] * uniform([p.seed], [row.step_index])[0]
        drawn = int((cumulative <= target).sum())
        token = drawn if drawn < len(logprobs) and logprobs[drawn] > NEG_INF else token
    best = logprobs.sort(descending=True, stable=True)
    pairs = [pair for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True) if pair[1] > NEG_INF]
    lowest = pairs[: p.top_n_tokens][-1][1] if p.top_n_tokens and pairs else float("inf")
    num_best = min(sum(value >= lowest for _, value in pairs), p.top_n_tokens + MAX_TIED)
    top = tuple(TokenLogprob(i, value) for i, value in pairs[:num_best])
    return SampledToken(token, logprobs[token].item(), top)


def _warp_row(logits: torch.Tensor, p: SamplingParams) -> torch.Tensor:
    if p.is_greedy:
        return logits
    temperature = torch.tensor(p.temperature, dtype=torch.float32).clamp(MIN_TEMPERATURE, MAX_TEMPERATURE)
    logits = logits / temperature
    if p.top_k > 0:
        threshold = logits.sort(descending=True).values[min(p.top_k, len(logits)) - 1]
        logits = logits.masked_fill(logits < threshold, NEG_INF)
    if p.top_p < 1.0:
        values, order = logits.sort(descending=True, stable=True)
        probabilities = values.softmax(dim=-1)
        is_excluded = probabilities.cumsum(dim=-1) - probabilities >= torch.tensor(p.top_p, dtype=torch.float32)
        is_excluded[0] = False
        logits = logits.masked_fill(torch.zeros_like(is_excluded).scatter(0, order, is_excluded), NEG_INF)
    if p.typical_p < 1.0:
        logprobs = logits.log_softmax(dim=-1)
        probabilities = logprobs.exp()
        distance = (-logprobs + (logprobs * probabilities).nansum()).abs()
        order = distance.argsort()
        mass = torch.tensor(p.typical_p, dtype=torch.float32)
        last = int((probabilities[order].cumsum(dim=-1) < mass).sum().clamp(max=len(logits) - 1))
        logits = logits.masked_fill(distance > distance[order[last]], NEG_INF)
    if p.min_p > 0.0:
        threshold = logits.max() + torch.tensor(p.min_p, dtype=torch.float32).log()
        logits = logits.masked_fill(logits < threshold, NEG_INF)
    return logits
