"""Turns a step plan into one forward pass and its result back into plain data."""

import logging
from collections.abc import Sequence
from typing import Protocol

import psutil
import torch

from tgi_local.engine.step import OutOfMemoryError, RowResult, StepPlan, StepResult, StepRow
from tgi_local.model.block_attention import Kernel
from tgi_local.model.decoding import TokenChooser
from tgi_local.model.device_errors import free_cached_memory, translate
from tgi_local.model.eager import EagerForward
from tgi_local.model.graphs import Capture, CudaCapture, DecodeGraphs, buffer_bytes, choose_sizes
from tgi_local.model.kernel_choice import choose_kernel
from tgi_local.model.kv_cache import KVCache, bytes_per_token, choose_num_blocks
from tgi_local.model.loader import LoadedModel
from tgi_local.model.memory import GraphPlan, StepLimits, free_for_cache
from tgi_local.model.native.forward import NativeForward
from tgi_local.model.native.greedy import GreedyChooser
from tgi_local.model.sampler import top_tokens
from tgi_local.model.transfer import to_device
from tgi_local.types import SampledToken, SamplingParams, TokenLogprob

logger = logging.getLogger(__name__)


class Forward(Protocol):
    """A model that reads and writes its own paged KV cache."""

    device: torch.device

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    def logits(self, plan: StepPlan, kept: Sequence[int]) -> torch.Tensor:
        """Compute all tokens of `plan`; logits float32 [len(kept), vocabulary] of those at the offsets `kept`."""
        ...


class TorchRunner:
    """A forward pass and the choice of tokens after it. Used by the engine thread only."""

    def __init__(self, forward: Forward, greedy: GreedyChooser | None = None) -> None:
        self._forward = forward
        self._chooser = TokenChooser(greedy)

    @property
    def num_blocks(self) -> int:
        return self._forward.num_blocks

    @property
    def block_size(self) -> int:
        return self._forward.block_size

    def run(self, plan: StepPlan) -> StepResult:
        """Compute all rows in one pass. Rows whose logits are not numbers get an error, the others their tokens."""
        try:
            return self._compute(plan)
        except Exception as error:
            translated = translate(error, self._forward.device)
            if translated is error:
                raise
            if not isinstance(translated, OutOfMemoryError):
                raise translated from error
        # Outside of the handler the failed pass's tensors are gone.
        free_cached_memory(self._forward.device)
        raise translated

    @torch.inference_mode()
    def _compute(self, plan: StepPlan) -> StepResult:
        kept = _kept_positions(plan)
        logits = self._forward.logits(plan, kept.positions)
        sampling = [(i, row) for i, row in enumerate(plan.rows) if row.is_sampling]
        last = [kept.last_of_row[i] for i, _ in sampling]
        tokens = self._chooser.choose(logits, last, [row for _, row in sampling])
        sampled = {i: token for (i, _), token in zip(sampling, tokens, strict=True)}
        return StepResult(
            tuple(
                _row_result(sampled.get(i), row, _target_logprobs(logits, kept.first_of_row[i], row))
                for i, row in enumerate(plan.rows)
            )
        )


class _Kept:
    """Which token positions of a step need logits, and where each row's first and last of them are."""

    __slots__ = ("first_of_row", "last_of_row", "positions")

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.first_of_row: list[int] = []
        self.last_of_row: list[int] = []


def _kept_positions(plan: StepPlan) -> _Kept:
    kept = _Kept()
    offset = 0
    for row in plan.rows:
        end = offset + len(row.token_ids)
        kept.first_of_row.append(len(kept.positions))
        if row.logprob_targets:
            kept.positions.extend(range(offset, end))
        elif row.is_sampling:
            kept.positions.append(end - 1)
        kept.last_of_row.append(len(kept.positions) - 1)
        offset = end
    return kept


def _target_logprobs(logits: torch.Tensor, first: int, row: StepRow) -> tuple[TokenLogprob, ...]:
    """Log-probabilities of the row's prompt tokens and of the likeliest in their places, from unmodified logits."""
    if not row.logprob_targets:
        return ()
    count = len(row.logprob_targets)
    targets = to_device(row.logprob_targets, logits.device, torch.long)
    scored = logits[first : first + count]
    # Unlike logsumexp, which is slower, too, this is the same for a position alone and among others.
    logprobs = scored.log_softmax(dim=-1)
    values = logprobs.gather(1, targets[:, None])[:, 0].tolist()
    tops = top_tokens(logprobs, [row.sampling.top_n_tokens] * count)
    return tuple(map(TokenLogprob, row.logprob_targets, values, tops))


def _row_result(token: SampledToken | None, row: StepRow, target_logprobs: tuple[TokenLogprob, ...]) -> RowResult:
    error = None
    if row.is_sampling and token is None:
        what = "values that are not numbers" if row.constraint is None else "no token that the grammar allows"
        error = f"the model produced {what}"
    is_corrupt = error is not None and row.constraint is None
    return RowResult(token, error, is_corrupt, target_logprobs)


def build_runner(
    loaded: LoadedModel,
    *,
    block_size: int,
    min_tokens: int,
    max_tokens: int,
    requested_tokens: int | None,
    memory_fraction: float = 1.0,
    limits: StepLimits | None = None,
    graph_sizes: Sequence[int] | None = None,
) -> TorchRunner:
    """Size the KV cache for the memory that is free after loading, allocate it, and warm up.

    `block_size` is a wish: a GPU's attention may need larger blocks. `min_tokens` is the longest single request,
    `max_tokens` what is useful at most, `requested_tokens` what the user asked for, `memory_fraction` the share of a GPU
    that this process may use, `limits` bound its steps, `graph_sizes` are the batch sizes of decode steps to capture as
    CUDA graphs (None: chosen by `limits`). Raises StartupError when it does not fit.
    """
    if loaded.device.type == "cuda" and loaded.device != torch.device("cuda"):
        torch.cuda.set_device(loaded.device)  # for this thread: some libraries launch on whatever device is current
    limits = limits or StepLimits(max_len=max_tokens)
    kernel = choose_kernel(loaded.layer_shapes, loaded.dtype, loaded.device)
    if kernel is not None:
        block_size = kernel.block_size(block_size)
    elif graph_sizes and any(graph_sizes):
        logger.warning(
            "--cuda-graphs has no effect: without a kernel that reads the KV cache there is nothing to capture"
        )
    sizes = choose_sizes(graph_sizes, limits.max_rows) if kernel is not None else ()
    free = _free_for_cache(loaded, kernel, block_size, memory_fraction, limits, sizes)
    token_bytes = bytes_per_token(loaded.layer_shapes, loaded.dtype)
    num_blocks = choose_num_blocks(token_bytes, free, block_size, min_tokens, max_tokens, requested_tokens)
    if loaded.packed is not None:
        native = NativeForward(loaded.packed, num_blocks, block_size)
        return _warmed_up(TorchRunner(native, native.greedy))
    cache = KVCache(loaded.layer_shapes, num_blocks, block_size, loaded.dtype, loaded.device, has_scratch=bool(sizes))
    forward = EagerForward(loaded, cache, kernel)
    if kernel is not None and sizes:
        forward.use_graphs(capture_decodes(forward, kernel, sizes, limits.max_len, CudaCapture(loaded.device)))
    return _warmed_up(TorchRunner(forward))


def capture_decodes(
    forward: EagerForward, kernel: Kernel, sizes: Sequence[int], max_len: int, capture: Capture
) -> DecodeGraphs | None:
    """Decode steps of these batch sizes and contexts up to `max_len`, captured; None if they can not be."""
    graphs = DecodeGraphs(
        forward.compute_all,
        forward.cache,
        kernel,
        sizes=sizes,
        max_len=min(max_len, forward.num_blocks * forward.block_size),
        vocab_size=forward.vocab_size,
        device=forward.device,
    )
    graphs.capture(capture)
    return graphs if graphs.sizes else None


def _warmed_up(runner: TorchRunner) -> TorchRunner:
    """Run a decode step and a prefill step: kernels are compiled and libraries set up when first used."""
    for num_new in (1, 2):
        runner.run(StepPlan((StepRow("warm-up", (0,) * num_new, 0, (0,), True, SamplingParams()),)))
    return runner


def _free_for_cache(
    loaded: LoadedModel,
    kernel: Kernel | None,
    block_size: int,
    fraction: float,
    limits: StepLimits,
    sizes: Sequence[int],
) -> int:
    """Bytes that the KV cache may take: what is left of a GPU's memory, or a quarter of the available RAM."""
    if loaded.device.type != "cuda":
        return int(psutil.virtual_memory().available * 0.25)
    cache = KVCache(loaded.layer_shapes, 1, block_size, loaded.dtype, loaded.device)
    runner = TorchRunner(EagerForward(loaded, cache, kernel))
    buffers = 0
    if sizes:
        buffers = buffer_bytes(max(sizes), -(-limits.max_len // block_size), loaded.vocab_size)
    graphs = GraphPlan(tuple(sizes), buffers)
    return free_for_cache(loaded.device, fraction, limits, block_size, graphs, runner.run)
