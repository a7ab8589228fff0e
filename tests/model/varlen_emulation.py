"""`torch.nn.attention.varlen.varlen_attn` on the CPU: its signature, its checks, its results, in plain torch.

What it demands is what torch 2.13 demands on a GPU, in `varlen.py` and in the FlashAttention-2 that it calls: torch's
own function, called on the CPU, ends in "no kernel for this backend" before most of these checks.
"""

import torch

PAGE = 256


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
) -> torch.Tensor:
    assert seqused_k is not None and block_table is not None and cu_seq_k is not None
    num_rows = len(cu_seq_q) - 1
    num_pages, page, num_kv_heads, head_size = key.shape
    num_heads = query.shape[1]
    assert page % PAGE == 0, "Paged KV cache block size must be divisible by 256"
    assert key.shape == value.shape and query.shape[2] == head_size
    assert head_size % 8 == 0 and head_size <= 256
    assert query.dtype is key.dtype is value.dtype
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert cu_seq_q.dtype is cu_seq_k.dtype is seqused_k.dtype is block_table.dtype is torch.int32
    assert len(cu_seq_k) == num_rows + 1 and len(seqused_k) == len(block_table) == num_rows
    assert cu_seq_q.is_contiguous() and cu_seq_k.is_contiguous() and seqused_k.is_contiguous()
    assert block_table.stride(-1) == 1
    assert num_heads == num_kv_heads if not enable_gqa else num_heads % num_kv_heads == 0
    lens = (cu_seq_q[1:] - cu_seq_q[:-1]).tolist()
    assert max(lens) <= max_q and max(seqused_k.tolist()) <= max_k, "the kernel's grid would not reach the end"
    is_swapped = max_q == 1 and num_heads > num_kv_heads and window_size == (-1, -1)
    assert num_splits == 1 or is_swapped, "rows of a divided context would not be written (pytorch issue 194167)"
    scaling = scale if scale is not None else head_size**-0.5
    out = torch.full_like(query, float("nan"))
    for row in range(num_rows):
        first, last = int(cu_seq_q[row]), int(cu_seq_q[row + 1])
        used = int(seqused_k[row])
        pages = block_table[row, : -(-used // page)].long()
        assert (pages < num_pages).all()
        group = num_heads // num_kv_heads
        k = key[pages].flatten(0, 1)[:used].repeat_interleave(group, 1).double()
        v = value[pages].flatten(0, 1)[:used].repeat_interleave(group, 1).double()
        scores = torch.einsum("qhd,khd->hqk", query[first:last].double(), k) * scaling
        # The last query is at the last key. (left, right) keys around a query's own place are seen, -1 is no bound.
        place = torch.arange(last - first)[:, None] + used - (last - first)
        distance = torch.arange(used)[None] - place
        left, right = window_size
        if left >= 0:
            scores = scores.masked_fill(distance < -left, float("-inf"))
        if right >= 0:
            scores = scores.masked_fill(distance > right, float("-inf"))
        out[first:last] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(out.dtype)
    return out
