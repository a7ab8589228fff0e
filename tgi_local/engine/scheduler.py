"""Who runs next. Plans steps of mixed prefill chunks and decodes, first come first served; plain Python."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.prefix_cache import BlockKey
from tgi_local.engine.sequence import Sequence
from tgi_local.engine.step import RowResult, StepPlan, StepResult, StepRow
from tgi_local.engine.step_budget import StepBudget
from tgi_local.engine.step_pace import StepPace
from tgi_local.engine.waiting_queue import WaitingQueue
from tgi_local.errors import GenerationError
from tgi_local.types import FinishReason, GenerationRequest, SampledToken, TokenEvent, TokenLogprob

logger = logging.getLogger(__name__)

# Prompt log-probabilities need the logits of every position, which for a whole chunk would take gigabytes.
MAX_SCORED_TOKENS = 256
# Blocks of waiting prompts looked up in the prefix cache per step, so that a crowd of long ones delays nobody's token.
MAX_LOOKUPS = 4096


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of one step: rows, and tokens computed over all rows."""

    max_batch_size: int
    max_batch_tokens: int


@dataclass(slots=True)
class Counts:
    """What a step did. Every prompt token is in one of the first two, once."""

    num_prompt_tokens: int = 0
    num_cached_prompt_tokens: int = 0  # not computed, because the prefix cache had them
    num_recomputed_tokens: int = 0
    num_generated_tokens: int = 0
    num_preempted: int = 0

    def computed(self, sequence: Sequence, num_new: int) -> None:
        """Count the next `num_new` tokens of `sequence`, which were computed."""
        start, seen = sequence.num_computed_tokens, sequence.num_seen_tokens
        end = start + num_new
        if start < seen:
            self.num_recomputed_tokens += min(end, seen) - start
        if end > seen:
            self.num_prompt_tokens += max(0, min(end, sequence.num_prompt_tokens) - seen)
            sequence.num_seen_tokens = end


class Scheduler:
    """Owns the waiting and running sequences. Called by the engine thread only.

    Running sequences keep the order of their admission. Decodes are planned before prefill chunks, so no prompt stalls a
    stream; blocks run short from the newest sequence, which returns to the queue's head and is recomputed later.

    A waiting sequence whose next prefix block is being computed by a running one waits for that step and shares the
    block. Others may pass it meanwhile, which ends with that prefill: only a sequence ahead of it could start another
    one of the same prefix. Nobody passes a sequence that waits for blocks.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        blocks: BlockManager,
        clock: Callable[[], float] = time.monotonic,
        pace: StepPace | None = None,
    ) -> None:
        self.limits = limits
        self.blocks = blocks
        self.budget = StepBudget(limits.max_batch_tokens)
        self.num_preempted, self._counts = 0, Counts()
        self.max_running_tokens = 0  # what the running requests come to when all of them use up their budget
        self.pace, self._clock = pace, clock
        self._waiting = WaitingQueue()
        self._running: dict[str, Sequence] = {}  # by request id, the oldest first
        self._by_id: dict[str, Sequence] = {}

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._by_id)

    def add(self, request: GenerationRequest) -> None:
        """Queue a request. Raises ValueError for one that can never fit or whose id is in use."""
        if not request.prompt_token_ids or request.stopping.max_new_tokens < 1:
            raise ValueError("a request needs at least one prompt token and one token to generate")
        if request.request_id in self._by_id:
            raise ValueError(f"request id {request.request_id} is in use")
        sequence = Sequence(request)
        capacity = self.blocks.capacity_tokens
        if sequence.max_tokens > capacity:
            raise ValueError(f"{sequence.max_tokens} tokens can never fit in a KV cache of {capacity}")
        self._by_id[request.request_id] = sequence
        self._waiting.add(sequence)

    def cancel(self, request_id: str) -> bool:
        """Forget a request at any stage; False if it is not here (any more)."""
        sequence = self._by_id.get(request_id)
        if sequence is None:
            return False
        self._remove(sequence)
        return True

    def schedule(self) -> StepPlan | None:
        """The next step, or None when there is nothing to do."""
        planned: dict[str, StepRow] = {}
        budget = self.budget.tokens
        num_preempted_before = self.num_preempted
        # Decodes first: one token each, so that prefill only gets what is left of the budget, and of the time.
        prefilling = []
        for sequence in list(self._running.values()):
            if sequence.num_uncomputed_tokens > 1:
                prefilling.append(sequence)
            elif budget > 0:
                budget -= self._plan(sequence, 1, planned)
        if self.pace:
            budget = min(budget, self.pace.prompt_tokens(len(planned), len(prefilling) + len(self._waiting)))
        for sequence in prefilling:
            budget -= self._plan(sequence, _num_new_tokens(sequence, budget), planned)
        # A preemption means blocks are short: admitting now would only preempt again.
        if self.num_preempted == num_preempted_before:
            self._admit(budget, planned)
        rows = tuple(planned[request_id] for request_id in self._running if request_id in planned)
        return StepPlan(rows) if rows else None

    def update(self, plan: StepPlan, result: StepResult) -> list[TokenEvent]:
        """Book the outcome of `plan`. Rows cancelled while the step ran are dropped."""
        events = []
        now_s = self._clock()
        for row, outcome in zip(plan.rows, result.rows, strict=True):
            sequence = self._by_id.get(row.request_id)
            if sequence is None:
                continue
            event = self._book(sequence, row, outcome, now_s)
            if event is not None:
                events.append(event)
                if event.is_terminal:
                    self._remove(sequence)
                if outcome.is_corrupt:
                    self.blocks.forget_unused()  # its earlier chunks may be what went wrong
        return events

    def fail(self, request_ids: list[str], reason: str) -> list[TokenEvent]:
        """End these requests with an error event."""
        events = []
        for request_id in request_ids:
            sequence = self._by_id.get(request_id)
            if sequence is not None:
                self._remove(sequence)
                events.append(self._error(sequence, reason))
        self.blocks.forget_unused()
        return events

    def take_counts(self) -> Counts:
        """What was done since the last call."""
        counts, self._counts = self._counts, Counts()
        return counts

    def request_ids(self) -> list[str]:
        return list(self._by_id)

    def _plan(self, sequence: Sequence, num_new: int, planned: dict[str, StepRow]) -> int:
        """Plan a row of `num_new` tokens, making room by preemption; returns the tokens it takes."""
        if num_new < 1 or sequence.request_id not in self._running:  # a victim of those before it
            return 0
        while not self.blocks.reserve(sequence, sequence.num_computed_tokens + num_new):
            victim = next(reversed(self._running.values()))
            planned.pop(victim.request_id, None)
            self._preempt(victim)
            if victim is sequence:
                return 0
        planned[sequence.request_id] = _row(sequence, num_new)
        return num_new

    def _admit(self, budget: int, planned: dict[str, StepRow]) -> None:
        num_places = self.limits.max_batch_size - len(self._running)
        if budget < 1 or num_places < 1 or not self._waiting:
            return
        num_lookups = MAX_LOOKUPS
        under_way = self._blocks_under_way()
        for sequence in self._waiting.candidates(self.limits.max_batch_size):
            if budget < 1 or num_places < 1:
                return
            num_lookups -= self.blocks.match(sequence, num_lookups)
            match = sequence.prefix_match
            if not match.is_complete:
                return  # the next step goes on with it
            if match.missing in under_way:
                continue
            missing = match.missing
            # All of the prompt must have room now (a half-admitted prompt could only wait or preempt), and one more
            # block per running sequence, or the newcomer would soon be preempted.
            if not self.blocks.admit(sequence, num_spare=len(self._running)):
                return
            self._start(sequence)
            num_places -= 1
            if missing is not None:
                under_way.add(missing)
            num_new = _num_new_tokens(sequence, budget)
            planned[sequence.request_id] = _row(sequence, num_new)
            budget -= num_new

    def _blocks_under_way(self) -> set[BlockKey]:
        """The blocks that running sequences are about to publish.

        Those that compute their whole prompt for its log-probabilities do not count: they pass sequences that wait
        for a prefill, which must not end up waiting for them, too.
        """
        keys = (self.blocks.next_published(s) for s in self._running.values() if not s.needs_prompt_logprobs)
        return {key for key in keys if key is not None}

    def _start(self, sequence: Sequence) -> None:
        """Note that `sequence`, which just got its blocks, runs."""
        self._waiting.take(sequence)
        self._running[sequence.request_id] = sequence
        self.max_running_tokens += sequence.max_tokens
        num_cached = min(sequence.num_computed_tokens, sequence.num_prompt_tokens)
        self._counts.num_cached_prompt_tokens += max(0, num_cached - sequence.num_seen_tokens)
        sequence.num_seen_tokens = max(sequence.num_seen_tokens, sequence.num_computed_tokens)
        if not sequence.started_s:
            sequence.started_s = self._clock()
            sequence.num_cached_tokens = num_cached

    def _preempt(self, sequence: Sequence) -> None:
        self._stop(sequence)
        sequence.prompt_logprobs.clear()
        self._waiting.put_back(sequence)
        self.num_preempted += 1
        self._counts.num_preempted += 1

    def _stop(self, sequence: Sequence) -> None:
        """`sequence` runs no more."""
        del self._running[sequence.request_id]
        self.max_running_tokens -= sequence.max_tokens
        self.blocks.free(sequence)

    def _remove(self, sequence: Sequence) -> None:
        del self._by_id[sequence.request_id]
        if sequence.request_id in self._running:
            self._stop(sequence)
        else:
            self._waiting.remove(sequence)

    def _book(self, sequence: Sequence, row: StepRow, outcome: RowResult, now_s: float) -> TokenEvent | None:
        if outcome.error is not None:
            return self._error(sequence, outcome.error)
        self._counts.computed(sequence, len(row.token_ids))
        sequence.num_computed_tokens += len(row.token_ids)
        sequence.prompt_logprobs.extend(outcome.target_logprobs)
        self.blocks.publish(sequence)
        if not row.is_sampling:
            return None
        if outcome.token is None:
            raise RuntimeError(f"the runner returned no token for a sampling row of {row.request_id}, this is a bug")
        sequence.token_ids.append(outcome.token.id)
        self._counts.num_generated_tokens += 1
        if sequence.constraint is not None:
            try:
                sequence.constraint.advance(outcome.token.id)
            except ValueError as error:
                return self._error(sequence, str(error))
            except Exception:
                logger.exception("a grammar failed")
                return self._error(sequence, "the grammar failed")
        is_first = sequence.num_generated_tokens == 1
        return TokenEvent(
            request_id=sequence.request_id,
            token=outcome.token,
            finish_reason=_finish_reason(sequence, outcome.token),
            prompt_logprobs=_prompt_logprobs(sequence) if is_first else None,
            num_cached_tokens=sequence.num_cached_tokens if is_first else 0,
            started_s=sequence.started_s,
            emitted_s=now_s,
            is_first=is_first,
        )

    def _error(self, sequence: Sequence, reason: str) -> TokenEvent:
        return TokenEvent(
            request_id=sequence.request_id,
            error=GenerationError(reason),
            started_s=sequence.started_s,
            emitted_s=self._clock(),
        )


def _num_new_tokens(sequence: Sequence, budget: int) -> int:
    """How many tokens of `sequence` the next step computes."""
    if sequence.needs_prompt_logprobs:
        budget = min(budget, MAX_SCORED_TOKENS)
    return min(sequence.num_uncomputed_tokens, budget)


def _row(sequence: Sequence, num_new: int) -> StepRow:
    start, num_prompt, token_ids = sequence.num_computed_tokens, sequence.num_prompt_tokens, sequence.token_ids
    end = start + num_new
    sampling = sequence.request.sampling
    is_sampling = end == len(token_ids)
    targets: tuple[int, ...] = ()
    if sequence.needs_prompt_logprobs:
        targets = tuple(token_ids[start + 1 : min(end + 1, num_prompt)])
    return StepRow(
        request_id=sequence.request_id,
        token_ids=tuple(token_ids[start:end]),
        start=start,
        block_table=sequence.block_table,
        is_sampling=is_sampling,
        sampling=sampling,
        step_index=len(token_ids) - num_prompt,
        history=token_ids if is_sampling and sampling.uses_history else (),
        num_prompt_tokens=num_prompt,
        logprob_targets=targets,
        constraint=sequence.constraint if is_sampling else None,
    )


def _finish_reason(sequence: Sequence, token: SampledToken) -> FinishReason | None:
    # The limit is checked first: a token that reaches it ends by length even if it is EOS (TGI's order).
    if sequence.num_tokens >= sequence.max_tokens:
        return FinishReason.LENGTH
    if token.id in sequence.request.stopping.stop_token_ids:
        return FinishReason.EOS
    # Whatever the request says about EOS: after the end of its grammar there is nothing left to choose.
    if sequence.constraint is not None and sequence.constraint.is_finished:
        return FinishReason.EOS
    return None


def _prompt_logprobs(sequence: Sequence) -> tuple[TokenLogprob, ...] | None:
    if not sequence.request.prompt_logprobs:
        return None
    if len(sequence.prompt_logprobs) != sequence.num_prompt_tokens - 1:
        raise RuntimeError(f"the prompt of {sequence.request_id} was not scored once, this is a bug")
    return (TokenLogprob(sequence.token_ids[0], None), *sequence.prompt_logprobs)
