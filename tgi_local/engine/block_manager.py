"""Accounting of KV-cache blocks. Only counts; the memory itself belongs to the model side."""

from dataclasses import dataclass

from tgi_local.engine.prefix_cache import BlockKey, PrefixCache
from tgi_local.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The cached blocks a sequence begins with, and the content of the first one missing (None: none is shareable)."""

    blocks: tuple[int, ...] = ()
    missing: BlockKey | None = None


class BlockManager:
    """Owns which block belongs to which sequences. Called by the scheduler only.

    A sequence holds ceil(n / block_size) blocks for its n cached tokens. Once computed, its full blocks are published:
    read-only from then on, shared by every sequence with the same beginning and the same salt, and kept after their
    last user until the room is needed. The blocks after them are the sequence's own to write.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"need at least one block of one token, got {num_blocks} blocks of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._num_users = [0] * num_blocks
        self._cache = PrefixCache()
        self._owners: dict[str, Sequence] = {}

    @property
    def num_free(self) -> int:
        """Blocks nobody uses, those that still hold a known prefix included."""
        return len(self._free) + self._cache.num_unused

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def capacity_tokens(self) -> int:
        return self.num_blocks * self.block_size

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def match(self, sequence: Sequence) -> PrefixMatch:
        """What the cache holds of a waiting sequence, short of its last token: its logits are still to be computed."""
        if sequence.needs_prompt_logprobs:
            return PrefixMatch()  # they take the logits of every position
        blocks: list[int] = []
        for index in range((sequence.num_tokens - 1) // self.block_size):
            key = self._key(sequence, index, blocks[-1] if blocks else None)
            block = self._cache.find(key)
            if block is None:
                return PrefixMatch(tuple(blocks), key)
            blocks.append(block)
        return PrefixMatch(tuple(blocks))

    def admit(self, sequence: Sequence, match: PrefixMatch, num_spare: int) -> bool:
        """Give a waiting sequence its match and room for all its tokens; False, and nothing changed, if blocks lack.

        `num_spare` blocks must be left over. `match` is what `match` has just returned.
        """
        num_unused = sum(self._num_users[block] == 0 for block in match.blocks)
        num_new = self.num_blocks_for(sequence.num_tokens) - len(match.blocks)
        if num_new + num_unused + num_spare > self.num_free:
            return False
        for block in match.blocks:
            self._share(block)
        sequence.block_table.extend(match.blocks)
        sequence.num_published_blocks = len(match.blocks)
        sequence.num_computed_tokens = len(match.blocks) * self.block_size
        return self.reserve(sequence, sequence.num_tokens)

    def reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give `sequence` room for its first `num_tokens` tokens; False, and nothing changed, if blocks lack."""
        num_missing = self.num_blocks_for(num_tokens) - len(sequence.block_table)
        if num_missing > self.num_free:
            return False
        for _ in range(num_missing):
            block = self._free.pop() if self._free else self._cache.evict()
            self._num_users[block] = 1
            sequence.block_table.append(block)
        self._owners[sequence.request_id] = sequence
        return True

    def next_published(self, sequence: Sequence) -> BlockKey | None:
        """The content that a running sequence is about to publish; None while its tokens are not all known."""
        index = sequence.num_published_blocks
        if (index + 1) * self.block_size > sequence.num_tokens:
            return None
        return self._key(sequence, index, sequence.block_table[index - 1] if index else None)

    def publish(self, sequence: Sequence) -> None:
        """Share the blocks that `sequence` has filled by now; called when the step that filled them was booked."""
        table = sequence.block_table
        for index in range(sequence.num_published_blocks, sequence.num_computed_tokens // self.block_size):
            key = self._key(sequence, index, table[index - 1] if index else None)
            earlier = self._cache.find(key)
            if earlier is None:
                self._cache.add(table[index], key)
            else:  # two sequences computed the same: one copy is enough, and chains stay chains
                self._share(earlier)
                self._release(table[index])
                table[index] = earlier
            sequence.num_published_blocks = index + 1

    def free(self, sequence: Sequence) -> None:
        """Take back every block of `sequence`, which starts from nothing again; harmless when it owns none."""
        for block in reversed(sequence.block_table):
            self._release(block)
        sequence.block_table.clear()
        sequence.num_published_blocks = 0
        sequence.num_computed_tokens = 0
        self._owners.pop(sequence.request_id, None)

    def forget_unused(self) -> None:
        """Drop every cached block that nobody uses: after a failure, what they hold is in doubt."""
        while self._cache.num_unused:
            self._free.append(self._cache.evict())

    def check_invariants(self) -> None:
        """Blocks are conserved, and nobody writes to what another one reads. Raises RuntimeError: a failure is a bug."""
        self._cache.check_invariants()
        num_users = [0] * self.num_blocks
        for sequence in self._owners.values():
            self._check_chain(sequence)
            for block in sequence.block_table:
                num_users[block] += 1
        used = {block for block, count in enumerate(num_users) if count}
        blocks = [*used, *self._free, *self._cache.unused]
        if num_users != self._num_users or sorted(blocks) != list(range(self.num_blocks)):
            raise RuntimeError(f"KV blocks not conserved, this is a bug: {len(used)} used, {len(self._free)} free")
        if any(num_users[block] > 1 and block not in self._cache for block in used):
            raise RuntimeError("a KV block that may be written has two users, this is a bug")

    def _check_chain(self, sequence: Sequence) -> None:
        """The published blocks hold the sequence's tokens and are all computed, the others hold nothing known."""
        table, num_published = sequence.block_table, sequence.num_published_blocks
        if num_published * self.block_size > sequence.num_computed_tokens:
            raise RuntimeError(f"{sequence.request_id} published blocks before they were computed, this is a bug")
        for index, block in enumerate(table):
            expected = self._key(sequence, index, table[index - 1] if index else None)
            if self._cache.key_of(block) != (expected if index < num_published else None):
                raise RuntimeError(f"block {index} of {sequence.request_id} holds something else, this is a bug")

    def _key(self, sequence: Sequence, index: int, parent: int | None) -> BlockKey:
        start = index * self.block_size
        tokens = tuple(sequence.token_ids[start : start + self.block_size])
        return sequence.request.cache_salt if parent is None else parent, tokens

    def _share(self, block: int) -> None:
        """One more user for a published block."""
        if self._num_users[block] == 0:
            self._cache.retain(block)
        self._num_users[block] += 1

    def _release(self, block: int) -> None:
        self._num_users[block] -= 1
        if self._num_users[block] > 0:
            return
        if block in self._cache:
            self._cache.release(block)
        else:
            self._free.append(block)
