"""What one request gets alone is what it gets in any company: executions under test, random requests, broken builds.

An execution is how a model's steps are computed; the checks of `test_determinism` take any. A new one is a line in
EXECUTIONS, and its `tolerance` says what it promises: 0, that it computes a row by the same bits in any batch.
"""

import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tests.checkpoints import VOCAB_SIZE
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import Engine
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.engine.step import Runner, StepPlan, StepResult, StepRow
from tgi_local.model.loader import LoadOptions, load
from tgi_local.model.runner import build_runner
from tgi_local.types import FinishReason, GenerationRequest, SamplingParams, StopParams, TokenEvent, Watermark

BLOCK_SIZE = 16
CACHE_TOKENS = 32_768


@dataclass(frozen=True)
class Execution:
    """`tolerance` of log-probabilities between alone and in company; 0: equal bit for bit.

    `margin`: where the best two tokens are closer than this, company may change which is chosen. 0: never.
    """

    name: str
    options: LoadOptions
    tolerance: float = 0.0
    margin: float = 0.0

    def build(self, folder: Path) -> Runner:
        loaded = load(folder, self.name, None, False, self.options)
        assert (loaded.packed is not None) == self.options.may_pack
        return build_runner(
            loaded, block_size=BLOCK_SIZE, min_tokens=16, max_tokens=CACHE_TOKENS, requested_tokens=CACHE_TOKENS
        )


def options(dtype: str, quantize: str | None = None, *, native: bool) -> LoadOptions:
    return LoadOptions(dtype, quantize or "none", "cpu", may_pack=native)


# Each is to be exact: a token never depends on the company.
EXECUTIONS = (
    Execution("modules float32", options("float32", native=False), tolerance=1e-4),
    Execution("native float32", options("float32", native=True)),
)
MORE_EXECUTIONS = (
    Execution("native bfloat16", options("bfloat16", native=True)),
    Execution("native int8", options("bfloat16", "int8", native=True)),
    Execution("native int4", options("bfloat16", "int4", native=True)),
)
# How torch multiplies a matrix depends on its height, and in 16 bits it rounds otherwise; bitsandbytes' kernels for the CPU
# compute in 16 bits, too.
ROUGH_EXECUTIONS = (
    Execution("modules bfloat16", options("bfloat16", native=False), tolerance=0.2, margin=0.1),
    Execution("modules float16", options("float16", native=False), tolerance=0.2, margin=0.1),
    Execution("modules nf4", options("float32", "bitsandbytes-nf4", native=False), tolerance=0.2, margin=0.1),
)


@dataclass(frozen=True)
class Answer:
    """Everything a client could see, but times."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    tops: tuple[tuple[tuple[int, float | None], ...], ...]
    prompt_logprobs: tuple[float | None, ...] | None
    finish: FinishReason | None
    num_cached: int = 0


def engine_of(
    runner: Runner,
    *,
    batch: int = 64,
    step_tokens: int = 4096,
    cache_tokens: int = CACHE_TOKENS,
    blocks: Callable[[int, int], BlockManager] = BlockManager,
) -> Engine:
    """A new engine on `runner`, whose cache still holds what others have left there."""
    manager = blocks(cache_tokens // BLOCK_SIZE, BLOCK_SIZE)
    return Engine(Scheduler(SchedulerLimits(batch, step_tokens), manager), runner)


def serve(
    engine: Engine,
    requests: Iterable[GenerationRequest],
    rng: random.Random | None = None,
    *,
    leavers: Mapping[str, int] | None = None,
    between_steps: Callable[[], None] = lambda: None,
) -> dict[str, Answer]:
    """Run all; with `rng` they join at random steps. `leavers` go away after so many tokens."""
    waiting = list(requests)
    events: dict[str, list[TokenEvent]] = {request.request_id: [] for request in waiting}
    while waiting or engine.has_work:
        while waiting and (rng is None or rng.random() < 0.4):
            engine.submit(waiting.pop(0))
        for event in engine.step()[0]:
            assert event.error is None, f"{event.request_id}: {event.error}"
            mine = events[event.request_id]
            mine.append(event)
            if leavers is not None and len(mine) == leavers.get(event.request_id):
                engine.cancel(event.request_id)
        engine.check_invariants()
        between_steps()
    return {request_id: _answer(mine) for request_id, mine in events.items()}


def _answer(events: Sequence[TokenEvent]) -> Answer:
    tokens = [event.token for event in events if event.token is not None]
    scored = events[0].prompt_logprobs if events else None
    return Answer(
        tuple(token.id for token in tokens),
        tuple(token.logprob for token in tokens),
        tuple(tuple((top.id, top.logprob) for top in token.top) for token in tokens),
        None if scored is None else tuple(token.logprob for token in scored),
        events[-1].finish_reason if events else None,
        events[0].num_cached_tokens if events else 0,
    )


def alone(runner: Runner, requests: Iterable[GenerationRequest]) -> dict[str, Answer]:
    """What each of them gets when there is nobody else, and nobody was there before."""
    return {request.request_id: serve(engine_of(runner), [request])[request.request_id] for request in requests}


def compare(execution: Execution, got: Answer, want: Answer) -> None:
    """Raises AssertionError where company has changed an answer beyond what `execution` may. `got` may have left early."""
    is_whole = got.finish is not None
    for index, (mine, other) in enumerate(zip(got.tokens, want.tokens, strict=False)):
        if mine != other:
            gap = _gap(want, index)
            assert gap < execution.margin, f"token {index} is {mine}, not {other}, which was ahead by {gap}"
            return
    assert (len(got.tokens), got.finish) == (len(want.tokens), want.finish) or not is_whole
    _compare_numbers(execution, got.logprobs, want.logprobs[: len(got.logprobs)])
    assert [len(top) for top in got.tops] == [len(top) for top in want.tops[: len(got.tops)]]
    for mine_top, other_top in zip(got.tops, want.tops, strict=False):
        _compare_numbers(execution, [value for _, value in mine_top], [value for _, value in other_top])
    if got.tokens:
        assert (got.prompt_logprobs is None) == (want.prompt_logprobs is None)
        _compare_numbers(execution, got.prompt_logprobs or (), want.prompt_logprobs or ())


def _gap(answer: Answer, index: int) -> float:
    """How far the best token was ahead of the second; infinite where that was not asked for."""
    top = answer.tops[index]
    if len(top) < 2 or top[0][1] is None or top[1][1] is None:
        return float("inf")
    return top[0][1] - top[1][1]


def _compare_numbers(execution: Execution, got: Sequence[float | None], want: Sequence[float | None]) -> None:
    for mine, other in zip(got, want, strict=True):
        if mine is None or other is None:
            assert mine is other
        else:
            assert mine == mine, "not a number"
            assert mine == other or abs(mine - other) <= execution.tolerance, f"log-probability {mine}, not {other}"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch's, and those of models loaded meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Requests.

PLAIN = SamplingParams()
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"top_n_tokens": 3},
    {"temperature": 1.0, "top_p": 0.95},
    {"temperature": 1.5, "top_k": 20},
    {"temperature": 0.8, "typical_p": 0.9},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 1.0, "min_p": 0.02, "presence_penalty": 0.7, "relative_frequency_penalty": 0.5},
    {"temperature": 1.0, "watermark": Watermark()},
    {"logit_bias": ((7, 3.0), (9, -3.0)), "min_new_tokens": 5, "end_token_ids": (3, 4, 5)},
)


def random_prompt(rng: random.Random, length: int) -> tuple[int, ...]:
    return tuple(rng.randrange(3, VOCAB_SIZE) for _ in range(length))


def make_request(
    request_id: str, prompt: Sequence[int], sampling: SamplingParams = PLAIN, num_new: int = 12, **fields: Any
) -> GenerationRequest:
    return GenerationRequest(request_id, "", tuple(prompt), sampling, StopParams(num_new), **fields)


def random_requests(
    count: int, seed: int, lengths: Sequence[int] = (1, 2, 15, 16, 17, 40, 100)
) -> list[GenerationRequest]:
    """Prompts of about these lengths under all kinds of rules; some end by a token, some score their prompt."""
    rng = random.Random(seed)
    requests = []
    for i in range(count):
        sampling = SamplingParams(**KINDS[i % len(KINDS)], seed=rng.getrandbits(64))
        prompt = random_prompt(rng, max(1, rng.choice(lengths) + rng.randrange(-1, 2)))
        request = make_request(f"r{i}", prompt, sampling, rng.randrange(2, 14), prompt_logprobs=i % 7 == 3)
        stops = frozenset(rng.sample(range(VOCAB_SIZE), 15))
        requests.append(replace(request, stopping=replace(request.stopping, stop_token_ids=stops)))
    return requests


# Builds that are broken on purpose. Each is right as long as a request is alone.

_FIELDS = tuple(inspect.signature(StepRow).parameters)


def changed(row: StepRow, **fields: Any) -> StepRow:
    return StepRow(**{**{name: getattr(row, name) for name in _FIELDS}, **fields})


class Broken:
    """A runner that is given other plans than the scheduler's."""

    def __init__(self, runner: Runner, change: Callable[[StepPlan], Iterable[StepRow]]) -> None:
        self._runner = runner
        self._change = change
        self.num_blocks = runner.num_blocks
        self.block_size = runner.block_size

    def run(self, plan: StepPlan) -> StepResult:
        return self._runner.run(StepPlan(tuple(self._change(plan))))


def shared_generator() -> Callable[[StepPlan], Iterable[StepRow]]:
    """Random numbers come from one source, in the order of the rows."""
    num_drawn: dict[str, int] = {}
    order: list[int] = [0]

    def change(plan: StepPlan) -> Iterable[StepRow]:
        if len(plan.rows) == 1:
            yield plan.rows[0]
            return
        for row in plan.rows:
            order[0] += row.is_sampling
            num_drawn[row.request_id] = order[0]
            yield changed(row, step_index=order[0] if row.is_sampling else row.step_index)

    return change


def shared_parameters(plan: StepPlan) -> Iterable[StepRow]:
    """The last row's rules apply to all."""
    last = plan.rows[-1]
    return (changed(row, sampling=last.sampling, history=row.history or (1,)) for row in plan.rows)


def crossed_tables(plan: StepPlan) -> Iterable[StepRow]:
    """The second row of several blocks reads the first block of the first such row."""
    rows = list(plan.rows)
    long = [i for i, row in enumerate(rows) if row.start >= BLOCK_SIZE]
    if len(long) > 1:
        first, second = rows[long[0]], rows[long[1]]
        rows[long[1]] = changed(second, block_table=(first.block_table[0], *second.block_table[1:]))
    return rows


def forgetful_chunks(plan: StepPlan) -> Iterable[StepRow]:
    """A chunk that goes on with a prompt does not see the block before it."""
    for row in plan.rows:
        if len(row.token_ids) > 1 and row.start >= BLOCK_SIZE and row.step_index == 0:
            table = list(row.block_table)
            table[row.start // BLOCK_SIZE - 1] = table[-1]
            yield changed(row, block_table=tuple(table))
        else:
            yield row


def restarted_randomness(plan: StepPlan) -> Iterable[StepRow]:
    """A sequence that is computed again draws as if it had just begun."""
    for row in plan.rows:
        is_again = row.step_index > 0 and len(row.token_ids) > 1
        yield changed(row, step_index=0) if is_again else row


class Saltless(BlockManager):
    """A prefix cache that takes everybody for the same."""

    def _key(self, sequence: Any, index: int, parent: int | None) -> Any:
        _, tokens = super()._key(sequence, index, parent)
        return "" if parent is None else parent, tokens


class Parentless(BlockManager):
    """A prefix cache that finds a block by its own tokens, whatever came before them."""

    def _key(self, sequence: Any, index: int, parent: int | None) -> Any:
        return "", super()._key(sequence, index, parent)[1]
