"""One request's tokens and its place in the KV cache. Owned by the scheduler."""

from tgi_local.types import GenerationRequest


class Sequence:
    """Prompt and generated token ids of one request, and the KV blocks that hold them.

    `num_computed_tokens` counts the leading tokens whose keys and values are in the cache; a preempted sequence
    starts again from what the prefix cache still holds and recomputes the rest, prompt and output alike.
    `num_published_blocks` counts the leading blocks that others may share, so that nobody writes to them any more.
    `num_cached_tokens` counts the prompt tokens that were in the cache when the sequence first ran. `constraint`
    follows the generated tokens as they are booked, so a recomputation leaves it where it is.
    """

    __slots__ = (
        "block_table",
        "constraint",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_prompt_tokens",
        "num_published_blocks",
        "prompt_logprobs",
        "request",
        "started_s",
        "token_ids",
    )

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.token_ids: list[int] = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_cached_tokens = 0
        self.num_computed_tokens = 0
        self.num_published_blocks = 0
        self.block_table: list[int] = []
        self.prompt_logprobs: list[float] = []
        self.started_s = 0.0
        self.constraint = request.grammar.start() if request.grammar is not None else None

    @property
    def request_id(self) -> str:
        return self.request.request_id

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
