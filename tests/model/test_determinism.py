"""A request gets the same answer alone and in any company, whatever happens to its company, its blocks and its prompt.

Each check is made to fail by a build that is broken on purpose.
"""

import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.checkpoints import make_checkpoint
from tests.model import determinism
from tests.model.determinism import (
    BLOCK_SIZE,
    EXECUTIONS,
    MORE_EXECUTIONS,
    ROUGH_EXECUTIONS,
    Answer,
    Broken,
    Execution,
    Parentless,
    Saltless,
    alone,
    compare,
    engine_of,
    make_request,
    random_prompt,
    random_requests,
    serve,
    threads,
)
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.step import Runner, StepPlan
from tgi_local.types import GenerationRequest, SamplingParams, Watermark

Change = Callable[[StepPlan], Iterable[determinism.StepRow]]


@dataclass(frozen=True)
class Case:
    """An execution of a small model, and what it answers when asked one at a time."""

    execution: Execution
    runner: Runner
    requests: Sequence[GenerationRequest]
    alone: dict[str, Answer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("deterministic"))


def make_case(execution: Execution, folder: Path, requests: Sequence[GenerationRequest]) -> Case:
    runner = execution.build(folder)
    return Case(execution, runner, requests, alone(runner, requests))


def by_name(execution: Execution) -> str:
    return execution.name.replace(" ", "-")


@pytest.fixture(scope="module", params=EXECUTIONS, ids=by_name)
def case(request: pytest.FixtureRequest, folder: Path) -> Case:
    return make_case(request.param, folder, random_requests(40, seed=1))


@pytest.fixture(scope="module")
def any_case(folder: Path) -> Case:
    """For what does not depend on the execution."""
    return make_case(EXECUTIONS[-1], folder, random_requests(40, seed=1))


@pytest.fixture(
    scope="module",
    params=[*EXECUTIONS, *(pytest.param(e, marks=pytest.mark.long) for e in MORE_EXECUTIONS)],
    ids=by_name,
)
def long_case(request: pytest.FixtureRequest, folder: Path) -> Case:
    lengths = (1, 2, 15, 16, 17, 40, 100, 250, 511)
    return make_case(request.param, folder, random_requests(150, seed=2, lengths=lengths))


# In company.


def check_company(case: Case, seed: int, change: Change | None = None) -> None:
    """One trial: some of the requests, in any order, joining and leaving whenever they like."""
    rng = random.Random(seed)
    chosen = rng.sample(case.requests, rng.randrange(2, min(64, len(case.requests)) + 1))
    batch = rng.choice([2, 8, 32, 64])
    runner = case.runner if change is None else Broken(case.runner, change)
    engine = engine_of(runner, batch=batch, step_tokens=rng.choice([batch, 64, 200, 2048]))
    leavers = {request.request_id: rng.randrange(1, 6) for request in chosen if rng.random() < 0.2}
    for request_id, answer in serve(engine, chosen, rng, leavers=leavers).items():
        compare(case.execution, answer, case.alone[request_id])


@pytest.mark.parametrize("seed", range(20))
def test_company_changes_nothing(case: Case, seed: int) -> None:
    check_company(case, seed)


@pytest.mark.parametrize(
    "execution",
    [EXECUTIONS[-1], *(pytest.param(e, marks=pytest.mark.long) for e in (EXECUTIONS[0], *MORE_EXECUTIONS))],
    ids=by_name,
)
def test_company_changes_nothing_with_two_threads(execution: Execution, folder: Path) -> None:
    """What threads share out may depend on how much there is."""
    with threads(2):
        case = make_case(execution, folder, random_requests(20, seed=1))
        for seed in range(3):
            check_company(case, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(200))
def test_company_changes_nothing_in_many_more_trials(long_case: Case, seed: int) -> None:
    check_company(long_case, seed)


@pytest.mark.parametrize(
    "breaking",
    [lambda: determinism.shared_parameters, determinism.shared_generator, lambda: determinism.crossed_tables],
    ids=["one row's parameters for all", "one generator for all", "one row's block read by another"],
)
def test_the_check_notices(any_case: Case, breaking: Callable[[], Change]) -> None:
    with pytest.raises(AssertionError):
        for seed in range(5):
            check_company(any_case, seed, breaking())


def test_the_check_notices_a_mask_that_is_off_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding has one visible place; only a batch with a longer context has any."""
    from tgi_local.model.attention import PagedStep

    case = make_case(EXECUTIONS[0], folder, random_requests(20, seed=1))
    decode_mask = PagedStep._decode_mask

    def wrong(self: PagedStep, group: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        if not self._masks:
            self.decodes = [replace(rows, lens=rows.lens + 1) for rows in self.decodes]
        return decode_mask(self, group, window, dtype)

    monkeypatch.setattr(PagedStep, "_decode_mask", wrong)
    assert alone(case.runner, case.requests[:3]) == {r.request_id: case.alone[r.request_id] for r in case.requests[:3]}
    with pytest.raises(AssertionError):
        for seed in range(5):
            check_company(case, seed)


@pytest.mark.long
@pytest.mark.parametrize("execution", [*MORE_EXECUTIONS, *ROUGH_EXECUTIONS], ids=by_name)
def test_other_number_formats_stray_only_where_it_is_close(execution: Execution, folder: Path) -> None:
    """In 16 bits a batch rounds otherwise; that may decide between two tokens that are about as likely, and no others."""
    rng = random.Random(3)
    sampling = SamplingParams(top_n_tokens=2)
    requests = [make_request(f"r{i}", random_prompt(rng, rng.randrange(1, 120)), sampling) for i in range(64)]
    case = make_case(execution, folder, requests)
    answers = serve(engine_of(case.runner), requests, random.Random(4))
    num_strays = 0
    for request_id, answer in answers.items():
        compare(execution, answer, case.alone[request_id])
        num_strays += answer.tokens != case.alone[request_id].tokens
    assert num_strays <= (0.1 * len(requests) if execution.margin else 0)


def test_a_token_far_ahead_may_never_be_passed(folder: Path) -> None:
    """What the comparison allows 16-bit executions does not hide a fault."""
    execution = replace(EXECUTIONS[-1], tolerance=0.2, margin=0.1)
    rng = random.Random(3)
    sampling = SamplingParams(top_n_tokens=2)
    requests = [make_request(f"r{i}", random_prompt(rng, 60), sampling) for i in range(8)]
    case = make_case(execution, folder, requests)
    broken = Broken(case.runner, determinism.crossed_tables)
    with pytest.raises(AssertionError):
        for request_id, answer in serve(engine_of(broken), requests).items():
            compare(execution, answer, case.alone[request_id])


# The needle: one prompt anywhere among random ones.


def check_needle(case: Case, seed: int, change: Change | None = None) -> None:
    rng = random.Random(seed)
    needle = case.requests[seed % len(case.requests)]
    fillers = [
        make_request(f"filler {i}", random_prompt(rng, rng.randrange(1, 150)), num_new=rng.randrange(1, 20))
        for i in range(rng.choice([1, 20, 63]))
    ]
    fillers.insert(rng.randrange(len(fillers) + 1), needle)
    runner = case.runner if change is None else Broken(case.runner, change)
    answer = serve(engine_of(runner), fillers)[needle.request_id]
    compare(case.execution, answer, case.alone[needle.request_id])


@pytest.mark.parametrize("seed", range(5))
def test_a_needle_is_found_unchanged(case: Case, seed: int) -> None:
    check_needle(case, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5, 105))
def test_a_needle_is_found_unchanged_in_many_more_trials(long_case: Case, seed: int) -> None:
    check_needle(long_case, seed)


def test_the_needle_notices_a_neighbour(any_case: Case) -> None:
    with pytest.raises(AssertionError):
        for seed in range(10):
            check_needle(any_case, seed, determinism.shared_parameters)


# Contexts of very different length.


def check_lengths(execution: Execution, runner: Runner, longest: int, change: Change | None = None) -> None:
    """One token, most of the context, and one more than a block, together from the first step to the last."""
    rng = random.Random(5)
    sampling = SamplingParams(top_n_tokens=1)
    requests = [
        make_request(f"{length}", random_prompt(rng, length), sampling, num_new=30) for length in (1, longest, 17, 2)
    ]
    want = alone(runner, requests)
    broken = runner if change is None else Broken(runner, change)
    for request_id, answer in serve(engine_of(broken), requests).items():
        compare(execution, answer, want[request_id])


def test_one_token_beside_a_full_context(case: Case) -> None:
    check_lengths(case.execution, case.runner, 4000)


def test_the_lengths_notice_a_neighbour(any_case: Case) -> None:
    with pytest.raises(AssertionError):
        check_lengths(any_case.execution, any_case.runner, 200, determinism.crossed_tables)


# Prompts computed in pieces.


def check_chunks(case: Case, chunk: int, change: Change | None = None) -> None:
    requests = [request for request in case.requests if len(request.prompt_token_ids) < 120][:20]
    runner = case.runner if change is None else Broken(case.runner, change)
    engine = engine_of(runner, batch=min(chunk, 16), step_tokens=chunk)
    for request_id, answer in serve(engine, requests).items():
        compare(case.execution, answer, case.alone[request_id])


@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
def test_pieces_of_any_size_make_the_same_prompt(case: Case, chunk: int) -> None:
    check_chunks(case, chunk)


def test_the_pieces_notice_a_block_that_is_not_seen(any_case: Case) -> None:
    with pytest.raises(AssertionError):
        check_chunks(any_case, 24, determinism.forgetful_chunks)


# Blocks of others.


def check_prefix_cache(case: Case, blocks: Callable[[int, int], BlockManager] = BlockManager) -> None:
    """Shared by all, found again, evicted in between, and never across salts."""
    rng = random.Random(6)
    system = random_prompt(rng, 50)
    bases = [replace(r, prompt_logprobs=False) for r in case.requests[:12]]
    requests = [replace(r, prompt_token_ids=(*system, *r.prompt_token_ids)) for r in bases]
    # Two systems' worth of the same blocks behind another beginning: found by tokens alone they would be wrong.
    other = (9, *system[1:BLOCK_SIZE])
    requests += [
        replace(r, request_id=f"{r.request_id} other", prompt_token_ids=(*other, *r.prompt_token_ids[BLOCK_SIZE:]))
        for r in requests[:4]
    ]
    want = alone(case.runner, requests)

    def check(engine: determinism.Engine, salt: Callable[[int], str], order: random.Random | None) -> list[int]:
        salted = [replace(r, cache_salt=salt(i)) for i, r in enumerate(requests)]
        answers = serve(engine, salted, order)
        for request_id, answer in answers.items():
            compare(case.execution, answer, want[request_id])
        return [answer.num_cached for answer in answers.values()]

    assert not any(check(engine_of(case.runner, blocks=blocks), str, None)), "each in a cache of its own"
    engine = engine_of(case.runner, blocks=blocks)
    assert check(engine, lambda i: "", None)[1:4] == 3 * [len(system) // BLOCK_SIZE * BLOCK_SIZE]
    lengths = [(len(r.prompt_token_ids) - 1) // BLOCK_SIZE * BLOCK_SIZE for r in requests]
    assert check(engine, lambda i: "", rng) == lengths, "found again"
    assert not any(check(engine, lambda i: f"new {i}", None)), "others' blocks"
    small = engine_of(case.runner, blocks=blocks, cache_tokens=24 * BLOCK_SIZE)
    for _ in range(3):
        check(small, lambda i: f"{i % 2}", rng)


def test_blocks_of_others_change_nothing(case: Case) -> None:
    check_prefix_cache(case)


@pytest.mark.parametrize("blocks", [Saltless, Parentless], ids=["without salts", "by its own tokens"])
def test_the_check_notices_a_cache_that_finds_too_much(any_case: Case, blocks: type[BlockManager]) -> None:
    with pytest.raises(AssertionError):
        check_prefix_cache(any_case, blocks)


# Preemption.


def check_preemption(case: Case, change: Change | None = None) -> None:
    """Each request is thrown out between two of its tokens, as when blocks run short, and some are again and again."""
    rng = random.Random(7)
    requests = [r for r in case.requests if len(case.alone[r.request_id].tokens) > 4][:12]
    engine = engine_of(case.runner if change is None else Broken(case.runner, change))
    scheduler = engine._scheduler
    preempted: set[str] = set()

    def preempt_someone() -> None:
        running = [s for s in scheduler._running.values() if s.num_generated_tokens > 0]
        spared = [s for s in running if s.request_id not in preempted]
        if running and (spared or rng.random() < 0.3):
            victim = rng.choice(spared or running)
            preempted.add(victim.request_id)
            scheduler._preempt(victim)

    answers = serve(engine, requests, rng, between_steps=preempt_someone)
    assert preempted == answers.keys()
    for request_id, answer in answers.items():
        compare(case.execution, answer, case.alone[request_id])


def test_preemption_changes_nothing(case: Case) -> None:
    check_preemption(case)


def test_the_check_notices_randomness_that_starts_again(any_case: Case) -> None:
    with pytest.raises(AssertionError):
        check_preemption(any_case, determinism.restarted_randomness)


# Seeds.


def seeded(count: int, shared_seed: int | None = None) -> list[GenerationRequest]:
    return [
        make_request(
            f"s{i}",
            (5, 6, 7),
            SamplingParams(temperature=1.5, seed=i if shared_seed is None else shared_seed),
            num_new=10,
        )
        for i in range(count)
    ]


def num_different(runner: Runner, requests: Sequence[GenerationRequest]) -> int:
    """Pairs of neighbours whose texts differ."""
    answers = list(serve(engine_of(runner), requests).values())
    return sum(a.tokens != b.tokens for a, b in zip(answers[::2], answers[1::2], strict=True))


def test_a_seed_gives_the_same_text_alone_in_a_crowd_and_after_a_restart(case: Case, folder: Path) -> None:
    requests = seeded(64)
    crowd = serve(engine_of(case.runner), requests, random.Random(8))
    few = requests[::9]
    for answers in (alone(case.runner, few), alone(case.execution.build(folder), few)):
        for request_id, answer in answers.items():
            compare(case.execution, crowd[request_id], answer)


def test_different_seeds_give_different_texts(any_case: Case) -> None:
    assert num_different(any_case.runner, seeded(400)) >= 0.95 * 200
    assert num_different(any_case.runner, seeded(20, shared_seed=4)) == 0, "the same seed does not"


# Parameters of others.


def check_leaks(case: Case, change: Change | None = None) -> None:
    """One client that asks for everything, in the middle of 63 that ask for nothing."""
    rng = random.Random(9)
    everything = SamplingParams(
        temperature=2.0,
        top_k=200,
        top_p=0.99,
        typical_p=0.99,
        min_p=0.001,
        repetition_penalty=5.0,
        frequency_penalty=2.0,
        presence_penalty=-2.0,
        relative_frequency_penalty=2.0,
        logit_bias=tuple((token, 100.0 if token % 2 else -100.0) for token in range(0, 500, 7)),
        watermark=Watermark(0.1, 50.0),
        min_new_tokens=9,
        end_token_ids=tuple(range(100)),
        top_n_tokens=5,
        seed=99,
    )
    requests = [make_request(f"plain {i}", random_prompt(rng, rng.randrange(1, 40)), num_new=8) for i in range(63)]
    requests.insert(31, make_request("extreme", random_prompt(rng, 20), everything, prompt_logprobs=True))
    want = alone(case.runner, requests[20:44])
    runner = case.runner if change is None else Broken(case.runner, change)
    answers = serve(engine_of(runner), requests, random.Random(10))
    for request_id, answer in want.items():
        compare(case.execution, answers[request_id], answer)
    for request_id, answer in answers.items():
        is_extreme = request_id == "extreme"
        assert (answer.prompt_logprobs is not None) == is_extreme
        # Fewer than five where the filters leave fewer.
        assert all((1 <= len(top) <= 5) if is_extreme else not top for top in answer.tops)


def test_parameters_stay_with_their_request(case: Case) -> None:
    check_leaks(case)


def test_the_check_notices_parameters_that_spread(any_case: Case) -> None:
    with pytest.raises(AssertionError):
        check_leaks(any_case, determinism.shared_parameters)


def test_the_requests_of_these_tests_have_something_to_lose(any_case: Case) -> None:
    """Answers that are all alike, or all decided from the start, would prove nothing."""
    answers = any_case.alone.values()
    assert len({answer.tokens for answer in answers}) == len(answers)
    assert len({token for answer in answers for token in answer.tokens}) > 60
    assert statistics.median(logprob for answer in answers for logprob in answer.logprobs) < -0.05
    assert {answer.finish for answer in answers} == {determinism.FinishReason.EOS, determinism.FinishReason.LENGTH}
