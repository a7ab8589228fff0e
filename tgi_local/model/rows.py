"""Some rows of a tensor: no copy when they are all, and none slower than it must be (indexing by a list is)."""

from collections.abc import Sequence

import torch

from tgi_local.model.transfer import to_device


def take_rows(numbers: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Rows of [n, ...], in this order; `numbers` itself when that is all of them. Rows ascend."""
    if len(rows) == len(numbers):
        return numbers
    return numbers.index_select(0, to_device(rows, numbers.device, torch.long))


def put_rows(numbers: torch.Tensor, rows: Sequence[int], values: torch.Tensor) -> None:
    """Write `values` [len(rows), ...] over these rows. Rows ascend."""
    if len(rows) == len(numbers):
        numbers.copy_(values)
    else:
        numbers.index_copy_(0, to_device(rows, numbers.device, torch.long), values)
