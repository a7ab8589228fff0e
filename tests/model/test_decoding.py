"""From the logits of a step to its tokens: which logits belong to which row, and in how many parts."""

import random

import pytest
import torch

from tests.model import plain_sampling
from tests.model.test_sampler import random_params, threads
from tgi_local.engine.step import StepRow
from tgi_local.model import decoding
from tgi_local.model.decoding import TokenChooser
from tgi_local.model.runner import _target_logprobs
from tgi_local.types import SamplingParams

VOCAB = 300


def random_rows(count: int, seed: int) -> list[StepRow]:
    """Rows with any sampling rules, half of them with penalties over a random history."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        params = random_params(rng)
        history: tuple[int, ...] = ()
        if rng.random() < 0.5:
            values = {"repetition_penalty": 1.3, "frequency_penalty": 0.7, "relative_frequency_penalty": -0.4}
            params = SamplingParams(
                **{name: getattr(params, name) for name in ("temperature", "top_k", "seed")}, **values
            )
            history = tuple(rng.randrange(VOCAB) for _ in range(rng.randrange(1, 50)))
        rows.append(
            StepRow(
                f"r{i}", (1,), 0, (0,), True, params, rng.randrange(9), history, num_prompt_tokens=len(history) // 2
            )
        )
    return rows


@pytest.mark.parametrize("chunk", [1, VOCAB, 3 * VOCAB, 2**20])
def test_rows_get_the_token_of_their_own_logits_in_however_many_parts(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "CPU_CHUNK", chunk)
    logits = torch.randn(40, VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    before = logits.clone()
    for seed in range(5):
        rng = random.Random(seed)
        positions = sorted(rng.sample(range(40), rng.choice([1, 9, 20]))) if seed else list(range(40))
        rows = random_rows(len(positions), seed)
        assert TokenChooser().choose(logits, positions, rows) == plain_sampling.sample(logits[positions], rows)
    assert torch.equal(logits, before), "prompts are scored with these after the tokens are chosen"


def test_a_step_without_a_row_to_choose_for() -> None:
    assert TokenChooser().choose(torch.zeros(0, VOCAB), [], []) == []


def test_the_score_of_a_prompt_token_is_the_same_alone_and_among_others() -> None:
    """Torch shares the sum of a single long row between threads, and then it comes out otherwise."""
    logits = torch.randn(9, 151_936, generator=torch.Generator().manual_seed(0)) * 3
    targets = tuple(range(100, 109))
    row = StepRow("r", tuple(range(9)), 0, (0,), False, SamplingParams(), logprob_targets=targets)
    with threads(2):
        together = _target_logprobs(logits, 0, row)
        alone = [
            _target_logprobs(
                logits, i, StepRow("r", (1,), 0, (0,), False, SamplingParams(), logprob_targets=(target,))
            )[0]
            for i, target in enumerate(targets)
        ]
    assert list(together) == alone
    assert together == pytest.approx(
        logits.double().log_softmax(-1).gather(1, torch.tensor(targets)[:, None])[:, 0].tolist()
    )
