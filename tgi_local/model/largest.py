"""The largest of many numbers without looking closely at most of them.

Torch's `topk`, `argmax` and `sort` cost a multiple of one pass over memory on the CPU; the largest number of every block
of 64 does not, and says where to look.
"""

import numpy as np
import torch

BLOCK = 64


def argmax(numbers: torch.Tensor) -> torch.Tensor:
    """Index of the largest of each row of [rows, n], the first one of equals."""
    num_blocked = numbers.shape[1] // BLOCK * BLOCK
    if numbers.device.type != "cpu" or num_blocked == 0:
        return numbers.argmax(dim=-1)
    blocks = numbers[:, :num_blocked].unflatten(1, (-1, BLOCK))
    block = blocks.amax(dim=-1).argmax(dim=-1)
    best = block * BLOCK + blocks[torch.arange(len(block)), block].argmax(dim=-1)
    if num_blocked == numbers.shape[1]:
        return best
    rest = num_blocked + numbers[:, num_blocked:].argmax(dim=-1)
    is_later = numbers.gather(1, rest[:, None]) > numbers.gather(1, best[:, None])
    return torch.where(is_later[:, 0], rest, best)


def largest(numbers: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of each row of [rows, n] with their indices, best first, equal ones by index.

    Which ones of several equal to the last are among them is left open.
    """
    values, ids = _largest(numbers, count)
    if bool((values[:, 1:] == values[:, :-1]).any()):
        ids = ids.sort(dim=-1).values
        values, order = numbers.gather(1, ids).sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(1, order)
    return values, ids


def _largest(numbers: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    num_rows, num_numbers = numbers.shape
    num_blocks = num_numbers // BLOCK
    if numbers.device.type != "cpu" or num_blocks < 2 * count:
        found = numbers.topk(count, dim=-1)
        return found.values, found.indices
    # The `count` largest are in `count` blocks at most, those with the largest best ones.
    blocks = numbers[:, : num_blocks * BLOCK].reshape(-1, BLOCK)
    best_blocks = blocks.view(num_rows, num_blocks, BLOCK).amax(dim=-1).topk(count, dim=-1, sorted=False).indices
    starts = torch.arange(0, num_rows * num_blocks, num_blocks)[:, None]
    pool = blocks.index_select(0, (best_blocks + starts).flatten()).view(num_rows, -1)
    pool = torch.cat([pool, numbers[:, num_blocks * BLOCK :]], dim=1)
    found = pool.topk(count, dim=-1)
    block = best_blocks.gather(1, (found.indices // BLOCK).clamp(max=count - 1))
    in_blocks = block * BLOCK + found.indices % BLOCK
    in_rest = found.indices + (num_blocks - count) * BLOCK
    return found.values, torch.where(found.indices < count * BLOCK, in_blocks, in_rest)


def sorted_values(numbers: torch.Tensor) -> torch.Tensor:
    """Each row of [rows, n] from the largest down; NumPy's sort is several times faster than torch's."""
    if numbers.device.type != "cpu":
        return numbers.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(numbers.numpy(), axis=-1)).flip(-1)
