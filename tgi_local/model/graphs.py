"""Decode steps captured as CUDA graphs: one launch in place of a thousand, for the batch sizes that are captured.

A graph always reads and writes the same memory, so a step's inputs are copied there first. A step between two captured
sizes is filled up with rows that compute something of no interest in a cache block of their own.
"""

import logging
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch

from tgi_local.model.attention import AttentionStep
from tgi_local.model.block_attention import BlockRows, BlockStep, Kernel
from tgi_local.model.kv_cache import KVCache
from tgi_local.model.step_inputs import StepArrays
from tgi_local.model.transfer import Upload, layout, view

logger = logging.getLogger(__name__)

DEFAULT_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
LARGER_STEP = 64  # between sizes beyond the last of these
UNWRITTEN = 12345.0

Compute = Callable[[torch.Tensor, torch.Tensor, AttentionStep], torch.Tensor]
Capture = Callable[[Callable[[], None]], Callable[[], None]]


def choose_sizes(requested: Sequence[int] | None, max_batch_size: int) -> tuple[int, ...]:
    """Batch sizes to capture: as asked for, by default ever wider apart up to `max_batch_size`; 0 asks for none."""
    if requested is not None:
        return tuple(sorted({size for size in requested if 0 < size <= max_batch_size}))
    larger = range(DEFAULT_SIZES[-1] + LARGER_STEP, max_batch_size, LARGER_STEP)
    return tuple(sorted({size for size in (*DEFAULT_SIZES, *larger) if size < max_batch_size} | {max_batch_size}))


class DecodeGraphs:
    """Replays a model's decode step. Used by the engine thread only.

    `compute(ids [B], positions [B], step)` gives logits [B, vocabulary]. `capture(function)` records what `function`
    does on the device, and returns what does it again.
    """

    def __init__(
        self,
        compute: Compute,
        cache: KVCache,
        kernel: Kernel,
        *,
        sizes: Sequence[int],
        max_len: int,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._compute = compute
        self._cache = cache
        self._kernel = kernel
        self._sizes = sorted(sizes)
        self._max_len = max_len
        self._width = -(-max_len // cache.block_size)
        self._replays: dict[int, Callable[[], None]] = {}
        largest = self._sizes[-1]
        self._upload = Upload(device)
        self._inputs = torch.zeros(_input_bytes(largest, self._width), dtype=torch.uint8, device=device)
        self._table = torch.full((largest, self._width), cache.scratch_block, dtype=torch.int32, device=device)
        self._starts = torch.arange(largest + 1, dtype=torch.int32, device=device)
        self._logits = torch.empty(largest, vocab_size, dtype=torch.float32, device=device)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes that are captured."""
        return tuple(sorted(self._replays))

    @torch.inference_mode()
    def capture(self, capture: Capture) -> None:
        """Capture all sizes, or none if one fails: what can not be captured at one size is not at another."""
        try:
            for size in reversed(self._sizes):  # so that the smaller ones find the memory of the largest
                self._replays[size] = self._captured(size, capture)
        except Exception as error:  # whatever the model's modules and the libraries under them raise here
            self._replays.clear()
            logger.warning("decode steps run without CUDA graphs: %s", _first_line(error))
        else:
            logger.info("CUDA graphs for decode steps of %s rows", ", ".join(map(str, self._sizes)))

    def fits(self, arrays: StepArrays) -> bool:
        """Whether this is a decode step that a captured one can compute."""
        is_small = bool(self._replays) and arrays.num_rows <= self._sizes[-1] and arrays.table.shape[1] <= self._width
        return is_small and arrays.is_decode

    def logits(self, arrays: StepArrays) -> torch.Tensor:
        """Logits float32 [rows, vocabulary] of a step that fits; the next step overwrites them."""
        size = next(size for size in self._sizes if size >= arrays.num_rows)
        self._fill(size, arrays)
        self._replays[size]()
        return self._logits[: arrays.num_rows]

    def _captured(self, size: int, capture: Capture) -> Callable[[], None]:
        """A replay that has been seen to compute what the operations one by one compute."""
        function = self._function(size)
        self._fill(size, self._scratch_rows(size, token_id=0))
        replay = capture(function)
        self._fill(size, self._scratch_rows(size, token_id=1))
        self._logits.fill_(UNWRITTEN)
        replay()
        replayed = self._logits[:size].clone()
        function()
        if not torch.allclose(replayed, self._logits[:size], rtol=0.02, atol=0.02, equal_nan=True):
            raise RuntimeError("the captured graph computes something else than its operations one by one")
        return replay

    def _function(self, size: int) -> Callable[[], None]:
        """The decode step of `size` rows, from the static inputs to the static logits."""
        ids, positions, slots, lens, context_starts = _head(self._inputs, size)
        rows = BlockRows(
            self._starts[: size + 1], lens, context_starts, self._table[:size], max_new=1, max_len=self._max_len
        )
        step = BlockStep(self._cache, self._kernel, slots, rows, None)

        def decode() -> None:
            self._logits[:size].copy_(self._compute(ids, positions, step))

        return decode

    def _fill(self, size: int, arrays: StepArrays) -> None:
        """Copy the inputs of a step of at most `size` rows to where the graph of `size` reads them."""
        if arrays.num_rows < size:
            arrays = self._filled_up(size, arrays)
        context_starts = np.concatenate(([0], arrays.lens.cumsum())).astype(np.int32)
        head = (arrays.ids, arrays.positions, arrays.slots, arrays.lens, context_starts)
        *_, staged_table = self._upload((*head, arrays.table), self._inputs)
        # What the table has beyond this width is left of earlier steps, and lies beyond every row's context.
        self._table[:size, : arrays.table.shape[1]].copy_(staged_table)

    def _filled_up(self, size: int, arrays: StepArrays) -> StepArrays:
        """The same step with scratch rows after its own, `size` rows in all."""
        scratch = self._scratch_rows(size, token_id=0, width=arrays.table.shape[1])
        for name in ("ids", "positions", "slots", "lens", "table"):
            getattr(scratch, name)[: arrays.num_rows] = getattr(arrays, name)
        return scratch

    def _scratch_rows(self, size: int, token_id: int, width: int = 1) -> StepArrays:
        """Rows with a context of one token, all alike, so that it is no matter whose keys the scratch block holds."""
        block = self._cache.scratch_block
        return StepArrays(
            ids=np.full(size, token_id, dtype=np.int64),
            positions=np.zeros(size, dtype=np.int64),
            slots=np.full(size, block * self._cache.block_size, dtype=np.int64),
            kept=np.arange(size),
            starts=np.arange(size + 1, dtype=np.int32),
            lens=np.ones(size, dtype=np.int32),
            context_starts=np.arange(size + 1, dtype=np.int32),
            table=np.full((size, width), block, dtype=np.int32),
            num_decodes=size,
        )


def _head(buffer: torch.Tensor, size: int) -> list[torch.Tensor]:
    """ids, positions and slots [size] int64, lens [size] and context starts [size + 1] int32, as `_fill` lays them."""
    forms = [(torch.int64, size)] * 3 + [(torch.int32, size), (torch.int32, size + 1)]
    offsets, _ = layout([dtype.itemsize * length for dtype, length in forms])
    return [view(buffer, offset, dtype, (length,)) for offset, (dtype, length) in zip(offsets, forms, strict=True)]


def _input_bytes(size: int, width: int) -> int:
    return layout([8 * size] * 3 + [4 * size, 4 * (size + 1), 4 * size * width])[1]


def buffer_bytes(size: int, width: int, vocab_size: int) -> int:
    """What the static inputs and outputs of graphs up to this batch size and block table take."""
    return _input_bytes(size, width) + 4 * size * width + 4 * size * vocab_size


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


class CudaCapture:
    """Captures on a stream of its own. All graphs share one memory pool, since only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Raises RuntimeError when `function` waits for the device, which no graph can do."""
        self._warm_up(function)
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream(self._device)
        try:
            # Other threads may use the device meanwhile: it is this one's calls that must be capturable.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                function()
        except Exception:
            self._clean_up(before)
            raise
        return graph.replay

    def _clean_up(self, stream: torch.cuda.Stream) -> None:
        """After a failed capture torch leaves its stream current, and its allocator refuses to free memory."""
        torch.cuda.set_stream(stream)
        try:
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
        except (AttributeError, RuntimeError):
            logger.debug("the allocator had ended the capture itself")

    def _warm_up(self, function: Callable[[], None]) -> None:
        """Once to compile kernels and allocate workspaces, once to find what waits: a failed capture costs memory."""
        torch.cuda.synchronize(self._device)
        with torch.cuda.stream(self._stream):
            function()
            torch.cuda.synchronize(self._device)
            mode = torch.cuda.get_sync_debug_mode()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the mode is called a prototype
                torch.cuda.set_sync_debug_mode("error")
                try:
                    function()
                finally:
                    torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.synchronize(self._device)
