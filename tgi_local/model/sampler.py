"""Choosing tokens: pure functions on float32 logits [rows, vocabulary].

The randomness of a row is a function of its seed and of how many tokens it has generated, nothing else: the same
request gives the same tokens alone, in any batch, after preemption and after a restart.
"""

from collections.abc import Sequence

import numpy as np
import torch

from tgi_local.engine.step import StepRow
from tgi_local.types import SampledToken, SamplingParams, TokenLogprob

# Beyond these a temperature is greedy or uniform for any model, and float32 would overflow.
MIN_TEMPERATURE = 1e-6
MAX_TEMPERATURE = 1e6


def sample(logits: torch.Tensor, rows: Sequence[StepRow]) -> list[SampledToken | None]:
    """One token per row; None for a row whose logits are not numbers."""
    params = [row.sampling for row in rows]
    scaled = warp(logits, params)
    logprobs = torch.log_softmax(scaled, dim=-1)
    chosen = logprobs.argmax(dim=-1)
    random_rows = [i for i, p in enumerate(params) if not p.is_greedy]
    if random_rows:
        uniforms = uniform([params[i].seed for i in random_rows], [rows[i].step_index for i in random_rows])
        chosen[random_rows] = draw(logprobs[random_rows], torch.from_numpy(uniforms).to(logits.device))
    # NaN anywhere in a row makes its whole softmax NaN.
    is_valid = ~torch.isnan(logprobs[:, 0]) if logprobs.numel() else logprobs.new_ones(0, dtype=torch.bool)
    tops = _top_tokens(logprobs, [p.top_n_tokens for p in params])
    values = logprobs.gather(1, chosen[:, None])[:, 0]
    ids, logprob_list, valid_list = chosen.tolist(), values.tolist(), is_valid.tolist()
    return [SampledToken(ids[i], logprob_list[i], tops[i]) if valid_list[i] else None for i in range(len(rows))]


def warp(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Temperature, then top-k, top-p, typical-p and min-p; excluded tokens become -inf. Greedy rows are untouched."""
    temperatures = [p.temperature if not p.is_greedy else 1.0 for p in params]
    if any(t != 1.0 for t in temperatures):
        logits = logits / _column(temperatures, logits).clamp(MIN_TEMPERATURE, MAX_TEMPERATURE)
    filtered = [i for i, p in enumerate(params) if not p.is_greedy and _has_filter(p)]
    if filtered:
        logits = logits.clone()
        logits[filtered] = _filter(logits[filtered], [params[i] for i in filtered])
    return logits


def draw(logprobs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution of each row at its uniform number in [0, 1)."""
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    targets = uniforms[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, targets, right=True)[:, 0].clamp(max=logprobs.shape[-1] - 1)
    # Rounding may land on an excluded token at the far end: fall back to the most likely one.
    is_excluded = torch.isinf(logprobs.gather(1, index[:, None])[:, 0])
    return torch.where(is_excluded, logprobs.argmax(dim=-1), index)


def uniform(seeds: Sequence[int], steps: Sequence[int]) -> np.ndarray:
    """One number in [0, 1) per (seed, step): the `step`-th output of SplitMix64 seeded with a mix of `seed`.

    Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        state = _mix(np.array([s & 0xFFFFFFFFFFFFFFFF for s in seeds], dtype=np.uint64) + golden)
        state = state + (np.array(steps, dtype=np.uint64) + np.uint64(1)) * golden
    return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _has_filter(p: SamplingParams) -> bool:
    return p.top_k > 0 or p.top_p < 1.0 or p.typical_p < 1.0 or p.min_p > 0.0


def _filter(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    for rule, is_on in (
        (_top_k, lambda p: p.top_k > 0),
        (_top_p, lambda p: p.top_p < 1.0),
        (_typical_p, lambda p: p.typical_p < 1.0),
        (_min_p, lambda p: p.min_p > 0.0),
    ):
        rows = [i for i, p in enumerate(params) if is_on(p)]
        if rows:
            logits[rows] = rule(logits[rows], [params[i] for i in rows])
    return logits


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _top_k(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    ks = [min(p.top_k, logits.shape[-1]) for p in params]
    best = logits.topk(max(ks), dim=-1).values
    threshold = best.gather(1, torch.tensor(ks, device=logits.device)[:, None] - 1)
    return logits.masked_fill(logits < threshold, float("-inf"))


def _top_p(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose probabilities reach top_p."""
    order = logits.sort(dim=-1, descending=True)
    probabilities = order.values.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    is_excluded = before >= _column([p.top_p for p in params], logits)
    is_excluded[:, 0] = False
    return logits.masked_fill(torch.zeros_like(is_excluded).scatter(1, order.indices, is_excluded), float("-inf"))


def _typical_p(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Keep the tokens whose surprise is closest to the entropy, up to a mass of typical_p."""
    logprobs = logits.log_softmax(dim=-1)
    probabilities = logprobs.exp()
    entropy = -(logprobs * probabilities).nansum(dim=-1, keepdim=True)
    distance = (-logprobs - entropy).abs()
    order = distance.argsort(dim=-1)
    cumulative = probabilities.gather(1, order).cumsum(dim=-1)
    last = (cumulative < _column([p.typical_p for p in params], logits)).sum(dim=-1, keepdim=True)
    last = last.clamp(max=logits.shape[-1] - 1)
    sorted_distance = distance.gather(1, order)
    is_excluded = sorted_distance > sorted_distance.gather(1, last)
    return logits.masked_fill(torch.zeros_like(is_excluded).scatter(1, order, is_excluded), float("-inf"))


def _min_p(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Exclude tokens less likely than min_p times the most likely one."""
    threshold = logits.max(dim=-1, keepdim=True).values + _column([p.min_p for p in params], logits).log()
    return logits.masked_fill(logits < threshold, float("-inf"))


def _top_tokens(logprobs: torch.Tensor, counts: Sequence[int]) -> list[tuple[TokenLogprob, ...]]:
    most = max(counts, default=0)
    if most == 0:
        return [()] * len(counts)
    best = logprobs.topk(min(most, logprobs.shape[-1]), dim=-1)
    ids, values = best.indices.tolist(), best.values.tolist()
    return [
        tuple(
            TokenLogprob(token, value if value > float("-inf") else None)
            for token, value in zip(ids[i][:n], values[i][:n], strict=True)
        )
        for i, n in enumerate(counts)
    ]
