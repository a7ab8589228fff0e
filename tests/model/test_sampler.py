"""Every sampling rule equals the one of the same name in Transformers, in a batch where each row has its own."""

import math
import random
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tests.model import plain_sampling
from tests.model.determinism import threads
from tgi_local.engine.step import StepRow
from tgi_local.model import filters
from tgi_local.model.sampler import MAX_TIED, draw, sample, uniform, warp
from tgi_local.types import SamplingParams

VOCAB = 101
NO_IDS = torch.zeros(1, 1, dtype=torch.long)
NEG_INF = float("-inf")


def random_logits(rows: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def reference(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """One row [vocabulary] through Transformers' warpers, in this server's order."""
    warpers = LogitsProcessorList()
    if params.temperature not in (0.0, 1.0):
        warpers.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.typical_p < 1.0:
        warpers.append(TypicalLogitsWarper(params.typical_p))
    if params.min_p > 0.0:
        warpers.append(MinPLogitsWarper(params.min_p))
    result: torch.Tensor = warpers(NO_IDS, logits[None].clone())[0]
    return result


def make_row(params: SamplingParams, step_index: int = 0) -> StepRow:
    return StepRow("r", (1,), 0, (0,), True, params, step_index=step_index)


def sampling(**values: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, **values})


EACH_RULE = [
    *[sampling(temperature=t) for t in (0.1, 0.7, 1.0, 1.9)],
    *[sampling(top_k=k) for k in (1, 2, 50, VOCAB, VOCAB + 1, 2**40)],
    *[sampling(top_p=p) for p in (1e-9, 0.1, 0.5, 0.9, 0.999)],
    *[sampling(typical_p=p) for p in (1e-9, 0.2, 0.5, 0.95, 0.999)],
    *[sampling(min_p=p) for p in (1e-9, 0.01, 0.3, 1.0)],
    sampling(temperature=0.6, top_k=40, top_p=0.9),
    sampling(temperature=1.3, top_k=20, top_p=0.95, typical_p=0.9, min_p=0.02),
]


def name_of(params: SamplingParams) -> str:
    return " ".join(
        f"{f.name}={getattr(params, f.name)}" for f in fields(params) if getattr(params, f.name) != f.default
    )


def same_up_to_a_constant(got: torch.Tensor, want: torch.Tensor) -> None:
    assert torch.equal(torch.isneginf(got), torch.isneginf(want)), "another set of tokens is left"
    torch.testing.assert_close(got.softmax(-1), want.softmax(-1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("params", EACH_RULE, ids=name_of)
def test_rule_equals_transformers(params: SamplingParams) -> None:
    for seed in range(10):
        logits = random_logits(1, seed, scale=0.5 + seed)
        same_up_to_a_constant(warp(logits, [params]).logits[0], reference(logits[0], params))


@pytest.mark.parametrize("seed", range(5))
def test_rows_with_different_rules_do_not_leak(seed: int) -> None:
    generator = np.random.default_rng(seed)
    greedy = [SamplingParams(), SamplingParams(top_k=3, top_p=0.5)]
    params = [EACH_RULE[i] for i in generator.permutation(len(EACH_RULE))] + greedy
    params = [params[i] for i in generator.permutation(len(params))]
    logits = random_logits(len(params), seed)
    before = logits.clone()
    got = warp(logits, params).logits
    assert torch.equal(logits, before), "the caller's logits are not written to"
    for i, row_params in enumerate(params):
        if row_params.is_greedy or row_params == sampling():
            assert torch.equal(got[i], before[i]), "a row that uses no rule is untouched"
        else:
            same_up_to_a_constant(got[i], reference(before[i], row_params))


def test_ties_are_kept_as_transformers_keeps_them() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0, 2.0]])
    for params in (sampling(top_k=2), sampling(min_p=1.0)):
        got = warp(logits, [params]).logits[0]
        assert torch.equal(torch.isneginf(got), torch.isneginf(reference(logits[0], params)))


def test_masked_tokens_stay_masked() -> None:
    logits = random_logits(len(EACH_RULE))
    logits[:, 7:] = NEG_INF
    got = warp(logits, EACH_RULE).logits
    assert torch.isneginf(got[:, 7:]).all()
    for i, params in enumerate(EACH_RULE):
        same_up_to_a_constant(got[i], reference(logits[i], params))
        assert sample(logits[i : i + 1], [make_row(params)])[0].id < 7  # type: ignore[union-attr]


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-38, 1e-45, 1e-300])
def test_a_temperature_near_zero_is_greedy_and_not_an_error(temperature: float) -> None:
    logits = random_logits(20)
    tokens = sample(logits, [make_row(sampling(temperature=temperature, top_p=0.9, seed=s)) for s in range(20)])
    assert [token.id for token in tokens if token] == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [1e10, 1e300])
def test_a_huge_temperature_is_uniform_and_not_an_error(temperature: float) -> None:
    logits = random_logits(50)
    tokens = sample(logits, [make_row(sampling(temperature=temperature, seed=s)) for s in range(50)])
    assert len({token.id for token in tokens if token}) > 25
    assert all(token and token.logprob == pytest.approx(-math.log(VOCAB), abs=1e-3) for token in tokens)


def test_greedy_rows_take_the_most_likely_token_and_its_logprob() -> None:
    logits = random_logits(3)
    tokens = sample(logits, [make_row(SamplingParams(seed=s, top_k=2)) for s in range(3)])
    want = logits.log_softmax(-1).max(-1)
    assert [token.id for token in tokens if token] == want.indices.tolist()
    assert [token.logprob for token in tokens if token] == pytest.approx(want.values.tolist())


def test_a_greedy_row_tells_almost_equal_logits_apart() -> None:
    """Also where their log-probabilities round to the same, so that to ask for alternatives changes no token."""
    logits = torch.zeros(1, 5000)
    logits[0, 3000] = 1e-9
    assert logits.log_softmax(-1).unique().numel() == 1
    for params in (SamplingParams(), SamplingParams(top_n_tokens=2)):
        token = sample(logits, [make_row(params)])[0]
        assert token is not None and token.id == 3000


def test_the_logprob_is_that_of_the_distribution_drawn_from() -> None:
    logits = random_logits(1)
    params = sampling(temperature=0.7, top_k=5, seed=3)
    token = sample(logits, [make_row(params)])[0]
    assert token is not None
    assert token.logprob == pytest.approx(reference(logits[0], params).log_softmax(-1)[token.id].item(), abs=1e-5)


def test_a_row_without_numbers_yields_none_and_its_neighbours_are_exact() -> None:
    good = random_logits(2)
    params = sampling(temperature=0.8, top_k=10, top_p=0.9, typical_p=0.9, min_p=0.01, seed=5)
    want = sample(good, [make_row(params), make_row(SamplingParams(top_n_tokens=2))])
    for value in (float("nan"), float("inf")):
        for bad_params in (params, SamplingParams(), sampling(top_k=1), sampling(top_p=0.5), sampling(min_p=0.5)):
            bad = random_logits(1)
            bad[0, 50] = value
            rows = [make_row(params), make_row(bad_params), make_row(SamplingParams(top_n_tokens=2))]
            got = sample(torch.cat([good[:1], bad, good[1:]]), rows)
            assert got[1] is None
            assert [got[0], got[2]] == want
    everything_masked = torch.full((1, VOCAB), NEG_INF)
    assert sample(everything_masked, [make_row(params)]) == [None]


def test_top_tokens_are_best_first_and_each_row_gets_its_own_number() -> None:
    logits = random_logits(4)
    logits[3, 2:] = NEG_INF
    counts = [0, 1, 5, 3]
    tokens = sample(logits, [make_row(SamplingParams(top_n_tokens=n)) for n in counts])
    logprobs = logits.log_softmax(-1)
    for i, (token, count) in enumerate(zip(tokens, counts, strict=True)):
        best = logprobs[i].topk(count)
        finite = [value for value in best.values.tolist() if value > NEG_INF]
        assert token is not None and len(token.top) == len(finite)
        assert [top.id for top in token.top] == best.indices.tolist()[: len(finite)]
        assert [top.logprob for top in token.top] == pytest.approx(finite)
    assert tokens[3] is not None and len(tokens[3].top) == 2, "a masked token is no alternative"


def test_tokens_as_likely_as_the_last_alternative_are_alternatives_too() -> None:
    logits = torch.zeros(3, VOCAB)
    logits[0, [7, 8, 9]] = torch.tensor([2.0, 1.0, 1.0])
    logits[1, [7, 8, 9]] = torch.tensor([3.0, 2.0, 1.0])
    first, second, third = sample(logits, [make_row(SamplingParams(top_n_tokens=n)) for n in (2, 2, 1)])
    assert first is not None and sorted(top.id for top in first.top) == [7, 8, 9]
    assert second is not None and [top.id for top in second.top] == [7, 8]
    assert third is not None and len(third.top) == 1 + MAX_TIED, "not the whole vocabulary"


def test_more_top_tokens_than_the_vocabulary_has() -> None:
    token = sample(random_logits(1), [make_row(SamplingParams(top_n_tokens=VOCAB + 5))])[0]
    assert token is not None and len(token.top) == VOCAB


def test_uniform_is_in_range_deterministic_and_different_per_seed_and_step() -> None:
    seeds = [0, 1, 2**32, 2**63, 2**64 - 1, *range(2, 200)]
    steps = range(100)
    pairs = [(seed, step) for seed in seeds for step in steps]
    values = uniform([seed for seed, _ in pairs], [step for _, step in pairs])
    assert values.dtype == np.float64
    assert ((values >= 0.0) & (values < 1.0)).all()
    assert len(set(values.tolist())) == len(pairs)
    assert [uniform([seed], [step])[0] for seed, step in pairs[::997]] == values[::997].tolist()
    # Mean and variance of the uniform distribution, and neighbours that know nothing of each other.
    assert values.mean() == pytest.approx(0.5, abs=0.01)
    assert values.var() == pytest.approx(1 / 12, abs=0.005)
    table = values.reshape(len(seeds), len(steps))
    for a, b in ((table[5:-1], table[6:]), (table[:, :-1], table[:, 1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03


def test_uniform_of_a_fixed_pair_never_changes() -> None:
    """A seed that a client kept must give the same answer after an update of this server."""
    assert uniform([42, 42, 0], [0, 1, 0]).tolist() == pytest.approx(
        [0.34329192209867343, 0.9557467261317436, 0.6524484863740322], abs=0
    )


def test_draw_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.25, 0.125, 0.1, 0.025, 0.0])
    count = 20_000
    numbers = torch.from_numpy(uniform(list(range(count)), [0] * count))
    ids = draw(probabilities.log().expand(count, -1), numbers)
    seen = torch.bincount(ids, minlength=len(probabilities)).double()
    assert seen[1] == seen[6] == 0, "an excluded token was drawn"
    expected = probabilities.double() * count
    likely = expected > 0
    chi_square = ((seen - expected)[likely] ** 2 / expected[likely]).sum().item()
    assert chi_square < 18.5, "p < 0.001 with 4 degrees of freedom"


def test_draw_at_the_ends_never_picks_an_excluded_token() -> None:
    logprobs = torch.tensor([[NEG_INF, 0.3, NEG_INF, 0.7, NEG_INF]]).log_softmax(-1).expand(4, -1)
    ids = draw(logprobs, torch.tensor([0.0, 1e-300, 1.0 - 2.0**-53, 1.0], dtype=torch.float64))
    assert set(ids.tolist()) <= {1, 3}
    assert ids[0] == 1 and ids[2] == 3


def test_a_seeded_row_draws_the_same_whatever_its_place_and_neighbours() -> None:
    logits = random_logits(1, scale=1.0)
    params = sampling(temperature=1.2, top_p=0.95, seed=77)
    alone = [sample(logits, [make_row(params, step)])[0] for step in range(20)]
    for step in range(20):
        rows = [make_row(replace(params, seed=s), step + s) for s in range(3)]
        rows.insert(step % 4, make_row(params, step))
        batch = torch.cat([random_logits(step % 4, 1), logits, random_logits(3 - step % 4, 2)])
        assert sample(batch, rows)[step % 4] == alone[step]
    ids = [token.id for token in alone if token]
    assert len(set(ids)) > 3, "the step changes the draw"
    other = [sample(logits, [make_row(replace(params, seed=78), step)])[0] for step in range(20)]
    assert Counter(ids) != Counter(token.id for token in other if token), "the seed changes the draw"


def test_no_rows() -> None:
    assert sample(torch.zeros(0, VOCAB), []) == []


# The fast ways against the plain one.

VOCAB_SIZES = [1, 3, 63, 64, 65, 129, 1000, 8192, 8200, 20_011]


def random_params(rng: random.Random) -> SamplingParams:
    """Any rules together; the larger top-k and the hotter ones leave more tokens than the fast way looks at."""
    return SamplingParams(
        temperature=rng.choice([0.0, 0.3, 0.7, 1.0, 1.0, 1.5, 4.0]),
        top_k=rng.choice([0, 0, 0, 1, 5, 50, 63, 64, 65, 500, 10**9]),
        top_p=rng.choice([1.0, 1.0, 1e-9, 0.5, 0.9, 0.95, 0.999]),
        typical_p=rng.choice([1.0, 1.0, 1.0, 0.2, 0.9]),
        min_p=rng.choice([0.0, 0.0, 0.01, 0.3, 1.0]),
        seed=rng.getrandbits(64),
        top_n_tokens=rng.choice([0, 0, 3]),
    )


def check_against_the_plain_way(vocab_size: int, seed: int, num_rows: int = 12) -> None:
    """Tokens, log-probabilities and alternatives, bit for bit; half of the time with many equal logits."""
    rng = random.Random(seed)
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))
    logits *= torch.tensor([rng.choice([0.3, 1.0, 3.0, 8.0]) for _ in range(num_rows)])[:, None]
    if rng.random() < 0.5:
        logits = logits.bfloat16().float()
    if rng.random() < 0.3:
        logits[:, rng.randrange(1, vocab_size + 1) :] = NEG_INF
    rows = [make_row(random_params(rng), rng.randrange(100)) for _ in range(num_rows)]
    assert sample(logits, rows) == plain_sampling.sample(logits, rows)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_tokens_are_those_of_the_plain_way(vocab_size: int) -> None:
    for seed in range(6):
        check_against_the_plain_way(vocab_size, seed)


@pytest.mark.long
@pytest.mark.parametrize("vocab_size", [*VOCAB_SIZES, 49152, 50257, 151936])
def test_tokens_are_those_of_the_plain_way_in_many_more_cases(vocab_size: int) -> None:
    for seed in range(1000, 1000 + max(20, 3_000_000 // (vocab_size + 2000))):
        check_against_the_plain_way(vocab_size, seed)


def always_certain(*args: Any) -> tuple[np.ndarray, np.ndarray]:
    values, is_certain = nucleus_of_candidates(*args)
    return values, np.ones_like(is_certain)


nucleus_of_candidates = filters._nucleus_of_candidates


def test_the_comparison_notices_a_nucleus_that_ends_too_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_nucleus_of_candidates", always_certain)
    with pytest.raises(AssertionError):
        for seed in range(6):
            check_against_the_plain_way(1000, seed)


def test_the_comparison_notices_equals_that_are_chosen_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "largest", lambda x, count: (x.topk(count).values, x.topk(count).indices.flip(-1)))
    with pytest.raises(AssertionError):
        for seed in range(6):
            check_against_the_plain_way(1000, seed)


@pytest.mark.parametrize("num_candidates", [1, 2, 7, 64, 300])
def test_how_many_candidates_are_looked_at_changes_nothing(
    num_candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "NUM_CANDIDATES", num_candidates)
    for seed in range(4):
        check_against_the_plain_way(1000, seed)


@pytest.mark.parametrize("vocab_size", [1, 65, 1000])
def test_the_filters_over_all_tokens_as_a_gpu_applies_them(vocab_size: int) -> None:
    for seed in range(10):
        rng = random.Random(seed)
        params = [replace(random_params(rng), temperature=1.0) for _ in range(12)]
        logits = torch.randn(12, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3
        if seed % 2:
            logits = logits.bfloat16().float()
        assert torch.equal(filters._by_all_tokens(logits, params), plain_sampling.warp(logits, params))


def test_few_candidates_decide_most_rows_of_a_language_model() -> None:
    """Else all of this would be for nothing. Zipf's law with exponent 2, as the benchmark has it."""
    vocab_size = 20_000
    ranks = torch.stack([torch.randperm(vocab_size, generator=torch.Generator().manual_seed(s)) for s in range(30)])
    logits = -2 * (ranks + 1).float().log()
    for params in (sampling(top_k=50, top_p=0.95), sampling(top_p=0.95), sampling(top_k=50), sampling(min_p=0.05)):
        left = warp(logits, [params] * 30)
        assert len(left.rows) >= 25
        for row, ids in zip(left.rows, left.ids.tolist(), strict=True):
            assert set(torch.isfinite(left.logits[row]).nonzero()[:, 0].tolist()) <= set(ids)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_is_the_same_bit_for_bit_alone_and_in_a_batch(num_threads: int) -> None:
    rules: list[dict[str, Any]] = [{}, {"top_k": 50}, {"top_p": 0.9}, {"typical_p": 0.9}, {"typical_p": 0.2}]
    params = [sampling(temperature=t, seed=i, **rule) for i, rule in enumerate(rules) for t in (0.7, 1.0, 2.0)]
    rows = [make_row(p) for p in [SamplingParams(), *params]]
    logits = torch.randn(len(rows), 50_000, generator=torch.Generator().manual_seed(0)) * 3
    with threads(num_threads):
        together = sample(logits, rows)
        alone = [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    assert together == alone


def test_the_entropy_of_a_row_is_the_same_alone_and_in_a_batch() -> None:
    """Torch shares the sum of a single long row between threads, and then it comes out otherwise."""
    logprobs = (torch.randn(9, 151_936, generator=torch.Generator().manual_seed(0)) * 3).log_softmax(-1)
    with threads(2):
        together = filters._entropy(logprobs, logprobs.exp())
        alone = [filters._entropy(logprobs[i : i + 1], logprobs[i : i + 1].exp()) for i in range(9)]
    assert torch.equal(torch.cat(alone), together)
