"""Which attention kernel serves a model: chosen once, when it is loaded, by trying."""

import logging
from collections.abc import Callable, Iterator, Sequence

import torch

from tgi_local.model.attention import AttentionRules
from tgi_local.model.attention_varlen import VarlenKernel
from tgi_local.model.block_attention import BlockRows, Kernel, PlainKernel
from tgi_local.model.kv_cache import LayerShape

logger = logging.getLogger(__name__)

TRIED_LENS = (1, 130, 300)  # a single token, and contexts of several blocks and tiles
TRIED_CHUNK = 70
TOLERANCE = 0.02  # several roundings of bfloat16


def _triton(device: torch.device) -> Kernel:
    from tgi_local.model.attention_triton import TritonKernel

    return TritonKernel(torch.cuda.get_device_properties(device).multi_processor_count)


def _varlen(_: torch.device) -> Kernel:
    return VarlenKernel()


# Best first: small blocks waste less memory and share more prefixes, and Triton's divides long contexts.
CANDIDATES: tuple[tuple[str, Callable[[torch.device], Kernel]], ...] = (("Triton", _triton), ("varlen_attn", _varlen))


def choose_kernel(shapes: Sequence[LayerShape], dtype: torch.dtype, device: torch.device) -> Kernel | None:
    """The best kernel that serves these layers here and gives right results; None where contexts must be gathered."""
    if device.type != "cuda":
        return None
    capability = torch.cuda.get_device_capability(device)
    reasons = []
    for name, make in CANDIDATES:
        try:
            kernel = make(device)
            reason = kernel.refusal(shapes, dtype, capability) or check(kernel, shapes, dtype, device)
        except Exception as error:  # a missing library, or whatever its compiler says of this GPU
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
        if reason is None:
            logger.info("attention: %s, which reads the KV cache in place", kernel.name)
            return kernel
        reasons.append(f"{name}: {reason}")
    logger.warning("attention: every step copies its contexts together; %s", "; ".join(reasons))
    return None


@torch.inference_mode()
def check(kernel: Kernel, shapes: Sequence[LayerShape], dtype: torch.dtype, device: torch.device) -> str | None:
    """Compare `kernel` with plain torch on small rows; what is wrong with it, or None."""
    plain = PlainKernel()
    for shape in dict.fromkeys(shapes):
        for arguments in _trials(shape, kernel.block_size(16), dtype, device):
            error = largest_error(kernel(*arguments), plain(*arguments))
            if not error < TOLERANCE:  # not a number is no less, too
                return f"its results are off by {error:.3g} with {arguments[-1]}"
    return None


def largest_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference, relative where a value is greater than one."""
    got, want = got.float(), want.float()
    return ((got - want).abs() / want.abs().clamp(min=1.0)).max().item()


def _trials(
    shape: LayerShape, block_size: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, BlockRows, AttentionRules]]:
    """Arguments of a kernel for decode rows and for prefill chunks of such a layer."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    rules = AttentionRules(None, shape.window, shape.softcap)
    for num_new in ((1,) * len(TRIED_LENS), tuple(min(n, TRIED_CHUNK) for n in TRIED_LENS)):
        rows = make_rows(num_new, TRIED_LENS, block_size, device)
        num_blocks = int(rows.table.max()) + 1
        keys = random(num_blocks, block_size, shape.num_heads, shape.key_size)
        values = random(num_blocks, block_size, shape.num_heads, shape.value_size)
        query = random(sum(num_new), shape.num_heads * shape.group, shape.key_size)
        yield query, keys, values, rows, rules


def make_rows(num_new: Sequence[int], lens: Sequence[int], block_size: int, device: torch.device) -> BlockRows:
    """Rows of these many new tokens and context lengths, each with blocks of its own in no particular order."""
    counts = [-(-length // block_size) for length in lens]
    shuffled = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(1)).to(torch.int32)
    table = torch.zeros(len(lens), max(counts), dtype=torch.int32)
    for row, blocks in zip(table, shuffled.split(counts), strict=True):
        row[: len(blocks)] = blocks
    lengths = torch.tensor(lens, dtype=torch.int32)
    starts = torch.tensor([0, *num_new], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    context_starts = torch.cat((starts[:1], lengths.cumsum(0, dtype=torch.int32)))
    return BlockRows(
        starts.to(device),
        lengths.to(device),
        context_starts.to(device),
        table.to(device),
        max_new=max(num_new),
        max_len=max(lens),
    )
