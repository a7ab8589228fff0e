"""Which tokens may still be drawn: top-k, top-p, typical-p and min-p on float32 logits [rows, vocabulary].

On the CPU most rows are decided by their best tokens alone, the others by all of them; both ways leave the same tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tgi_local.model.largest import largest, sorted_values
from tgi_local.model.rows import put_rows, take_rows
from tgi_local.model.transfer import to_device
from tgi_local.types import SamplingParams

NEG_INF = np.float32("-inf")
NUM_CANDIDATES = 64
# What a sum of probabilities in float32 depends on their order: at most half of this in any of many distributions and
# vocabularies measured. Where so little decides whether a token is in the nucleus, the row is sorted.
MASS_TOLERANCE = 1e-6
MASS_TOLERANCE_PER_TOKEN = 5e-10


@dataclass(frozen=True, slots=True)
class Filtered:
    """`logits` with excluded tokens at -inf; for some `rows`, the `ids` [rows, n] hold every token that is left."""

    logits: torch.Tensor
    rows: list[int]
    ids: torch.Tensor


def has_filter(p: SamplingParams) -> bool:
    return p.top_k > 0 or p.top_p < 1.0 or p.typical_p < 1.0 or p.min_p > 0.0


def keep_likely(logits: torch.Tensor, params: Sequence[SamplingParams]) -> Filtered:
    """Apply top-k, then top-p, typical-p and min-p, each to what the one before has left."""
    if logits.device.type != "cpu":  # to ask row by row would wait for the GPU
        return Filtered(_by_all_tokens(logits, params), [], torch.zeros(0, 0, dtype=torch.long))
    values, ids, is_decided = _by_candidates(logits, params)
    left = torch.full_like(logits, float("-inf")).scatter_(1, ids, values)
    decided = np.flatnonzero(is_decided).tolist()
    others = np.flatnonzero(~is_decided).tolist()
    if others:
        put_rows(left, others, _by_all_tokens(take_rows(logits, others), [params[i] for i in others]))
    return Filtered(left, decided, take_rows(ids, decided))


@np.errstate(invalid="ignore")  # logits that are not numbers end as such
def _by_candidates(
    logits: torch.Tensor, params: Sequence[SamplingParams]
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """What is left of each row's best tokens, their ids, and for which rows nothing else can be left."""
    vocab_size = logits.shape[1]
    best, ids = largest(logits, min(NUM_CANDIDATES, vocab_size))
    values = best.numpy()
    num_candidates = values.shape[1]
    # No other token is larger than the last candidate.
    bound = values[:, -1] if num_candidates < vocab_size else np.full(len(values), NEG_INF, np.float32)
    is_closed = bound == NEG_INF
    is_decided = np.array([p.typical_p >= 1.0 for p in params])
    top_k = np.array([min(p.top_k, vocab_size) for p in params])
    if top_k.any():
        last = values[np.arange(len(values)), np.clip(top_k, 1, num_candidates) - 1]
        values = np.where((top_k > 0)[:, None] & (values < last[:, None]), NEG_INF, values)
        is_closed = is_closed | ((top_k > 0) & (top_k <= num_candidates) & (bound < last))
        is_decided &= is_closed | (top_k == 0)
    has_top_p = np.array([p.top_p < 1.0 for p in params])
    if has_top_p.any():
        values, is_nucleus = _nucleus_of_candidates(logits, values, ids, bound, is_closed, params)
        is_decided &= is_nucleus | ~has_top_p
        is_closed = is_closed | has_top_p
    if any(p.min_p > 0.0 for p in params):
        threshold = values[:, 0] + _column([p.min_p for p in params], logits)[:, 0].log().numpy()
        values = np.where(values < threshold[:, None], NEG_INF, values)
        is_closed = is_closed | (bound < threshold)
    return torch.from_numpy(values), ids, is_decided & is_closed


def _nucleus_of_candidates(
    logits: torch.Tensor,
    values: np.ndarray,
    ids: torch.Tensor,
    bound: np.ndarray,
    is_closed: np.ndarray,
    params: Sequence[SamplingParams],
) -> tuple[np.ndarray, np.ndarray]:
    """Top-p among the candidates, and for which rows that is certain."""
    top_p = np.array([p.top_p for p in params], np.float32)[:, None]
    weights = np.exp(values - values[:, :1])
    total = weights.sum(axis=1)
    is_open = (top_p[:, 0] < 1.0) & ~is_closed
    if is_open.any():
        rows = np.flatnonzero(is_open).tolist()
        share = take_rows(logits, rows).softmax(dim=-1).gather(1, take_rows(ids, rows)[:, :1])
        total[rows] = 1 / share[:, 0].numpy()
    probabilities = weights / total[:, None]
    before = probabilities.cumsum(axis=1) - probabilities
    is_excluded = (top_p < 1.0) & (before >= top_p)
    tolerance = MASS_TOLERANCE + MASS_TOLERANCE_PER_TOKEN * logits.shape[1]
    is_close = (np.abs(before - top_p) < tolerance) & (values > NEG_INF)
    is_excluded[:, 0] = is_close[:, 0] = False
    # Beyond the candidates there may be equals of the last of them, but none of what is left.
    is_inside = np.where(is_excluded, np.inf, values).min(axis=1) > bound
    is_certain = ~is_close.any(axis=1) & (is_closed | (is_excluded[:, -1] & is_inside))
    return np.where(is_excluded, NEG_INF, values), is_certain


def _by_all_tokens(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    logits = logits.clone()
    for rule, is_on in (
        (_top_k, lambda p: p.top_k > 0),
        (_top_p, lambda p: p.top_p < 1.0),
        (_typical_p, lambda p: p.typical_p < 1.0),
        (_min_p, lambda p: p.min_p > 0.0),
    ):
        rows = [i for i, p in enumerate(params) if is_on(p)]
        if rows:
            put_rows(logits, rows, rule(take_rows(logits, rows), [params[i] for i in rows]))
    return logits


def _top_k(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    ks = [min(p.top_k, logits.shape[-1]) for p in params]
    best = logits.topk(max(ks), dim=-1).values
    threshold = best.gather(1, to_device(ks, logits.device)[:, None] - 1)
    return logits.masked_fill(logits < threshold, float("-inf"))


def _top_p(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose probabilities reach top_p; of equals, the first ones."""
    values = sorted_values(logits)
    probabilities = values.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    num_left = (before < _column([p.top_p for p in params], logits)).sum(dim=-1, keepdim=True).clamp(min=1)
    last = values.gather(1, num_left - 1)
    is_larger, is_equal = logits > last, logits == last
    is_left = is_larger | (is_equal & (is_equal.cumsum(dim=-1) <= num_left - is_larger.sum(dim=-1, keepdim=True)))
    return logits.masked_fill(~is_left, float("-inf"))


def _typical_p(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Keep the tokens whose surprise is closest to the entropy, up to a mass of typical_p."""
    logprobs = logits.log_softmax(dim=-1)
    probabilities = logprobs.exp()
    distance = (-logprobs - _entropy(logprobs, probabilities)).abs()
    mass = _column([p.typical_p for p in params], logits)
    if logits.device.type != "cpu":
        threshold, _ = _reach(distance, probabilities, mass, distance.argsort(dim=-1))
    else:  # the closest few mostly have the mass
        nearest = largest(-distance, min(NUM_CANDIDATES, logits.shape[1]))[1]
        threshold, is_reached = _reach(distance, probabilities, mass, nearest)
        others = (~is_reached).nonzero()[:, 0].tolist()
        if others:
            far, likely, enough = (take_rows(numbers, others) for numbers in (distance, probabilities, mass))
            put_rows(threshold, others, _reach(far, likely, enough, far.argsort(dim=-1))[0])
    return logits.masked_fill(distance > threshold, float("-inf"))


def _reach(
    distance: torch.Tensor, probabilities: torch.Tensor, mass: torch.Tensor, order: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far one has to go in this `order` of tokens to collect the mass, [rows, 1], and whether that is enough."""
    cumulative = probabilities.gather(1, order).cumsum(dim=-1)
    last = (cumulative < mass).sum(dim=-1, keepdim=True).clamp(max=order.shape[1] - 1)
    return distance.gather(1, order.gather(1, last)), cumulative[:, -1] >= mass[:, 0]


def _entropy(logprobs: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy of each row, [rows, 1]."""
    terms = logprobs * probabilities
    if len(terms) == 1:
        # Torch shares the sum of a single row between threads, and it comes out otherwise than in a batch.
        terms = terms.repeat(2, 1)
    return -terms.nansum(dim=-1, keepdim=True)[: len(logprobs)]


def _min_p(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Exclude tokens less likely than min_p times the most likely one."""
    threshold = logits.max(dim=-1, keepdim=True).values + _column([p.min_p for p in params], logits).log()
    return logits.masked_fill(logits < threshold, float("-inf"))


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return to_device(values, like.device, like.dtype)[:, None]
