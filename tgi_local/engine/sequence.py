"""One request's tokens and its place in the KV cache. Owned by the scheduler."""

from dataclasses import dataclass, field

from tgi_local.engine.prefix_cache import BlockKey
from tgi_local.types import GenerationRequest, TokenLogprob


@dataclass(slots=True)
class PrefixMatch:
    """The cached blocks that a waiting sequence begins with, as far as they were looked up.

    `last_key` is what the last of them holds, `missing` the content of the first one that is not there. When it
    `is_complete`, no further block could be shared.
    """

    blocks: list[int] = field(default_factory=list)
    last_key: BlockKey | None = None
    missing: BlockKey | None = None
    is_complete: bool = False


class Sequence:
    """Prompt and generated token ids of one request, and the KV blocks that hold them.

    `max_tokens` is what the request comes to when it uses up its budget.
    `num_computed_tokens` counts the leading tokens whose keys and values are in the cache; a preempted sequence
    starts again from what the prefix cache still holds and recomputes the rest, prompt and output alike.
    `num_seen_tokens` is the most that it has ever been: what is computed below it is computed again.
    `block_table` is replaced when it changes and never modified, so that a step can have it as it is.
    `num_published_blocks` counts the leading blocks that others may share, so that nobody writes to them any more.
    `prefix_match` is what is known of the cache while the sequence waits.
    `num_cached_tokens` counts the prompt tokens that were in the cache when the sequence first ran. `constraint`
    follows the generated tokens as they are booked, so a recomputation leaves it where it is.
    """

    __slots__ = (
        "block_table",
        "constraint",
        "max_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_prompt_tokens",
        "num_published_blocks",
        "num_seen_tokens",
        "prefix_match",
        "prompt_logprobs",
        "request",
        "request_id",
        "started_s",
        "token_ids",
    )

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.request_id = request.request_id
        self.max_tokens = len(request.prompt_token_ids) + request.stopping.max_new_tokens
        self.token_ids: list[int] = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_cached_tokens = 0
        self.num_computed_tokens = 0
        self.num_seen_tokens = 0
        self.num_published_blocks = 0
        self.block_table: tuple[int, ...] = ()
        self.prefix_match = PrefixMatch()
        self.prompt_logprobs: list[TokenLogprob] = []
        self.started_s = 0.0
        self.constraint = request.grammar.start() if request.grammar is not None else None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def needs_prompt_logprobs(self) -> bool:
        """Whether the prompt's log-probabilities are still to be delivered; they come with the first token."""
        return self.request.prompt_logprobs and self.num_generated_tokens == 0
