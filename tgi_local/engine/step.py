"""The border between scheduling and the model: a plan goes in, a result comes out, both plain data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tgi_local.constraints import TokenConstraint
from tgi_local.types import SampledToken, SamplingParams, TokenLogprob


class OutOfMemoryError(Exception):
    """The device has no memory for a step of this size. The model is well, and a smaller step may fit."""


class FatalModelError(Exception):
    """The device computes nothing any more, as CUDA after an illegal access; only a new process can."""


class StepRow(NamedTuple):
    """The work of one sequence in one step; a prefill chunk has many token ids, a decode row has one.

    `token_ids` are the tokens to compute, the first at position `start`; `block_table` covers all positions up to
    the last of them, and is the same object in the next step unless it has changed. `is_sampling` asks for a next
    token. `history` is prompt and output so far (empty unless a sampling rule reads it), of which the first
    `num_prompt_tokens` are prompt; it is the sequence's own list, which grows when the step is booked: read it during
    the step, and keep no more than a copy. `step_index` counts the tokens
    generated before this one and, with the seed, fixes the randomness of the row. `logprob_targets` are the tokens
    that follow each of `token_ids` in the prompt, when their log-probabilities are wanted. `constraint` says which
    tokens may be chosen; the runner only reads it, the scheduler advances it.
    """

    request_id: str
    token_ids: tuple[int, ...]
    start: int
    block_table: tuple[int, ...]
    is_sampling: bool
    sampling: SamplingParams
    step_index: int = 0
    history: Sequence[int] = ()
    num_prompt_tokens: int = 0
    logprob_targets: tuple[int, ...] = ()
    constraint: TokenConstraint | None = None

    @property
    def is_prefill(self) -> bool:
        """Whether it computes more than the token that its sequence has just got, for whatever reason."""
        return len(self.token_ids) > 1 or not self.is_sampling or self.step_index == 0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass: rows in any mixture of prefill chunks and decodes."""

    rows: tuple[StepRow, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of one row: a token if one was asked for, or an error that concerns this row alone.

    `target_logprobs` has one entry per logprob target of the row, with as many alternatives as its sampling asks for.
    `is_corrupt` means that what the row wrote into the
    cache can not be trusted.
    """

    token: SampledToken | None = None
    error: str | None = None
    is_corrupt: bool = False
    target_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """One result per row, in the order of the plan."""

    rows: tuple[RowResult, ...]


class Runner(Protocol):
    """Runs plans on a model. Used by the engine thread only."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    def run(self, plan: StepPlan) -> StepResult:
        """Compute every row of `plan`, writing its keys and values into the cache blocks it names.

        Raises OutOfMemoryError, FatalModelError, or anything else when it fails. Rows may come again after that.
        """
        ...
