"""From the host's memory to the device's, without waiting for the device."""

from collections.abc import Sequence

import numpy as np
import torch

ALIGNMENT = 16  # bytes; kernels load that much at once


def to_device(
    values: Sequence[float] | Sequence[Sequence[float]] | np.ndarray,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """A few numbers as a tensor on the device.

    From ordinary memory a copy to a GPU waits until the GPU has done all that was asked of it before.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.tensor(values, dtype=dtype)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Upload:
    """Copies arrays to the device through one page-locked buffer, in one transfer that nobody waits for.

    The buffer is free again when the step's results have come back, before which no next step begins.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host = torch.empty(0, dtype=torch.uint8)

    def __call__(self, arrays: Sequence[np.ndarray], target: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The arrays as tensors on the device: views of `target` [bytes] from its beginning, or of new memory."""
        offsets, size = layout([array.nbytes for array in arrays])
        if size > len(self._host):
            is_pinned = self._device.type == "cuda"
            self._host = torch.empty(1 << (size - 1).bit_length(), dtype=torch.uint8, pin_memory=is_pinned)
        host = self._host.numpy()
        for array, offset in zip(arrays, offsets, strict=True):
            host[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        if target is None:
            target = torch.empty(size, dtype=torch.uint8, device=self._device)
        target[:size].copy_(self._host[:size], non_blocking=True)
        return [
            view(target, offset, torch.from_numpy(array).dtype, array.shape)
            for array, offset in zip(arrays, offsets, strict=True)
        ]


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where arrays of these many bytes begin, one after another, and how many bytes they take together."""
    offsets, size = [], 0
    for nbytes in sizes:
        offsets.append(size)
        size += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, size


def view(buffer: torch.Tensor, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """The tensor of this form that lies in `buffer` [bytes] from `offset` on."""
    nbytes = int(np.prod(shape)) * dtype.itemsize
    return buffer[offset : offset + nbytes].view(dtype).view(*shape)
