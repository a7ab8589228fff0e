"""How many prompt tokens a step should compute: so many that it takes neither running nor waiting streams too long."""

import math

from tgi_local.engine.step import StepPlan

# What a step beside running streams may take, in terms of one without prompts. Chunks cost little where it is small:
# weights are read once for all tokens of a step.
STRETCH = 3.0
# What a step of prompts alone may take: no request that comes meanwhile waits longer for its own first chunk.
LONGEST_PREFILL_S = 0.5
MIN_PROMPT_TOKENS = 16
# Until steps have been measured: short on the slowest machine, and of no account on a fast one.
FIRST_PROMPT_TOKENS = 256
# A step tells something of the time per token when it has at least so many.
MIN_MEASURED_TOKENS = 32
SMOOTHING = 0.25


class StepPace:
    """Owns a model of a step's duration, `base + tokens * per_token`, learnt from steps. Engine thread only.

    What is computed in a step changes when tokens come, never which.
    """

    def __init__(self) -> None:
        self.base_s = 0.0
        self.per_token_s: float | None = None

    def learn(self, plan: StepPlan, seconds: float) -> None:
        """`plan` took so long."""
        num_decodes = sum(not row.is_prefill for row in plan.rows)
        self.step_done(num_decodes, plan.num_tokens - num_decodes, seconds)

    def step_done(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """A step took so long."""
        num_tokens = num_decodes + num_prompt_tokens
        if num_prompt_tokens >= MIN_MEASURED_TOKENS:
            self.per_token_s = _smooth(self.per_token_s, max(seconds - self.base_s, 0.1 * seconds) / num_tokens)
        elif num_prompt_tokens == 0 and num_decodes > 0 and self.per_token_s is not None:
            self.base_s = _smooth(self.base_s or None, max(seconds - num_tokens * self.per_token_s, 0.0))

    def prompt_tokens(self, num_decodes: int) -> int:
        """How many of them to compute beside `num_decodes` running streams."""
        if self.per_token_s is None:
            return FIRST_PROMPT_TOKENS
        if num_decodes:
            seconds = (STRETCH - 1.0) * (self.base_s + num_decodes * self.per_token_s)
        else:
            seconds = LONGEST_PREFILL_S - self.base_s
        return max(math.floor(seconds / self.per_token_s), MIN_PROMPT_TOKENS)


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + SMOOTHING * (new - old)
