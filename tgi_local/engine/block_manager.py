"""Accounting of KV-cache blocks. Only counts; the memory itself belongs to the model side."""

from bisect import bisect_left

from tgi_local.engine.prefix_cache import BlockKey, PrefixCache
from tgi_local.engine.sequence import PrefixMatch, Sequence


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

    def match(self, sequence: Sequence, max_lookups: int) -> int:
        """Bring `sequence.prefix_match` up to date; returns the number of look-ups that it took.

        That is what the cache holds of a waiting sequence, short of its last token: its logits are still to be
        computed. What was found stays found while its last block does, which outlives none of the others; so a
        sequence that waits looks up each block once, however long it waits.
        """
        match = sequence.prefix_match
        if match.blocks and self._cache.key_of(match.blocks[-1]) is not match.last_key:
            match = sequence.prefix_match = PrefixMatch()
        match.missing = None
        # The log-probabilities of a prompt take the logits of every position.
        num_shareable = 0 if sequence.needs_prompt_logprobs else (sequence.num_tokens - 1) // self.block_size
        num_known = len(match.blocks)
        for index in range(num_known, min(num_shareable, num_known + max_lookups)):
            key = self._key(sequence, index, match.blocks[-1] if match.blocks else None)
            block = self._cache.find(key)
            if block is None:
                match.missing = key
                break
            match.blocks.append(block)
        num_found = len(match.blocks) - num_known
        if num_found:
            match.last_key = self._cache.key_of(match.blocks[-1])
        match.is_complete = match.missing is not None or len(match.blocks) == num_shareable
        return num_found + (match.missing is not None)

    def admit(self, sequence: Sequence, num_spare: int) -> bool:
        """Give a waiting sequence its match and room for all its tokens; False, and nothing changed, if blocks lack.

        `num_spare` blocks must be left over. The match must just have been brought up to date.
        """
        blocks = sequence.prefix_match.blocks
        # Whoever uses a block uses all those before it, so the unused ones are the last ones.
        num_unused = len(blocks) - bisect_left(blocks, True, key=lambda block: self._num_users[block] == 0)
        num_new = self.num_blocks_for(sequence.num_tokens) - len(blocks)
        if num_new + num_unused + num_spare > self.num_free:
            return False
        for block in blocks:
            self._share(block)
        sequence.block_table = tuple(blocks)
        sequence.num_published_blocks = len(blocks)
        sequence.num_computed_tokens = len(blocks) * self.block_size
        sequence.prefix_match = PrefixMatch()
        self._owners[sequence.request_id] = sequence
        return self.reserve(sequence, sequence.num_tokens)

    def reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a running `sequence` room for its first `num_tokens` tokens; False, and nothing changed, if blocks lack."""
        num_missing = self.num_blocks_for(num_tokens) - len(sequence.block_table)
        if num_missing < 1:
            return True
        if num_missing > self.num_free:
            return False
        blocks = [self._free.pop() if self._free else self._cache.evict() for _ in range(num_missing)]
        for block in blocks:
            self._num_users[block] = 1
        sequence.block_table = (*sequence.block_table, *blocks)
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
                table = sequence.block_table = (*table[:index], earlier, *table[index + 1 :])
            sequence.num_published_blocks = index + 1

    def free(self, sequence: Sequence) -> None:
        """Take back every block of `sequence`, which starts from nothing again; harmless when it owns none."""
        for block in reversed(sequence.block_table):
            self._release(block)
        sequence.block_table = ()
        sequence.num_published_blocks = 0
        sequence.num_computed_tokens = 0
        self._owners.pop(sequence.request_id, None)

    def unused_block(self) -> int | None:
        """A block that holds nothing, and may be written to until the next one is taken."""
        return self._free[-1] if self._free else None

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
