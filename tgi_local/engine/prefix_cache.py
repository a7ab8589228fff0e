"""Which full KV blocks hold which tokens, so that a prompt's beginning is computed once."""

from collections import OrderedDict
from typing import TypeAlias

# What a block holds: its own tokens, after all that its parent's chain holds. The first block of a chain has the
# request's cache salt in the parent's place. Keys are compared as a whole; no hash stands for the tokens.
BlockKey: TypeAlias = tuple[int | str, tuple[int, ...]]


class PrefixCache:
    """Owns the map from content to block, and the order in which unused blocks are given up.

    A parent is known by its block number, which is safe because it outlives its children: whoever uses a block uses
    its parent too, and gives the last block of its chain back first. So the oldest unused block never has children.
    """

    def __init__(self) -> None:
        self._block_of: dict[BlockKey, int] = {}
        self._key_of: dict[int, BlockKey] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._block_of)

    def __contains__(self, block: int) -> bool:
        return block in self._key_of

    @property
    def unused(self) -> tuple[int, ...]:
        return tuple(self._unused)

    @property
    def num_unused(self) -> int:
        return len(self._unused)

    def find(self, key: BlockKey) -> int | None:
        return self._block_of.get(key)

    def key_of(self, block: int) -> BlockKey | None:
        return self._key_of.get(block)

    def add(self, block: int, key: BlockKey) -> None:
        """Remember what `block`, in use, holds from now on."""
        self._block_of[key] = block
        self._key_of[block] = key

    def retain(self, block: int) -> None:
        """`block` is in use again."""
        del self._unused[block]

    def release(self, block: int) -> None:
        """Nobody uses `block` any more; it stays until `evict` needs it."""
        self._unused[block] = None

    def evict(self) -> int:
        """Forget the block that was unused for longest, and give it away."""
        block, _ = self._unused.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        return block

    def check_invariants(self) -> None:
        """Map and index agree, and no block can be evicted before its children. Raises RuntimeError."""
        if self._block_of != {key: block for block, key in self._key_of.items()}:
            raise RuntimeError("prefix cache: map and index differ, this is a bug")
        if not self._unused.keys() <= self._key_of.keys():
            raise RuntimeError("prefix cache: an unused block holds nothing, this is a bug")
        in_use = len(self._unused)
        order = {block: i for i, block in enumerate(self._unused)}
        for block, (parent, _) in self._key_of.items():
            if isinstance(parent, str):
                continue
            if parent not in self._key_of or order.get(parent, in_use) < order.get(block, in_use):
                raise RuntimeError(f"prefix cache: block {block} outlives its parent {parent}, this is a bug")
