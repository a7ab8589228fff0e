"""Penalties and bias by formula, on rows that ask for different things in one batch."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from tgi_local.constraints import TokenConstraint
from tgi_local.engine.step import StepRow
from tgi_local.model import logits as logits_rules
from tgi_local.model.token_counts import TokenCounts
from tgi_local.types import SamplingParams

VOCAB = 23
PROMPT = (3, 4, 3, 7)
OUTPUT = (7, 9, 9)
HISTORY = PROMPT + OUTPUT


def make_row(
    history: tuple[int, ...] = HISTORY,
    num_prompt: int = len(PROMPT),
    step_index: int = 0,
    constraint: TokenConstraint | None = None,
    **sampling: Any,
) -> StepRow:
    params = SamplingParams(**sampling)
    seen = history if params.uses_history else ()
    return StepRow("r", history[-1:], 0, (0,), True, params, step_index, seen, num_prompt, constraint=constraint)


def process(logits: torch.Tensor, rows: list[StepRow]) -> torch.Tensor:
    return logits_rules.process(logits, rows, [TokenCounts(row) if row.history else None for row in rows])


def random_logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 4


def counts(token_ids: tuple[int, ...]) -> torch.Tensor:
    return torch.bincount(torch.tensor(token_ids, dtype=torch.long), minlength=VOCAB).float()


@pytest.mark.parametrize("penalty", [0.5, 1.1, 2.0, 10.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = random_logits(1)
    want = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([HISTORY]), logits.clone())
    torch.testing.assert_close(process(logits, [make_row(repetition_penalty=penalty)]), want)
    assert not torch.equal(want, logits)


@pytest.mark.parametrize("penalty", [-2.0, 0.3, 2.0])
def test_frequency_penalty_counts_generated_tokens_only(penalty: float) -> None:
    """OpenAI: logits - count * penalty, over what was generated."""
    logits = random_logits(1)
    got = process(logits, [make_row(frequency_penalty=penalty)])
    torch.testing.assert_close(got[0], logits[0] - penalty * counts(OUTPUT))
    assert got[0, 4] == logits[0, 4], "a token of the prompt alone is not penalized"


@pytest.mark.parametrize("penalty", [-2.0, 0.3, 2.0])
def test_presence_penalty_is_the_same_however_often_a_token_came(penalty: float) -> None:
    logits = random_logits(1)
    got = process(logits, [make_row(presence_penalty=penalty)])
    torch.testing.assert_close(got[0], logits[0] - penalty * (counts(OUTPUT) > 0))


@pytest.mark.parametrize("penalty", [-2.0, 0.3, 2.0])
def test_relative_frequency_penalty_is_the_share_in_prompt_and_output(penalty: float) -> None:
    """TGI: logits - penalty * count / length."""
    logits = random_logits(1)
    got = process(logits, [make_row(relative_frequency_penalty=penalty)])
    torch.testing.assert_close(got[0], logits[0] - penalty * counts(HISTORY) / len(HISTORY))


def test_logit_bias_is_added_and_other_tokens_stay() -> None:
    logits = random_logits(1)
    got = process(logits, [make_row(logit_bias=((0, 5.0), (9, -100.0)))])
    want = logits.clone()
    want[0, 0] += 5.0
    want[0, 9] -= 100.0
    assert torch.equal(got, want)


def test_rules_apply_in_order() -> None:
    logits = random_logits(1)
    row = make_row(
        repetition_penalty=1.5,
        relative_frequency_penalty=0.7,
        frequency_penalty=0.3,
        presence_penalty=0.2,
        logit_bias=((7, 3.0),),
    )
    want = RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([HISTORY]), logits.clone())[0]
    want = want - 0.7 * counts(HISTORY) / len(HISTORY) - 0.3 * counts(OUTPUT) - 0.2 * (counts(OUTPUT) > 0)
    want[7] += 3.0
    torch.testing.assert_close(process(logits, [row])[0], want)


def test_what_would_end_the_text_waits_for_enough_tokens() -> None:
    logits = random_logits(4)
    params = {"min_new_tokens": 3, "end_token_ids": (2, 7, VOCAB + 5), "logit_bias": ((7, 100.0),)}
    rows = [make_row(step_index=step, **params) for step in (0, 2, 3)]
    got = process(logits, [*rows, make_row()])
    for i, is_early in enumerate((True, True, False)):
        assert torch.isneginf(got[i, [2, 7]]).all() == is_early, "whatever the bias says"
        assert not torch.isneginf(got[i, [0, 1, 3, 8]]).any()
    assert torch.equal(got[3], logits[3]), "nobody else waits"


@dataclass
class Allowing:
    """A grammar that allows these tokens."""

    tokens: tuple[int, ...]
    is_finished: bool = False

    def allowed_tokens(self) -> bytes:
        return sum(1 << token for token in self.tokens).to_bytes(-(-VOCAB // 8), "little")

    def advance(self, token_id: int) -> None:
        raise AssertionError("the runner only reads")


@pytest.mark.parametrize(
    ("allowed", "left"),
    [((2, 5, 9), {5, 9}), ((2, 7), {2, 7}), ((5,), {5})],
    ids=["it can go on", "a finished grammar ends", "no end in sight"],
)
def test_a_grammar_ends_early_only_when_it_must(allowed: tuple[int, ...], left: set[int]) -> None:
    constraint = Allowing(allowed)
    early = make_row(min_new_tokens=3, end_token_ids=(2, 7), constraint=constraint)
    late = make_row(min_new_tokens=3, end_token_ids=(2, 7), constraint=constraint, step_index=3)
    got = process(random_logits(2), [early, late])
    assert set(torch.isfinite(got[0]).nonzero()[:, 0].tolist()) == left
    assert set(torch.isfinite(got[1]).nonzero()[:, 0].tolist()) == set(allowed)


def test_each_row_of_a_batch_gets_its_own_rules_and_only_those() -> None:
    rows = [
        make_row(),
        make_row((1, 1, 2), 1, repetition_penalty=2.0),
        make_row((5,), 1, frequency_penalty=1.0),
        make_row(logit_bias=((2, -1.0),)),
        make_row((8, 9, 10, 11, 12, 13), 2, presence_penalty=-1.0, logit_bias=((2, 1.0),)),
        make_row(temperature=0.7, top_k=3),
        make_row((6, 6), 1, relative_frequency_penalty=1.0),
    ]
    logits = random_logits(len(rows))
    before = logits.clone()
    together = process(logits, rows)
    for i, row in enumerate(rows):
        assert torch.equal(together[i], process(logits[i : i + 1], [row])[0]), i
    for i in (0, 5):
        assert torch.equal(together[i], before[i]), "a row that asks for nothing is untouched"
    for i in (1, 3, 4, 6):
        assert not torch.equal(together[i], before[i])
    assert torch.equal(together[2], before[2]), "nothing was generated yet"
    assert torch.equal(logits, before), "the caller's logits are not written to"


def test_nothing_asked_returns_the_logits_as_they_are() -> None:
    logits = random_logits(2)
    assert process(logits, [make_row(), make_row()]) is logits


def test_masked_and_broken_rows_do_not_spread() -> None:
    logits = random_logits(3)
    logits[0, 5:] = float("-inf")
    logits[1, 0] = float("nan")
    rows = [make_row(repetition_penalty=1.3, relative_frequency_penalty=0.1, frequency_penalty=1.0)] * 3
    got = process(logits, rows)
    assert torch.isneginf(got[0, 5:]).all() and torch.isfinite(got[0, :5]).all()
    assert torch.isnan(got[1, 0])
    assert torch.equal(got[2], process(logits[2:], rows[2:])[0])


@pytest.mark.parametrize("penalty", [1e-300, 1e-30, 1e30, 1e300])
def test_an_extreme_repetition_penalty_stays_a_number(penalty: float) -> None:
    logits = random_logits(1)
    logits[0, 3] = 0.0
    got = process(logits, [make_row(repetition_penalty=penalty)])
    assert torch.isfinite(got).all()
