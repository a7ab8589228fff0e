"""How many tokens a step may compute: as configured, or fewer after memory ran out."""

# Steps until more is tried again, the first time; a step that fails on purpose should be rare among those that do not.
FIRST_PATIENCE = 256
MAX_PATIENCE = 2**16


class StepBudget:
    """Owns the number of tokens that a step may compute. Called by the engine thread only.

    When memory runs out, it falls to half of what the failed step computed. It rises again, by doubling, because what
    took the memory may have ended; but ever more rarely, because each attempt at too much costs a step.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tokens = limit
        self._patience = FIRST_PATIENCE
        self._num_steps_to_wait = 0

    def ran_out(self, num_tokens: int) -> None:
        """A step of `num_tokens`, at least 2, did not fit into memory."""
        self.tokens = num_tokens // 2
        self._num_steps_to_wait = self._patience
        self._patience = min(2 * self._patience, MAX_PATIENCE)

    def step_done(self) -> None:
        """A step did fit."""
        if self.tokens == self.limit:
            return
        self._num_steps_to_wait -= 1
        if self._num_steps_to_wait < 1:
            self.tokens = min(2 * self.tokens, self.limit)
            self._num_steps_to_wait = self._patience
