"""The memory behind KV blocks: its size, and reads and writes by slot."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tgi_local.errors import StartupError


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer stores per token, heads x head size of keys and of values; and what its attention needs besides.

    A key-value head serves `group` query heads; a query sees the last `window` tokens (None: all); `softcap` bounds scores.
    """

    num_heads: int
    key_size: int
    value_size: int
    group: int = 1
    window: int | None = None
    softcap: float | None = None


class KVCache:
    """Owns the cache tensors, per layer [slots, heads, head size]; slot = block * block_size + offset.

    With `has_scratch` there is one block more, which belongs to no sequence: rows that only fill up a step write there.
    Used by the engine thread only.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        has_scratch: bool = False,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        slots = (num_blocks + has_scratch) * block_size
        self._keys = [torch.zeros(slots, s.num_heads, s.key_size, dtype=dtype, device=device) for s in shapes]
        self._values = [torch.zeros(slots, s.num_heads, s.value_size, dtype=dtype, device=device) for s in shapes]

    @property
    def scratch_block(self) -> int:
        """The block after the last one, which is there only if asked for."""
        return self.num_blocks

    def write(
        self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values [T, heads, head size] at `slots` [T]; returns the layer's whole cache."""
        self._keys[layer].index_copy_(0, slots, keys.to(self._keys[layer].dtype))
        self._values[layer].index_copy_(0, slots, values.to(self._values[layer].dtype))
        return self._keys[layer], self._values[layer]


def bytes_per_token(shapes: Sequence[LayerShape], dtype: torch.dtype) -> int:
    return sum(shape.num_heads * (shape.key_size + shape.value_size) for shape in shapes) * dtype.itemsize


def choose_num_blocks(
    token_bytes: int, free_bytes: int, block_size: int, min_tokens: int, max_tokens: int, requested_tokens: int | None
) -> int:
    """How many blocks to allocate: as asked for, else what fits in `free_bytes` up to `max_tokens`.

    Raises StartupError when not even one request of `min_tokens` fits.
    """
    free_bytes = max(free_bytes, 0)
    fits = int(free_bytes // token_bytes)
    wanted = requested_tokens if requested_tokens is not None else max_tokens
    if requested_tokens is not None and requested_tokens > fits:
        raise StartupError(
            f"--max-batch-total-tokens {requested_tokens} needs {requested_tokens * token_bytes / 2**30:.1f} GiB of KV "
            f"cache, {free_bytes / 2**30:.1f} GiB are free; at most {fits} tokens fit"
        )
    if fits < min(min_tokens, block_size):
        raise StartupError(
            f"no memory is left for a KV cache: {free_bytes / 2**30:.1f} GiB are free beside the weights, one request may "
            f"need {min_tokens * token_bytes / 2**30:.1f} GiB; use a smaller --model-id or --quantize bitsandbytes-nf4"
        )
    tokens = min(wanted, fits)
    if tokens < min_tokens:
        remedy = (
            f"lower --max-total-tokens to at most {tokens}"
            if requested_tokens is None
            else f"raise --max-batch-total-tokens to at least {min_tokens}, or lower --max-total-tokens to {tokens}"
        )
        raise StartupError(f"the KV cache holds {tokens} tokens, one request may need {min_tokens}; {remedy}")
    return -(-tokens // block_size)
