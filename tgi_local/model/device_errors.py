"""What torch's errors mean for the engine: too little memory for this step, or a device that is lost."""

import torch

from tgi_local.engine.step import FatalModelError, OutOfMemoryError

# Allocations that fail outside torch's own allocator of GPU memory are told apart by their words only.
_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def translate(error: Exception, device: torch.device) -> Exception:
    """The engine's error for one of a forward pass, or `error` itself when it says nothing about the device.

    The answer does not refer to `error`, whose traceback keeps the tensors of the failed pass alive.
    """
    reason = str(error).partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in reason for words in _NO_MEMORY):
        return OutOfMemoryError(reason)
    # After some errors CUDA refuses every later call of the process, after others it goes on.
    if isinstance(error, torch.AcceleratorError) and not _works(device):
        return FatalModelError(f"{device} failed: {reason}")
    return error


def free_cached_memory(device: torch.device) -> None:
    """Give back what torch holds in reserve, so that a smaller step finds its memory in one piece."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _works(device: torch.device) -> bool:
    try:
        return torch.ones(1, device=device).item() == 1.0
    except RuntimeError:
        return False
