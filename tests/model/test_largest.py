"""The shortcuts give what torch gives, for any length, with equals, and with infinities."""

import pytest
import torch

from tgi_local.model.largest import argmax, largest, sorted_values

LENGTHS = [1, 2, 63, 64, 65, 127, 128, 129, 640, 4096, 4097, 20_011]


def numbers(length: int, seed: int) -> torch.Tensor:
    """Five rows: all different, many equals, mostly excluded, all the same, and the largest at the very end."""
    rows = torch.randn(5, length, generator=torch.Generator().manual_seed(seed))
    rows[1] = rows[1].mul(2).round()
    rows[2, torch.randperm(length, generator=torch.Generator().manual_seed(seed))[1:]] = float("-inf")
    rows[3] = 1.5
    rows[4, -1] = 100
    return rows


@pytest.mark.parametrize("length", LENGTHS)
def test_argmax(length: int) -> None:
    for seed in range(5):
        assert torch.equal(argmax(numbers(length, seed)), numbers(length, seed).argmax(-1))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("count", [1, 2, 31, 64])
def test_largest(length: int, count: int) -> None:
    count = min(count, length)
    for seed in range(3):
        rows = numbers(length, seed)
        values, ids = largest(rows, count)
        assert torch.equal(values, rows.topk(count).values)
        assert torch.equal(rows.gather(1, ids), values)
        for row_values, row_ids in zip(values.tolist(), ids.tolist(), strict=True):
            assert len(set(row_ids)) == count
            assert sorted(zip(row_values, row_ids, strict=True), key=lambda pair: (-pair[0], pair[1])) == list(
                zip(row_values, row_ids, strict=True)
            )


def test_what_is_not_a_number_is_not_hidden() -> None:
    rows = numbers(4097, 0)
    rows[0, 4000] = rows[1, 4096] = float("nan")
    values, _ = largest(rows, 5)
    assert values[:2].isnan().any(-1).all() and not values[2:].isnan().any()


def test_rows_that_are_part_of_a_larger_tensor() -> None:
    rows = numbers(4097, 1)
    for part in (rows[1:4], rows[:, 100:4000], rows[::2, :4096]):
        assert torch.equal(argmax(part), part.argmax(-1))
        assert torch.equal(largest(part, 20)[0], part.topk(20).values)


def test_sorted_values() -> None:
    rows = numbers(4097, 2)
    assert torch.equal(sorted_values(rows), rows.sort(dim=-1, descending=True).values)
