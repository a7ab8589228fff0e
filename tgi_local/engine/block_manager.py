"""Accounting of KV-cache blocks. Only counts; the memory itself belongs to the model side."""

from tgi_local.engine.sequence import Sequence


class BlockManager:
    """Owns which block belongs to which sequence. Called by the scheduler only.

    A sequence owns ceil(n / block_size) blocks for its n cached tokens; nothing is shared between sequences.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"need at least one block of one token, got {num_blocks} blocks of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._owned: dict[str, Sequence] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    @property
    def capacity_tokens(self) -> int:
        return self.num_blocks * self.block_size

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give `sequence` room for its first `num_tokens` tokens; False, and nothing changed, if blocks lack."""
        missing = self.num_blocks_for(num_tokens) - len(sequence.block_table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            sequence.block_table.append(self._free.pop())
        self._owned[sequence.request_id] = sequence
        return True

    def free(self, sequence: Sequence) -> None:
        """Take back every block of `sequence`; harmless when it owns none."""
        self._free.extend(reversed(sequence.block_table))
        sequence.block_table.clear()
        self._owned.pop(sequence.request_id, None)

    def check_invariants(self) -> None:
        """Every block is free or owned by exactly one sequence. Raises RuntimeError: a failure is a bug."""
        owned = [block for sequence in self._owned.values() for block in sequence.block_table]
        blocks = owned + self._free
        if len(blocks) != self.num_blocks or set(blocks) != set(range(self.num_blocks)):
            raise RuntimeError(f"KV blocks not conserved, this is a bug: {len(owned)} owned, {len(self._free)} free")
