"""From the logits of a step to its tokens: which logits belong to which row, and in how many parts."""

import random
from collections.abc import Iterator

import pytest
import torch

from tests.model import plain_sampling
from tests.model.determinism import threads
from tests.model.test_sampler import random_params
from tgi_local.engine.step import StepRow
from tgi_local.model import decoding
from tgi_local.model.decoding import TokenChooser
from tgi_local.model.native import library
from tgi_local.model.native.greedy import GreedyChooser
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
    sampling = SamplingParams(top_n_tokens=2)
    row = StepRow("r", tuple(range(9)), 0, (0,), False, sampling, logprob_targets=targets)
    with threads(2):
        together = _target_logprobs(logits, 0, row)
        alone = [
            _target_logprobs(logits, i, StepRow("r", (1,), 0, (0,), False, sampling, logprob_targets=(target,)))[0]
            for i, target in enumerate(targets)
        ]
    assert list(together) == alone
    expected = logits.double().log_softmax(-1)
    assert [t.id for t in together] == list(targets)
    assert [t.logprob for t in together] == pytest.approx(
        expected.gather(1, torch.tensor(targets)[:, None])[:, 0].tolist()
    )
    best = expected.topk(2)
    assert [[t.id for t in token.top] for token in together] == best.indices.tolist()
    assert [[t.logprob for t in token.top] for token in together] == [
        pytest.approx(values, abs=1e-4) for values in best.values.tolist()
    ]


@pytest.fixture(params=[1, 2])
def greedy(request: pytest.FixtureRequest) -> Iterator[GreedyChooser]:
    try:
        kernels = library.load()
    except library.UnavailableError as error:
        pytest.skip(str(error))
    team = kernels.team_create(request.param)
    yield GreedyChooser(team)
    kernels.team_destroy(team)


@pytest.mark.parametrize("vocab_size", [1, 7, 16, 300, 5003])
def test_the_kernels_choose_the_tokens_of_the_plain_way(greedy: GreedyChooser, vocab_size: int) -> None:
    """Equals, excluded tokens, and logits that are not numbers among them."""
    logits = torch.randn(70, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 4
    logits[::3] = logits[::3].round()
    logits[5, vocab_size // 2 :] = float("-inf")
    logits[6] = float("-inf")
    for row, value in ((7, "nan"), (8, "inf")):
        logits[row, vocab_size // 2] = float(value)
    positions = [i for i in range(70) if i % 5]
    rows = [StepRow(f"r{i}", (1,), 0, (0,), True, SamplingParams()) for i in positions]
    got = TokenChooser(greedy).choose(logits, positions, rows)
    for mine, want in zip(got, plain_sampling.sample(logits[positions], rows), strict=True):
        if want is None:
            assert mine is None
        else:
            assert mine is not None and mine.id == want.id and mine.logprob == pytest.approx(want.logprob, abs=1e-5)
    assert [greedy.choose(logits, [i])[0] for i in positions] == got, "bit for bit alone and among others"


def test_rows_that_the_kernels_choose_for_stay_apart_from_the_others(greedy: GreedyChooser) -> None:
    logits = torch.randn(40, VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    rows = random_rows(40, seed=11)
    got = TokenChooser(greedy).choose(logits, list(range(40)), rows)
    want = plain_sampling.sample(logits, rows)
    assert [token and token.id for token in got] == [token and token.id for token in want]
