"""Paged attention by torch's built-in FlashAttention (`torch.nn.attention.varlen`; 2.11 had no block table)."""

import inspect
from collections.abc import Sequence

import torch

from tgi_local.model.attention import AttentionRules
from tgi_local.model.block_attention import BlockRows
from tgi_local.model.kv_cache import LayerShape

BLOCK_SIZE = 256  # its kernels take multiples of this
MAX_HEAD_SIZE = 256


class VarlenKernel:
    """`varlen_attn`, one call for all rows.

    A long context is never divided among programs (num_splits=1): with a block table, torch 2.13 leaves rows of the
    output unwritten when it divides one (pytorch issue 194167).
    """

    name = "torch's varlen_attn"

    def block_size(self, wanted: int) -> int:
        return -(-wanted // BLOCK_SIZE) * BLOCK_SIZE

    def refusal(self, shapes: Sequence[LayerShape], dtype: torch.dtype, capability: tuple[int, int]) -> str | None:
        missing = {"block_table", "seqused_k", "num_splits"} - _parameters()
        if missing:
            return f"torch {torch.__version__} has it without {', '.join(sorted(missing))}"
        if not torch.backends.cuda.is_flash_attention_available():
            return "this torch was built without FlashAttention"
        if capability < (8, 0):
            return f"it needs compute capability 8.0, not {capability[0]}.{capability[1]}"
        if dtype not in (torch.float16, torch.bfloat16):
            return f"it knows float16 and bfloat16, not {dtype}"
        for shape in shapes:
            if shape.key_size != shape.value_size or shape.key_size % 8 or shape.key_size > MAX_HEAD_SIZE:
                return f"it does not take heads of {shape.key_size} and {shape.value_size}"
            if shape.softcap is not None:
                return "it can not cap scores"
        return None

    def __call__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: BlockRows, rules: AttentionRules
    ) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(
            query,
            keys,
            values,
            rows.starts,
            rows.context_starts,
            rows.max_new,
            rows.max_len,
            scale=rules.scaling,
            window_size=_window(rows.max_new, rules.window),
            enable_gqa=query.shape[1] != keys.shape[2],
            seqused_k=rows.lens,
            block_table=rows.table,
            num_splits=1,
        )
        assert isinstance(out, torch.Tensor), "nothing but the output was asked for"
        return out


def _window(max_new: int, window: int | None) -> tuple[int, int]:
    """Keys seen before and after a query's own position, which is counted from the end of the context."""
    if window is not None:
        return window - 1, 0
    # One query sees everything, and only without any bound are the heads of a group computed together.
    return (-1, -1) if max_new == 1 else (-1, 0)


def _parameters() -> frozenset[str]:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)
