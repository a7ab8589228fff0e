"""Choosing tokens: pure functions on float32 logits [rows, vocabulary].

The randomness of a row is a function of its seed and of how many tokens it has generated, nothing else: the same
request gives the same tokens alone, in any batch, after preemption and after a restart.
"""

from collections.abc import Sequence

import numpy as np
import torch

from tgi_local.engine.step import StepRow
from tgi_local.model.filters import Filtered, has_filter, keep_likely
from tgi_local.model.largest import argmax
from tgi_local.model.rows import put_rows, take_rows
from tgi_local.model.transfer import to_device
from tgi_local.types import SampledToken, SamplingParams, TokenLogprob

# Beyond these a temperature is greedy or uniform for any model, and float32 would overflow.
MIN_TEMPERATURE = 1e-6
MAX_TEMPERATURE = 1e6
# Alternatives that are given beyond those asked for; at a great heat a whole vocabulary is equally likely.
MAX_TIED = 16


def sample(logits: torch.Tensor, rows: Sequence[StepRow]) -> list[SampledToken | None]:
    """One token per row; None for a row whose logits are not numbers."""
    if not rows:
        return []
    params = [row.sampling for row in rows]
    left = warp(logits, params)
    # Faster than argmax and logsumexp, and each row's sum is the same in any batch and with any number of threads.
    logprobs = torch.log_softmax(left.logits, dim=-1)
    chosen = argmax(left.logits)  # log-probabilities of almost equal logits may round to the same
    random_rows = [i for i, p in enumerate(params) if not p.is_greedy]
    if random_rows:
        uniforms = uniform([params[i].seed for i in random_rows], [rows[i].step_index for i in random_rows])
        _draw_rows(chosen, logprobs, left, random_rows, to_device(uniforms, logits.device))
    # NaN anywhere in a row makes its whole softmax NaN. Float32 is exact for ids below 2**24, and one copy enough.
    values = torch.stack([logprobs.gather(1, chosen[:, None])[:, 0], logprobs[:, 0], chosen.float()])
    logprob_list, first_list, ids = values.tolist()
    tops = _top_tokens(logprobs, [p.top_n_tokens for p in params])
    return [
        None if first != first else SampledToken(int(token), logprob, top)
        for token, logprob, first, top in zip(ids, logprob_list, first_list, tops, strict=True)
    ]


def warp(logits: torch.Tensor, params: Sequence[SamplingParams]) -> Filtered:
    """Temperature, then the filters; excluded tokens become -inf. Greedy rows are untouched, and the given tensor is."""
    temperatures = [p.temperature if not p.is_greedy else 1.0 for p in params]
    if any(t != 1.0 for t in temperatures):
        column = to_device(temperatures, logits.device, logits.dtype)[:, None]
        logits = logits / column.clamp(MIN_TEMPERATURE, MAX_TEMPERATURE)
    rows = [i for i, p in enumerate(params) if not p.is_greedy and has_filter(p)]
    if len(rows) == len(params):
        return keep_likely(logits, params)
    if not rows:
        return Filtered(logits, [], torch.zeros(0, 0, dtype=torch.long))
    part = keep_likely(take_rows(logits, rows), [params[i] for i in rows])
    logits = logits.clone()
    put_rows(logits, rows, part.logits)
    return Filtered(logits, [rows[i] for i in part.rows], part.ids)


def _draw_rows(
    chosen: torch.Tensor, logprobs: torch.Tensor, left: Filtered, rows: list[int], uniforms: torch.Tensor
) -> None:
    """Write the tokens drawn for `rows` into `chosen`; where few tokens are left, only those are looked at."""
    place = {row: i for i, row in enumerate(rows)}
    few = [place[row] for row in left.rows]
    if few:
        ids = left.ids.sort(dim=-1).values
        index = draw(take_rows(logprobs, left.rows).gather(1, ids), take_rows(uniforms, few))
        put_rows(chosen, left.rows, ids.gather(1, index[:, None])[:, 0])
    many = sorted(set(range(len(rows))) - set(few))
    if many:
        selected = [rows[i] for i in many]
        put_rows(chosen, selected, draw(take_rows(logprobs, selected), take_rows(uniforms, many)))


def draw(logprobs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution of each row at its uniform number in [0, 1)."""
    cumulative = _probabilities(logprobs).cumsum(dim=-1)
    targets = uniforms[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, targets, right=True)[:, 0].clamp(max=logprobs.shape[-1] - 1)
    # Rounding may land on an excluded token at the far end: fall back to the most likely one.
    is_excluded = torch.isinf(logprobs.gather(1, index[:, None])[:, 0])
    return torch.where(is_excluded, argmax(logprobs), index)


def _probabilities(logprobs: torch.Tensor) -> torch.Tensor:
    """In float64: in float32 the rounding of a large vocabulary's sum would decide between neighbours."""
    if logprobs.device.type != "cpu":
        return logprobs.double().exp()
    return torch.from_numpy(np.exp(logprobs.numpy(), dtype=np.float64))  # twice as fast as torch's


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


def _top_tokens(logprobs: torch.Tensor, counts: Sequence[int]) -> list[tuple[TokenLogprob, ...]]:
    """The best `counts[i]` tokens of row i, and those as likely as the last of them, as TGI does; no excluded ones."""
    tops: list[tuple[TokenLogprob, ...]] = [()] * len(counts)
    rows = [i for i, count in enumerate(counts) if count > 0]
    if not rows:
        return tops
    logprobs = take_rows(logprobs, rows)
    vocab_size = logprobs.shape[-1]
    best = logprobs.topk(min(max(counts), vocab_size), dim=-1)
    place = torch.tensor([min(counts[i], vocab_size) - 1 for i in rows], device=logprobs.device)
    lowest = best.values.gather(1, place[:, None]).clamp(min=torch.finfo(logprobs.dtype).min)
    num_best = (logprobs >= lowest).sum(dim=-1).clamp(max=place + 1 + MAX_TIED).tolist()
    if max(num_best) > best.values.shape[-1]:
        best = logprobs.topk(max(num_best), dim=-1)
    for i, ids, values, count in zip(rows, best.indices.tolist(), best.values.tolist(), num_best, strict=True):
        # By id where they are equally likely: their order in `topk` depends on the neighbours' counts.
        in_order = sorted(zip(ids[:count], values[:count], strict=True), key=lambda pair: (-pair[1], pair[0]))
        tops[i] = tuple(TokenLogprob(token, value) for token, value in in_order)
    return tops
