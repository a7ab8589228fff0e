"""A step whose attention reads the block table itself: what kernels need to know, and the model's side of it.

Kernels run where gathering every context into a padded copy would cost more than the attention: on GPUs. Shapes: T
tokens, R rows, H query heads, K key-value heads, D head size, M blocks of the longest row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch

from tgi_local.model.attention import AttentionRules
from tgi_local.model.kv_cache import KVCache, LayerShape


@dataclass(frozen=True, slots=True)
class BlockRows:
    """Rows whose new tokens lie end to end, int32 on the device.

    Row r has the tokens starts[r] to starts[r + 1] and the context lens[r], its new tokens included, in the blocks
    table[r]. `starts` and `context_starts` (the running sum of `lens`) are [R + 1]. `max_new` and `max_len` bound what
    the tensors hold: a captured graph keeps them while the tensors change.
    """

    starts: torch.Tensor
    lens: torch.Tensor
    context_starts: torch.Tensor
    table: torch.Tensor
    max_new: int
    max_len: int


class Kernel(Protocol):
    """Attention of rows to their blocks. `block_size` is the one that it wants of a cache, given a wish."""

    name: str

    def block_size(self, wanted: int) -> int: ...

    def refusal(self, shapes: Sequence[LayerShape], dtype: torch.dtype, capability: tuple[int, int]) -> str | None:
        """Why it can not serve a model of these layers on a GPU of this compute capability; None if it can."""
        ...

    def __call__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: BlockRows, rules: AttentionRules
    ) -> torch.Tensor:
        """query [T, H, D] against the cache's keys and values [blocks, block_size, K, D] -> [T, H, D]."""
        ...


@dataclass(frozen=True, slots=True)
class BlockStep:
    """A step's tokens, those of rows with one new token first: such rows share a long context among programs."""

    cache: KVCache
    kernel: Kernel
    slots: torch.Tensor  # [T], int64
    decodes: BlockRows | None
    prefills: BlockRows | None

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
    ) -> torch.Tensor:
        """query [1, H, T, D], key and value [1, K, T, D] -> [T, H, D]; keys and values go to the cache."""
        keys, values = self.cache.write(layer, self.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
        keys = keys.view(-1, self.cache.block_size, *keys.shape[1:])
        values = values.view(-1, self.cache.block_size, *values.shape[1:])
        queries = query[0].transpose(0, 1)
        if self.decodes is None or self.prefills is None:
            rows = self.decodes or self.prefills
            assert rows is not None, "a step has rows"
            return self.kernel(queries, keys, values, rows, rules)
        num_decodes = len(self.decodes.lens)
        return torch.cat(
            (
                self.kernel(queries[:num_decodes], keys, values, self.decodes, rules),
                self.kernel(queries[num_decodes:], keys, values, self.prefills, rules),
            )
        )


class PlainKernel:
    """The same in plain torch, row by row in float32: slow, and what the others are measured by."""

    name = "plain torch"

    def block_size(self, wanted: int) -> int:
        return wanted

    def refusal(self, shapes: Sequence[LayerShape], dtype: torch.dtype, capability: tuple[int, int]) -> str | None:
        return None

    def __call__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: BlockRows, rules: AttentionRules
    ) -> torch.Tensor:
        starts, lens = rows.starts.tolist(), rows.lens.tolist()
        outputs = [
            _attend_row(query[first:last], keys, values, table, length, rules)
            for (first, last), length, table in zip(pairwise(starts), lens, rows.table, strict=True)
        ]
        return torch.cat(outputs).to(query.dtype)


def _attend_row(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    length: int,
    rules: AttentionRules,
) -> torch.Tensor:
    """query [N, H, D], the last N positions of a context of `length` in the blocks `table` -> float32 [N, H, D]."""
    num_new, num_heads, key_size = query.shape
    blocks = table[: -(-length // keys.shape[1])].long()
    group = num_heads // keys.shape[2]
    k = keys[blocks].flatten(0, 1)[:length].repeat_interleave(group, dim=1).float()
    v = values[blocks].flatten(0, 1)[:length].repeat_interleave(group, dim=1).float()
    scaling = rules.scaling if rules.scaling is not None else key_size**-0.5
    scores = torch.einsum("nhd,lhd->hnl", query.float(), k) * scaling
    if rules.softcap is not None:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    positions = torch.arange(length - num_new, length, device=query.device)[:, None]
    columns = torch.arange(length, device=query.device)
    hidden = columns > positions
    if rules.window is not None:
        hidden |= columns <= positions - rules.window
    return torch.einsum("hnl,lhd->nhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)
