"""The forward pass by the native decoder."""

from collections.abc import Sequence

import numpy as np
import torch

from tgi_local.engine.step import StepPlan
from tgi_local.model.native import library
from tgi_local.model.native.greedy import GreedyChooser
from tgi_local.model.native.packing import PackedModel

BLOCK_SIZE = 16  # attention.h


class NativeForward:
    """Runs a packed model over the tokens of a step. Owns its KV cache, in the kernels' own layout."""

    device = torch.device("cpu")

    def __init__(self, packed: PackedModel, num_blocks: int, block_size: int = BLOCK_SIZE) -> None:
        if block_size != BLOCK_SIZE:
            raise ValueError(f"the kernels' blocks are of {BLOCK_SIZE} tokens, not {block_size}")
        self.block_size = block_size
        self.greedy = GreedyChooser(packed.team)
        self._library = library.load()
        self._packed = packed
        self.num_blocks = num_blocks
        shape = packed.decoder.cache
        size = num_blocks * BLOCK_SIZE * shape.num_kv_heads * shape.head_size * (2 if shape.is_bf16 else 4)
        self._cache = [(library.Pages(size), library.Pages(size)) for _ in packed.layers]
        # A copy with the addresses of this cache: the packed model may serve several.
        layers = type(packed.layers).from_buffer_copy(packed.layers)
        for layer, (keys, values) in zip(layers, self._cache, strict=True):
            layer.keys, layer.values = keys.address, values.address
        self._decoder = library.Decoder.from_buffer_copy(packed.decoder)
        self._decoder.layers = layers
        self._workspace = library.Workspace()
        library.when_gone(self, self._library.workspace_free, self._workspace)

    def logits(self, plan: StepPlan, kept: Sequence[int]) -> torch.Tensor:
        """Compute all tokens of `plan`; logits float32 [len(kept), vocabulary] of those at the offsets `kept`."""
        rows = plan.rows
        lengths = [len(row.token_ids) for row in rows]
        ids = np.fromiter((token for row in rows for token in row.token_ids), dtype=np.int64, count=sum(lengths))
        first = _int32(np.concatenate([[0], np.cumsum(lengths)]))
        start = _int32([row.start for row in rows])
        longest = max(row.start + length for row, length in zip(rows, lengths, strict=True))
        if longest > self._decoder.max_positions:
            raise ValueError(f"position {longest - 1}: the model has {self._decoder.max_positions}")
        tables = [np.asarray(row.block_table, dtype=np.int32) for row in rows]
        table_at = _int32(np.concatenate([[0], np.cumsum([len(t) for t in tables])]))
        table = np.concatenate(tables)
        wanted = _int32(kept)
        hidden = self._packed.embed(torch.from_numpy(ids)).float()
        if self._packed.embedding_scale != 1.0:
            hidden = hidden * self._packed.embedding_scale
        hidden = hidden.contiguous()
        logits = torch.empty(len(kept), self._decoder.head.outputs)
        step = library.Step(
            num_tokens=len(ids),
            num_rows=len(rows),
            num_kept=len(kept),
            hidden=hidden.data_ptr(),
            first=first.ctypes.data,
            start=start.ctypes.data,
            table_at=table_at.ctypes.data,
            tables=table.ctypes.data,
            kept=wanted.ctypes.data,
            logits=logits.data_ptr(),
        )
        failed = self._library.decoder_run(self._packed.team, self._decoder, step, self._workspace)
        if failed:
            raise MemoryError(f"no memory for a step of {len(ids)} tokens")
        return logits if self._packed.logits_scale == 1.0 else logits * self._packed.logits_scale


def _int32(values: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.int32)
