"""How many prompt tokens a step should compute: so many that it takes neither running nor waiting streams too long."""

import math

from tgi_local.engine.step import StepPlan

# What a step beside running streams may take, in terms of one without prompts. Chunks cost little where it is small:
# weights are read once for all tokens of a step. Where more requests wait than run, it may be that much longer.
STRETCH = 2.7
# What a step with prompts may take at most: no request that comes meanwhile waits longer for its own first chunk.
LONGEST_PREFILL_S = 0.5
MIN_PROMPT_TOKENS = 8
# Until steps have been measured: short on the slowest machine, and of no account on a fast one.
FIRST_PROMPT_TOKENS = 256
# A step tells something of the time per prompt token when it has at least so many.
MIN_MEASURED_TOKENS = 8
SMOOTHING = 0.25
# Under a load that never pauses every step has prompts. After so many of those one is run without, because only such a step
# tells what the running streams cost by themselves; taken for the prompts' cost, it would leave these ever less.
MEASURE_EVERY = 32


class StepPace:
    """Owns a model of a step's duration, learnt from steps. Engine thread only.

    seconds = base + decodes * fastest_token + prompt tokens * prompt_token: prompt tokens cost the more the longer the
    context before them, so theirs is learnt as it goes, and the least seen stands for a decode's. The long contexts of
    decodes are in the base, as is what a step costs however small.

    What is computed in a step changes when tokens come, never which.
    """

    def __init__(self) -> None:
        self.base_s = 0.0
        self.fastest_token_s = math.inf
        self.prompt_token_s: float | None = None
        self._num_steps_to_measure = 0  # 0: the next one

    def learn(self, plan: StepPlan, seconds: float) -> None:
        """`plan` took so long."""
        num_decodes = sum(not row.is_prefill for row in plan.rows)
        self.step_done(num_decodes, plan.num_tokens - num_decodes, seconds)

    def step_done(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """A step took so long."""
        if num_prompt_tokens >= MIN_MEASURED_TOKENS:
            spent = max(seconds - self._decode_s(num_decodes), 0.1 * seconds)
            self.prompt_token_s = _smooth(self.prompt_token_s, spent / num_prompt_tokens)
            self.fastest_token_s = min(self.fastest_token_s, self.prompt_token_s)
        elif num_prompt_tokens == 0 and num_decodes and self.prompt_token_s is not None:
            self.base_s = _smooth(self.base_s or None, max(seconds - num_decodes * self.fastest_token_s, 0.0))
            self._num_steps_to_measure = MEASURE_EVERY
        if num_prompt_tokens and num_decodes:
            self._num_steps_to_measure -= 1

    def prompt_tokens(self, num_decodes: int, num_waiting: int) -> int:
        """How many of them to compute beside `num_decodes` running streams, for `num_waiting` requests.

        None at all now and then, but only beside running streams.
        """
        if self.prompt_token_s is None:
            return FIRST_PROMPT_TOKENS
        if num_decodes and self._num_steps_to_measure < 1:
            return 0
        seconds = LONGEST_PREFILL_S - self._decode_s(num_decodes)
        if num_decodes:
            stretch = (STRETCH - 1.0) * max(num_waiting / num_decodes, 1.0)
            seconds = min(seconds, stretch * self._decode_s(num_decodes))
        return max(math.floor(seconds / self.prompt_token_s), MIN_PROMPT_TOKENS)

    def _decode_s(self, num_decodes: int) -> float:
        """Of a step of so many rows and no prompts."""
        return self.base_s + (num_decodes * self.fastest_token_s if num_decodes else 0.0)


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + SMOOTHING * (new - old)
