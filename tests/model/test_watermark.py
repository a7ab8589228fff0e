"""The watermark is Transformers' own, found by its detector in what the engine writes, and only where asked for."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, WatermarkDetector, WatermarkLogitsProcessor

from tests.checkpoints import make_checkpoint
from tests.model.test_parity import make_engine, run, token_ids
from tgi_local.engine.step import StepRow
from tgi_local.model.loader import LoadOptions, load
from tgi_local.model.logits import process
from tgi_local.model.token_counts import TokenCounts
from tgi_local.model.watermark import CACHED_LISTS, HASH_KEY, green_list
from tgi_local.types import GenerationRequest, SamplingParams, StopParams, Watermark

VOCAB_SIZES = [9, 512, 1003, 50_257]
NUM_NEW = 200


USUAL = Watermark()


def make_row(previous: int, watermark: Watermark | None = USUAL, **sampling: Any) -> StepRow:
    params = SamplingParams(watermark=watermark, **sampling)
    return StepRow(f"after {previous}", (3, previous), 5, (0,), True, params)


def theirs(vocab_size: int, watermark: Watermark) -> WatermarkLogitsProcessor:
    return WatermarkLogitsProcessor(
        vocab_size, "cpu", watermark.gamma, watermark.delta, hashing_key=HASH_KEY, seeding_scheme="lefthash"
    )


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("watermark", [Watermark(), Watermark(0.25, 4.0), Watermark(0.9, 0.5)], ids=str)
def test_the_logits_are_those_of_transformers(vocab_size: int, watermark: Watermark) -> None:
    logits = torch.randn(7, vocab_size, generator=torch.Generator().manual_seed(0)) * 4
    previous = [0, 1, 8, 3, 3, vocab_size - 1, vocab_size // 2]
    want = theirs(vocab_size, watermark)(torch.tensor([[9, token] for token in previous]), logits)
    rows = [make_row(token, watermark) for token in previous]
    assert torch.equal(process(logits, rows, [None] * 7), want)
    assert not torch.equal(logits, want)
    assert torch.equal(process(logits, rows, [None] * 7), want), "from the cache as well"


def test_rows_of_a_batch_have_their_own_and_others_none() -> None:
    logits = torch.randn(4, 512, generator=torch.Generator().manual_seed(1))
    rows = [make_row(5), make_row(5, None), make_row(9, Watermark(0.1, 9.0)), make_row(5, None, logit_bias=((1, 2.0),))]
    got = process(logits, rows, [None] * 4)
    assert torch.equal(got[1], logits[1])
    assert got[3, 1] == logits[3, 1] + 2 and torch.equal(got[3, 2:], logits[3, 2:])
    assert torch.equal(got[0], process(logits[:1], rows[:1], [None])[0])
    assert (got[2] != logits[2]).sum() == 51


def test_it_comes_before_the_penalties() -> None:
    """TGI's order; a repetition penalty multiplies, so the order shows."""
    logits = torch.full((1, 512), 1.0)
    row = StepRow("r", (3,), 0, (0,), True, SamplingParams(watermark=Watermark(), repetition_penalty=2.0), history=(4,))
    got = process(logits, [row], [TokenCounts(row)])
    is_green = bool(theirs(512, Watermark())(torch.tensor([[3]]), logits)[0, 4] > 1)
    assert got[0, 4] == (1.5 if is_green else 0.5)


def test_memory_is_bounded() -> None:
    for token in range(CACHED_LISTS + 100):
        green_list(token, 16, 0.5)
    assert green_list.cache_info().currsize == CACHED_LISTS


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """What a small model writes with and without, side by side in one batch."""
    # Less sure of itself than the other tests' model: no watermark shows where the next token is certain.
    folder = make_checkpoint(tmp_path_factory.mktemp("unsure"), initializer_range=0.1)
    loaded = load(folder, "tiny", None, False, LoadOptions(dtype="float32", device="cpu"))
    requests = [
        GenerationRequest(
            f"{name} {i}",
            "",
            (7, 8, 9),
            SamplingParams(temperature=1.0, seed=i, watermark=watermark),
            StopParams(NUM_NEW),
        )
        for name, watermark in (("marked", Watermark()), ("plain", None))
        for i in range(4)
    ]
    return {name: token_ids(events) for name, events in run(make_engine(loaded), requests).items()}


def z_scores(answers: dict[str, list[int]], name: str, hash_key: int = HASH_KEY) -> list[float]:
    config = {"greenlist_ratio": 0.5, "bias": 2.0, "hashing_key": hash_key, "seeding_scheme": "lefthash"}
    model = LlamaConfig(vocab_size=512, bos_token_id=10**6)
    detector = WatermarkDetector(model, "cpu", {**config, "context_width": 1}, ignore_repeated_ngrams=True)
    texts = torch.tensor([tokens for key, tokens in answers.items() if key.startswith(name)])
    return detector(texts, return_dict=True).z_score.tolist()


def test_the_detector_finds_it(answers: dict[str, list[int]]) -> None:
    assert min(z_scores(answers, "marked")) > 6


def test_the_detector_finds_nothing_where_nothing_is(answers: dict[str, list[int]]) -> None:
    assert max(z_scores(answers, "plain")) < 4
    assert max(z_scores(answers, "marked", hash_key=12345)) < 4, "with another key"
