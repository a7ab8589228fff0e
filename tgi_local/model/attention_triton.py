"""Paged attention in Triton: the kernel reads the block table, and several programs share a long context.

Online softmax as in FlashAttention-2 (Dao, 2023, arXiv:2307.08691); a context divided among programs whose results are
merged afterwards, as in Flash-Decoding (Dao, Haziza, Massa, Sizov, 2023). Exponentials are powers of two, which GPUs
compute directly. Unlike torch's `varlen_attn` it takes small blocks, soft caps and long contexts of few rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tgi_local.model.attention import AttentionRules
from tgi_local.model.block_attention import BlockRows
from tgi_local.model.kv_cache import LayerShape

LOG2_E = tl.constexpr(1.4426950408889634)
MAX_SPLITS = 32
MAX_HEAD_SIZE = 256


@triton.jit
def _row_of(starts, num_rows, block, BLOCK_Q: tl.constexpr):
    """The row that query block `block` belongs to: the last one with starts[row] // BLOCK_Q + row <= block."""
    low = 0
    high = num_rows - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(starts + middle) // BLOCK_Q + middle <= block:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def _scores(
    q, k, columns, position, end, scale, softcap,
    WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores [BLOCK_M, BLOCK_N] as exponents of two, -inf where a query does not see a key."""
    scores = tl.dot(q, k, input_precision=PRECISION) * scale
    if HAS_SOFTCAP:  # softcap * tanh(scores / softcap), and tanh(x) = 2 sigmoid(2 x) - 1
        scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0) * LOG2_E
    is_seen = (columns[None, :] < end) & (columns[None, :] <= position[:, None])
    if WINDOW > 0:
        is_seen = is_seen & (columns[None, :] > position[:, None] - WINDOW)
    return tl.where(is_seen, scores, float("-inf"))


@triton.jit
def _accumulate(
    q, keys, values, blocks, begin, end, position, kv_head, scale, softcap,
    NUM_KV_HEADS: tl.constexpr, KEY_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Attend to the keys [begin, end) of a row: the highest score, the sum of weights and the weighted sum of values."""
    offs_k = tl.arange(0, BLOCK_K)
    offs_v = tl.arange(0, BLOCK_V)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for tile in range(begin, end, BLOCK_N):
        columns = tile + tl.arange(0, BLOCK_N)
        is_key = columns < end
        block = tl.load(blocks + columns // BLOCK_SIZE, mask=is_key, other=0)
        slot = (block.to(tl.int64) * BLOCK_SIZE + columns % BLOCK_SIZE) * NUM_KV_HEADS + kv_head
        k = tl.load(
            keys + slot[None, :] * KEY_SIZE + offs_k[:, None],
            mask=is_key[None, :] & (offs_k[:, None] < KEY_SIZE),
            other=0.0,
        )
        scores = _scores(q, k, columns, position, end, scale, softcap, WINDOW, HAS_SOFTCAP, PRECISION)
        higher = tl.maximum(maximum, tl.max(scores, 1))
        # A tile may lie outside the window of some of its queries: -inf - -inf would be no number.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(maximum - base)
        v = tl.load(
            values + slot[:, None] * VALUE_SIZE + offs_v[None, :],
            mask=is_key[:, None] & (offs_v[None, :] < VALUE_SIZE),
            other=0.0,
        )
        sums = sums * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        total = total * decay + tl.sum(weights, 1)
        maximum = higher
    return maximum, total, sums


@triton.jit(do_not_specialize=["num_rows", "num_splits", "table_stride", "softcap", "scale"])
def _attend(
    query, keys, values, out, part_out, part_max, part_sum, table, starts, lens,
    query_token_stride, query_head_stride, out_token_stride, table_stride, num_rows, num_splits, scale, softcap,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, KEY_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, IS_DECODE: tl.constexpr,
    IS_SPLIT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_Q query tokens of a row x the GROUP heads of one key-value head, over one split of the context.

    The rows of the tile [BLOCK_M] are tokens x heads of the group. `scale` includes log2(e) unless HAS_SOFTCAP.
    """
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    row = block if IS_DECODE else _row_of(starts, num_rows, block, BLOCK_Q)
    row_start = tl.load(starts + row)
    num_new = tl.load(starts + row + 1) - row_start
    first = 0 if IS_DECODE else (block - (row_start // BLOCK_Q + row)) * BLOCK_Q
    if first >= num_new:
        return
    length = tl.load(lens + row)

    offs_m = tl.arange(0, BLOCK_M)
    offs_k = tl.arange(0, BLOCK_K)
    offs_v = tl.arange(0, BLOCK_V)
    in_row = first + offs_m // GROUP
    head = kv_head * GROUP + offs_m % GROUP
    is_query = (offs_m // GROUP < BLOCK_Q) & (in_row < num_new)
    token = (row_start + in_row).to(tl.int64)
    q = tl.load(
        query + token[:, None] * query_token_stride + head[:, None] * query_head_stride + offs_k[None, :],
        mask=is_query[:, None] & (offs_k[None, :] < KEY_SIZE),
        other=0.0,
    )

    begin = 0
    end = length - num_new + tl.minimum(first + BLOCK_Q, num_new)
    if WINDOW > 0:
        begin = tl.maximum(length - num_new + first - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    if IS_SPLIT:
        tiles = tl.cdiv(tl.cdiv(end - begin, BLOCK_N), num_splits)
        begin += split * tiles * BLOCK_N
        end = tl.minimum(end, begin + tiles * BLOCK_N)
    maximum, total, sums = _accumulate(
        q, keys, values, table + row * table_stride, begin, end, length - num_new + in_row, kv_head, scale, softcap,
        NUM_HEADS // GROUP, KEY_SIZE, VALUE_SIZE, BLOCK_SIZE, WINDOW, HAS_SOFTCAP, PRECISION,
        BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_V,
    )  # fmt: skip

    is_out = is_query[:, None] & (offs_v[None, :] < VALUE_SIZE)
    if IS_SPLIT:
        part = (token * NUM_HEADS + head) * num_splits + split
        tl.store(part_max + part, maximum, mask=is_query)
        tl.store(part_sum + part, total, mask=is_query)
        tl.store(part_out + part[:, None] * VALUE_SIZE + offs_v[None, :], sums, mask=is_out)
    else:
        result = sums / tl.where(is_query, total, 1.0)[:, None]
        where = out + token[:, None] * out_token_stride + head[:, None] * VALUE_SIZE + offs_v[None, :]
        tl.store(where, result.to(out.dtype.element_ty), mask=is_out)


@triton.jit(do_not_specialize=["num_splits"])
def _merge(
    out, part_out, part_max, part_sum, out_token_stride, num_splits,
    NUM_HEADS: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_V: tl.constexpr, MOST_SPLITS: tl.constexpr,
):  # fmt: skip
    """One program per token and head: the splits' sums, weighted by their shares of the softmax."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    offs_s = tl.arange(0, MOST_SPLITS)
    offs_v = tl.arange(0, BLOCK_V)
    part = (token * NUM_HEADS + head) * num_splits + offs_s
    is_split = offs_s < num_splits
    maximum = tl.load(part_max + part, mask=is_split, other=float("-inf"))
    weights = tl.exp2(maximum - tl.max(maximum, 0))  # some split sees the token itself, so the maximum is finite
    total = tl.sum(weights * tl.load(part_sum + part, mask=is_split, other=0.0), 0)
    sums = tl.load(
        part_out + part[:, None] * VALUE_SIZE + offs_v[None, :],
        mask=is_split[:, None] & (offs_v[None, :] < VALUE_SIZE),
        other=0.0,
    )
    result = tl.sum(sums * weights[:, None], 0) / total
    where = out + token * out_token_stride + head * VALUE_SIZE + offs_v
    tl.store(where, result.to(out.dtype.element_ty), mask=offs_v < VALUE_SIZE)


@dataclass(frozen=True, slots=True)
class _Tile:
    """What one program computes at a time: `rows` of scores (query tokens x heads of a group) by `keys`.

    Two stages of keys and values and the queries fit the 99 KiB of shared memory of the smaller GPUs.
    """

    rows: int
    queries: int
    keys: int
    num_warps: int

    @classmethod
    def of(cls, is_decode: bool, group: int, head_bytes: int) -> "_Tile":
        """`head_bytes` is the size of one key of one head."""
        keys = max(16, min(64, 16384 // triton.next_power_of_2(head_bytes)))
        smallest = max(16, triton.next_power_of_2(group))  # tensor cores take 16 rows
        if is_decode:
            return cls(smallest, 1, keys, 4)
        rows = max(smallest, 64 if head_bytes <= 512 else 32)
        return cls(rows, rows // group, keys, 4 if head_bytes <= 256 else 8)


class TritonKernel:
    """The kernels above, for GPUs from compute capability 8.0 on."""

    name = "Triton"

    def __init__(self, num_processors: int, *, programs_per_processor: int = 2, num_stages: int = 2) -> None:
        self._num_programs = num_processors * programs_per_processor
        self._num_stages = num_stages

    def block_size(self, wanted: int) -> int:
        return wanted

    def refusal(self, shapes: Sequence[LayerShape], dtype: torch.dtype, capability: tuple[int, int]) -> str | None:
        if capability < (8, 0):
            return f"it needs compute capability 8.0, not {capability[0]}.{capability[1]}"
        for shape in shapes:
            if max(shape.key_size, shape.value_size) > MAX_HEAD_SIZE:
                return f"it does not take heads of {shape.key_size} and {shape.value_size}"
        return None

    def __call__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: BlockRows, rules: AttentionRules
    ) -> torch.Tensor:
        if query.stride(2) != 1:
            query = query.contiguous()
        num_tokens, num_heads, key_size = query.shape
        _, block_size, num_kv_heads, value_size = values.shape
        group = num_heads // num_kv_heads
        tile = _Tile.of(rows.max_new == 1, group, max(key_size, value_size) * query.element_size())
        num_rows = len(rows.lens)
        num_blocks = num_rows if rows.max_new == 1 else num_tokens // tile.queries + num_rows
        num_splits = self._num_splits(num_blocks * num_kv_heads, -(-rows.max_len // tile.keys))
        out = query.new_empty(num_tokens, num_heads, value_size)
        part_out, part_max, part_sum = out, out, out  # unused where nothing is split
        if num_splits > 1:
            parts = (num_tokens, num_heads, num_splits)
            part_out = query.new_empty(*parts, value_size, dtype=torch.float32)
            part_max, part_sum = query.new_empty(2, *parts, dtype=torch.float32)
        scale = rules.scaling if rules.scaling is not None else key_size**-0.5
        block_v = max(16, triton.next_power_of_2(value_size))
        _attend[num_blocks, num_kv_heads, num_splits](
            query, keys, values, out, part_out, part_max, part_sum, rows.table, rows.starts, rows.lens,
            query.stride(0), query.stride(1), out.stride(0), rows.table.stride(0), num_rows, num_splits,
            scale if rules.softcap else scale * LOG2_E.value, rules.softcap or 0.0,
            NUM_HEADS=num_heads, GROUP=group, KEY_SIZE=key_size, VALUE_SIZE=value_size, BLOCK_SIZE=block_size,
            WINDOW=rules.window or 0, HAS_SOFTCAP=bool(rules.softcap), IS_DECODE=rows.max_new == 1,
            IS_SPLIT=num_splits > 1, PRECISION="ieee" if query.dtype is torch.float32 else "tf32",
            BLOCK_M=tile.rows, BLOCK_Q=tile.queries, BLOCK_N=tile.keys,
            BLOCK_K=max(16, triton.next_power_of_2(key_size)), BLOCK_V=block_v,
            num_warps=tile.num_warps, num_stages=self._num_stages,
        )  # fmt: skip
        if num_splits > 1:
            _merge[num_tokens, num_heads](
                out, part_out, part_max, part_sum, out.stride(0), num_splits,
                NUM_HEADS=num_heads, VALUE_SIZE=value_size, BLOCK_V=block_v, MOST_SPLITS=MAX_SPLITS,
            )  # fmt: skip
        return out

    def _num_splits(self, num_programs: int, num_tiles: int) -> int:
        """Programs enough for every processor, each with a tile at least in the longest context."""
        return max(1, min(MAX_SPLITS, num_tiles, self._num_programs // num_programs))
