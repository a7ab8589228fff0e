"""How much memory the KV cache may take: what is left beside the weights and the largest step."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tgi_local.engine.step import OutOfMemoryError, StepPlan, StepRow
from tgi_local.errors import StartupError
from tgi_local.types import SamplingParams

logger = logging.getLogger(__name__)

MARGIN = 0.1  # of what is left: fragmentation, and what libraries allocate later
GRAPH_BYTES = 8 << 20  # what the driver keeps per captured graph, generously
# As many prompt tokens of one row as are scored in one step.
SCORED_CHUNK = 256
LONG_ROWS_TOKENS = 1 << 16  # contexts of decode rows that are tried at full length, together

# Every rule of the sampler at once.
_ALL_RULES = SamplingParams(
    temperature=0.9,
    top_k=50,
    top_p=0.9,
    typical_p=0.9,
    min_p=0.01,
    repetition_penalty=1.1,
    relative_frequency_penalty=0.1,
    frequency_penalty=0.1,
    presence_penalty=0.1,
    top_n_tokens=5,
)


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Bounds of what the scheduler plans: rows of a step, new tokens over all rows, longest context of a row."""

    max_rows: int = 128
    max_tokens: int = 2048
    max_len: int = 4096


def worst_step(limits: StepLimits, block_size: int) -> StepPlan:
    """The step that takes most memory: all rows sample by every rule, and as many tokens as can be are scored.

    All rows live in block 0, so that it needs hardly any cache: what they compute is of no interest.
    """
    num_rows = max(1, min(limits.max_rows, limits.max_tokens))
    spare = limits.max_tokens - num_rows
    sizes = []
    for i in range(num_rows):
        is_last = i == num_rows - 1
        more = min(spare, limits.max_len - 1 if is_last else SCORED_CHUNK - 1, limits.max_len - 1)
        sizes.append(1 + more)
        spare -= more
    num_long = max(1, LONG_ROWS_TOKENS // limits.max_len)
    rows = []
    for i, num_new in enumerate(sizes):
        is_long = num_new > 1 or i >= num_rows - num_long
        length = limits.max_len if is_long else 1
        rows.append(_row(f"worst-{i}", num_new, length, block_size, history_len=limits.max_len if i == 0 else 1))
    return StepPlan(tuple(rows))


def _row(request_id: str, num_new: int, length: int, block_size: int, history_len: int) -> StepRow:
    return StepRow(
        request_id=request_id,
        token_ids=(0,) * num_new,
        start=length - num_new,
        block_table=(0,) * -(-length // block_size),
        is_sampling=True,
        sampling=_ALL_RULES,
        history=(0,) * history_len,
        num_prompt_tokens=1,
        logprob_targets=(0,) * (num_new - 1) if num_new <= SCORED_CHUNK else (),
    )


def decode_step(num_rows: int) -> StepPlan:
    """Rows of one new token in block 0."""
    return StepPlan(tuple(StepRow(f"decode-{i}", (0,), 0, (0,), True, SamplingParams()) for i in range(num_rows)))


def cache_bytes(
    *, total: int, free: int, reserved: int, allocated: int, fraction: float, step: int, graphs: int
) -> int:
    """What is left for the KV cache on a GPU of `total` bytes, of which `free` are, less a margin.

    torch has taken `reserved` bytes from the driver, of which `allocated` are in use (the weights), and may take
    `fraction` of all; `step` and `graphs` are what the largest step and the captured graphs take beside the cache.
    """
    outside = total - free - reserved  # the driver's, and other processes'
    ours = min(int(total * fraction), total - outside)
    return max(0, int((ours - allocated - step - graphs) * (1 - MARGIN)))


def measure(device: torch.device, run: Callable[[], object]) -> int:
    """How many bytes more than now `run` has allocated at its peak."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """Which decode steps will be captured, and the bytes of their common inputs and outputs."""

    sizes: tuple[int, ...] = ()
    buffer_bytes: int = 0


def free_for_cache(
    device: torch.device,
    fraction: float,
    limits: StepLimits,
    block_size: int,
    graphs: GraphPlan,
    run: Callable[[StepPlan], object],
) -> int:
    """Run the largest steps on a model with a one-block cache, and say how many bytes are left for the real one.

    Raises StartupError if such a step does not fit. Captured graphs share what the largest of them needs.
    """
    try:
        step = measure(device, lambda: run(worst_step(limits, block_size)))
        captured = 0
        if graphs.sizes:
            captured = measure(device, lambda: run(decode_step(max(graphs.sizes))))
            captured += graphs.buffer_bytes + len(graphs.sizes) * GRAPH_BYTES
    except (OutOfMemoryError, torch.OutOfMemoryError) as error:
        raise StartupError(
            f"a step of {limits.max_tokens} tokens and {limits.max_rows} rows does not fit on {device} beside the "
            "weights; lower --max-batch-prefill-tokens and --max-batch-size, or choose a smaller model or --quantize"
        ) from error
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    left = cache_bytes(
        total=total,
        free=free,
        reserved=torch.cuda.memory_reserved(device),
        allocated=torch.cuda.memory_allocated(device),
        fraction=fraction,
        step=step,
        graphs=captured,
    )
    logger.info(
        "memory: weights %.2f GiB, largest step %.2f, CUDA graphs %.2f, for the KV cache %.2f of %.2f",
        *(n / 2**30 for n in (torch.cuda.memory_allocated(device), step, captured, left, total)),
    )
    return left
