"""Counts that are kept from step to step are those of the whole history, whatever happens to a request in between."""

import random
from typing import Any

import numpy as np
import pytest

from tgi_local.engine.step import StepRow
from tgi_local.model.token_counts import CountKeeper, TokenCounts
from tgi_local.types import SamplingParams

VOCAB = 30


def make_row(request_id: str, history: list[int], num_prompt: int) -> StepRow:
    return StepRow(
        request_id,
        (history[-1],),
        len(history) - 1,
        (0,),
        True,
        SamplingParams(frequency_penalty=1.0),
        step_index=len(history) - num_prompt,
        history=tuple(history),
        num_prompt_tokens=num_prompt,
    )


def as_lists(counts: TokenCounts | None) -> tuple[list[float], list[float], int]:
    """Per token id of the vocabulary, as one would count them."""
    assert counts is not None
    dense = np.zeros((2, VOCAB))
    dense[0, counts.ids], dense[1, counts.ids] = counts.seen, counts.generated
    assert len(set(counts.ids.tolist())) == len(counts.ids)
    return dense[0].tolist(), dense[1].tolist(), counts.length


def counted(history: list[int], num_prompt: int) -> tuple[list[float], list[float], int]:
    seen = [float(history.count(token)) for token in range(VOCAB)]
    generated = [float(history[num_prompt:].count(token)) for token in range(VOCAB)]
    return seen, generated, len(history)


def test_counts_follow_a_history_that_grows() -> None:
    rng = random.Random(0)
    history = [1, 1, 5]
    keeper = CountKeeper()
    for _ in range(60):
        (counts,) = keeper.step([make_row("r", history, 3)])
        assert as_lists(counts) == counted(history, 3)
        history.append(rng.randrange(VOCAB))


def check_many(seed: int) -> None:
    """Requests come, pause and go. A pause is what preemption looks like from here."""
    rng = random.Random(seed)
    keeper = CountKeeper()
    histories: dict[str, tuple[list[int], int]] = {}
    for step in range(150):
        if rng.random() < 0.2:
            prompt = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 9))]
            histories[rng.choice("abcdefgh")] = prompt, len(prompt)  # an id may come back with another prompt
        names = [name for name in histories if rng.random() < 0.8]
        rows = [make_row(name, *histories[name]) for name in names]
        plain = StepRow(f"plain {step}", (3,), 0, (0,), True, SamplingParams())
        *found, of_plain = keeper.step([*rows, plain])
        assert of_plain is None
        assert [as_lists(counts) for counts in found] == [counted(*histories[name]) for name in names]
        for name in names:
            if rng.random() < 0.9:  # else the same step again, as after one that failed
                histories[name][0].append(rng.randrange(VOCAB))
        for name in set(histories) - set(names):
            if rng.random() < 0.3:  # recomputed elsewhere
                histories[name][0].extend([1, 2])
        if histories and rng.random() < 0.1:
            del histories[rng.choice(list(histories))]


@pytest.mark.parametrize("seed", range(3))
def test_counts_of_many_requests_that_come_pause_and_go(seed: int) -> None:
    check_many(seed)


@pytest.mark.parametrize(
    "broken",
    [
        lambda counts, row: True,
        lambda counts, row: counts.step_index + 1 == row.step_index or counts.length == len(row.history),
    ],
    ids=["any earlier counts", "the same step twice"],
)
def test_the_check_notices_counts_that_are_out_of_date(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenCounts, "precedes", broken)
    with pytest.raises(AssertionError):
        check_many(0)


def test_nothing_is_kept_of_requests_that_have_left() -> None:
    keeper = CountKeeper()
    for i in range(50):
        keeper.step([make_row(f"r{i}", [1, 2], 1)])
    assert list(keeper._counts) == ["r49"]
    keeper.step([])
    assert not keeper._counts
