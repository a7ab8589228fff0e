"""A plan's arrays name the same tokens, places and contexts as the plan, and reach the device as they are."""

import numpy as np
import pytest
import torch

from tgi_local.engine.step import StepPlan, StepRow
from tgi_local.model.step_inputs import PlanReader, StepArrays
from tgi_local.model.transfer import ALIGNMENT, Upload, to_device
from tgi_local.types import SamplingParams

CPU = torch.device("cpu")
BLOCK = 4


def make_row(name: str, ids: tuple[int, ...], start: int, table: tuple[int, ...]) -> StepRow:
    return StepRow(name, ids, start, table, True, SamplingParams())


MIXED = StepPlan(
    (
        make_row("chunk", (10, 11, 12), 2, (7, 3)),
        make_row("decode", (20,), 8, (5, 0, 9)),
        make_row("fresh", (30, 31, 32, 33, 34), 0, (1, 2)),
        make_row("first", (40,), 0, (6,)),
    )
)


def read(plan: StepPlan, kept: list[int]) -> StepArrays:
    return PlanReader(BLOCK).read(plan, kept)


def test_rows_with_one_new_token_come_first() -> None:
    arrays = read(MIXED, [])
    assert arrays.num_decodes == 2 and arrays.num_rows == 4 and not arrays.is_decode
    assert arrays.ids.tolist() == [20, 40, 10, 11, 12, 30, 31, 32, 33, 34]
    assert arrays.positions.tolist() == [8, 0, 2, 3, 4, 0, 1, 2, 3, 4]
    assert arrays.slots.tolist() == [36, 24, 30, 31, 12, 4, 5, 6, 7, 8]
    assert arrays.starts.tolist() == [0, 1, 2, 5, 10]
    assert arrays.lens.tolist() == [9, 1, 5, 5]
    assert arrays.context_starts.tolist() == [0, 9, 10, 15, 20]
    assert arrays.table.tolist() == [[5, 0, 9], [6, 6, 6], [7, 3, 7], [1, 2, 1]]


def test_kept_offsets_follow_their_tokens() -> None:
    tokens = [i for row in MIXED.rows for i in row.token_ids]
    kept = [0, 2, 3, 5, 8, 9]
    arrays = read(MIXED, kept)
    assert arrays.ids[arrays.kept].tolist() == [tokens[i] for i in kept]
    assert read(MIXED, []).kept.dtype == np.int64


def test_types_are_those_of_the_kernels() -> None:
    arrays = read(MIXED, [0])
    assert {a.dtype for a in (arrays.ids, arrays.positions, arrays.slots, arrays.kept)} == {np.dtype(np.int64)}
    small = (arrays.starts, arrays.lens, arrays.context_starts, arrays.table)
    assert {a.dtype for a in small} == {np.dtype(np.int32)}


@pytest.mark.parametrize(("kept", "is_decode"), [([0, 1], True), ([0], False), ([], False)])
def test_a_decode_step_wants_the_logits_of_every_row(kept: list[int], is_decode: bool) -> None:
    assert read(StepPlan((MIXED.rows[1], MIXED.rows[3])), kept).is_decode is is_decode


def test_a_block_table_that_changed_is_read_again() -> None:
    reader = PlanReader(BLOCK)
    for table in ((5, 0, 9), (5, 2, 9), (5, 2, 9, 4), (5, 2, 9, 4)):
        arrays = reader.read(StepPlan((make_row("r", (1,), 8, table),)), [0])
        assert tuple(arrays.table[0]) == table
    reader.read(StepPlan((make_row("other", (1,), 0, (3,)),)), [0])
    assert list(reader._tables) == ["other"], "rows that are gone are forgotten"


def arrays_of(*sizes: int) -> list[np.ndarray]:
    types = (np.int64, np.int32)
    return [np.arange(size * 10, size * 11, dtype=types[i % 2]) for i, size in enumerate(sizes)]


def test_arrays_arrive_as_they_are_and_aligned() -> None:
    upload = Upload(CPU)
    for sizes in [(1, 3, 5), (100, 1, 0, 7), (2, 2)]:
        arrays = [*arrays_of(*sizes), np.arange(6, dtype=np.int32).reshape(2, 3)]
        tensors = upload(arrays)
        for array, tensor in zip(arrays, tensors, strict=True):
            assert np.array_equal(tensor.numpy(), array) and tensor.numpy().dtype == array.dtype
            assert tensor.data_ptr() % ALIGNMENT == 0
    assert np.array_equal(tensors[0].numpy(), arrays[0]), "memory of its own, unless a target was given"


def test_a_target_is_filled_from_its_beginning() -> None:
    target = torch.full((256,), 255, dtype=torch.uint8)
    upload = Upload(CPU)
    first, second = upload(arrays_of(3, 3), target)
    assert first.data_ptr() == target.data_ptr() and second.data_ptr() == target.data_ptr() + 32
    assert (target[48:] == 255).all()
    earlier = first.clone()
    upload([earlier.numpy() + 1], target)
    assert torch.equal(first, earlier + 1), "the same memory"


def test_a_few_numbers() -> None:
    assert torch.equal(to_device([1, 2], CPU, torch.long), torch.tensor([1, 2]))
    assert to_device([0.5], CPU, torch.float32).dtype is torch.float32
    assert to_device(np.array([0.1]), CPU).dtype is torch.float64
