"""The vocabulary shared by every layer. Plain data, standard library only."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from tgi_local.constraints import Grammar, GrammarSource, ToolSignature

# TGI schedules at most this many new tokens at a time and checks only them against the total.
CHECKED_NEW_TOKENS = 1024


class FinishReason(StrEnum):
    """Why a generation ended, in TGI's words."""

    LENGTH = "length"
    EOS = "eos_token"
    STOP_SEQUENCE = "stop_sequence"


@dataclass(frozen=True, slots=True)
class Watermark:
    """How text is marked as generated: the share of the vocabulary that each token favours in the next, and by how much.

    `delta` is added to logits. https://arxiv.org/abs/2301.10226, algorithm 2.
    """

    gamma: float = 0.5
    delta: float = 2.0


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. Neutral values switch a rule off; `temperature` 0 means greedy.

    `frequency_penalty` and `presence_penalty` follow OpenAI (counts of generated tokens, additive);
    `relative_frequency_penalty` follows TGI (share of the token in prompt and output);
    `repetition_penalty` follows CTRL (https://arxiv.org/abs/1909.05858) over prompt and output;
    `typical_p` follows locally typical sampling (https://arxiv.org/abs/2202.00666);
    `end_token_ids` are not chosen as one of the first `min_new_tokens`, unless a grammar allows nothing else.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    relative_frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    watermark: Watermark | None = None
    min_new_tokens: int = 0
    end_token_ids: tuple[int, ...] = ()
    seed: int = 0
    top_n_tokens: int = 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def uses_history(self) -> bool:
        """Whether a rule reads the tokens seen so far."""
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
            or self.relative_frequency_penalty != 0.0
        )


@dataclass(frozen=True, slots=True)
class StopParams:
    """When a generation ends. `stop_strings` are matched on text, outside the engine."""

    max_new_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How tokens become text for one request.

    `keep_stop_string` is TGI's rule (the stop string stays in the text); OpenAI leaves it out.
    `parse_chat` splits reasoning and tool calls out of the text; `parse_tool_calls` only when tools were offered,
    which are `tools`. `are_calls_valid`: a grammar sees to it, so that calls can be passed on while they grow.
    `scores_only`: the prompt's log-probabilities are the answer; the one token that is generated with them is not shown.
    """

    keep_stop_string: bool = True
    parse_chat: bool = False
    parse_tool_calls: bool = False
    tools: tuple[ToolSignature, ...] = ()
    are_calls_valid: bool = False
    scores_only: bool = False


@dataclass(frozen=True, slots=True)
class RequestParameters:
    """What a client asked for, in native terms, before any bound is checked. None means not given.

    `frequency_penalty` is TGI's (relative); the `additive_*` penalties are OpenAI's.
    """

    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    additive_frequency_penalty: float = 0.0
    additive_presence_penalty: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    min_p: float = 0.0
    do_sample: bool = False
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    truncate: int | None = None
    watermark: bool = False
    seed: int | None = None
    top_n_tokens: int | None = None
    max_top_n_tokens: int | None = None  # the dialect's own bound, in place of the server's
    prompt_logprobs: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    grammar: GrammarSource | None = None
    adapter_id: str | None = None
    text: TextOptions = TextOptions()

    @property
    def is_sampling(self) -> bool:
        """TGI's rule: a temperature of 1 alone does not switch sampling on."""
        return (
            self.do_sample
            or (self.temperature is not None and self.temperature != 1.0)
            or self.top_k is not None
            or self.top_p is not None
            or self.typical_p is not None
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the running server, token counts included, and what it sets for all requests alike."""

    max_best_of: int
    max_stop_sequences: int
    max_top_n_tokens: int
    max_input_tokens: int
    max_total_tokens: int
    max_client_batch_size: int
    max_concurrent_requests: int
    max_batch_total_tokens: int
    vocab_size: int
    watermark: Watermark = Watermark()
    max_batch_size: int = 128

    def has_room(self, num_prompt_tokens: int, max_new_tokens: int) -> bool:
        """Whether a prompt of this length is let in."""
        num_tokens = num_prompt_tokens + min(max_new_tokens, CHECKED_NEW_TOKENS)
        return num_prompt_tokens <= self.max_input_tokens and num_tokens <= self.max_total_tokens


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a request is for.

    Principals are served in turn. Requests with different `cache_salt` never share cached prefixes, so that nobody
    can learn from response times what others have sent.
    """

    principal: str = ""
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """The one native request; every dialect is translated to it, and an invalid one is never built.

    `principal` and `cache_salt` are the caller's.
    """

    request_id: str
    prompt_text: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    stopping: StopParams
    text: TextOptions = TextOptions()
    grammar: Grammar | None = None
    prompt_logprobs: bool = False
    received_s: float = 0.0  # monotonic clock
    principal: str = ""
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token id and its log-probability; None where it is undefined (first prompt token, masked token).

    `top` holds, for a prompt token and if asked, the most likely tokens in its place, best first.
    """

    id: int
    logprob: float | None
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class SampledToken:
    """What the model chose for one row: the token and, if asked, the most likely alternatives, best first."""

    id: int
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


class TokenEvent(NamedTuple):
    """One step's news for one request. `finish_reason` or `error` marks the one terminal event.

    Times are on the monotonic clock, seconds; `started_s` is when the request first joined a batch.
    `num_cached_tokens`, of the prompt, comes with the first token.
    """

    request_id: str
    token: SampledToken | None = None
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    num_cached_tokens: int = 0
    started_s: float = 0.0
    emitted_s: float = 0.0
    is_first: bool = False

    @property
    def is_terminal(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def is_urgent(self) -> bool:
        """Whether it is told at once: the first token, and the end."""
        return self.is_first or self.is_terminal


class TextToken(NamedTuple):
    """A token as clients see it. `text` is "" while it does not complete a UTF-8 character."""

    id: int
    text: str
    logprob: float | None
    special: bool
    top: tuple["TextToken", ...] = ()


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """One token of a text. `start` and `stop` are UTF-8 byte offsets; a token added by the tokenizer has none (0, 0)."""

    id: int
    text: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function call the model asked for. `arguments` is a JSON string; not `is_complete`: its beginning."""

    index: int
    name: str
    arguments: str
    is_complete: bool = True


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of the call `index`. `name` comes with its first piece, `is_last` with the end of its arguments."""

    index: int
    name: str | None
    arguments: str
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations of one request in seconds: arrival to queue, queue to first batch, first batch to last token."""

    validation_s: float
    queue_s: float
    inference_s: float

    @property
    def total_s(self) -> float:
        return self.validation_s + self.queue_s + self.inference_s


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of one generation. `num_tokens` counts the EOS token and no token after a matched stop string.

    `num_cached_tokens` counts the prompt tokens that the prefix cache had, `num_reasoning_tokens` those that brought
    reasoning to show.
    """

    reason: FinishReason
    num_tokens: int
    timings: Timings
    stop_string: str | None = None
    num_cached_tokens: int = 0
    num_reasoning_tokens: int = 0


class TextEvent(NamedTuple):
    """News for one request as text. `text` is new content; held-back text comes with a later event.

    `token` is None only when an event carries nothing but flushed text.
    `prompt_tokens` comes with the first event, and only when prompt log-probabilities were asked for.
    """

    token: TextToken | None
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    prompt_tokens: tuple[TextToken, ...] = ()
    finish: Finish | None = None


@dataclass(slots=True)
class Generation:
    """The fold of a stream of TextEvents."""

    request: GenerationRequest
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    tokens: list[TextToken] = field(default_factory=list)
    prompt_tokens: Sequence[TextToken] = ()
    finish: Finish | None = None

    def add(self, event: TextEvent) -> None:
        """Fold in the next event."""
        if event.token is not None:
            self.tokens.append(event.token)
        self.text += event.text
        self.reasoning += event.reasoning
        for piece in event.tool_calls:
            self._add_piece(piece)
        self.prompt_tokens = event.prompt_tokens or self.prompt_tokens
        self.finish = event.finish or self.finish

    def _add_piece(self, piece: ToolCallDelta) -> None:
        if piece.name is not None:
            self.tool_calls.append(ToolCall(piece.index, piece.name, piece.arguments, piece.is_last))
        else:
            call = self.tool_calls[-1]
            self.tool_calls[-1] = replace(call, arguments=call.arguments + piece.arguments, is_complete=piece.is_last)

    @property
    def mean_logprob(self) -> float:
        logprobs = [t.logprob for t in self.tokens if t.logprob is not None]
        return sum(logprobs) / len(logprobs) if logprobs else 0.0


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one engine step did; for metrics.

    Every prompt token is counted once, as computed or as found in the cache; tokens computed again after a preemption
    are counted apart. `forward_s` is the model's part of `step_s`; `max_tokens` is the most that the running requests
    can come to; `max_step_tokens` is what a step may compute, at present. `num_rows` is 0 outside a step; `failed`
    when none of them got a result.
    """

    num_running: int
    num_waiting: int
    used_blocks: int
    num_blocks: int
    step_s: float
    max_tokens: int = 0
    max_step_tokens: int = 0
    forward_s: float = 0.0
    num_rows: int = 0
    num_prefill_rows: int = 0
    num_prompt_tokens: int = 0
    num_cached_prompt_tokens: int = 0
    num_recomputed_tokens: int = 0
    num_generated_tokens: int = 0
    num_preempted: int = 0
    failed: bool = False
