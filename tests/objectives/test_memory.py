"""Rows remembered of training samples."""

import copy
import gc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.objectives.memory import Memory, mean_by


def test_a_new_memory_holds_zeros():
    assert torch.equal(Memory(4, 3).read(torch.tensor([0, 3])), torch.zeros(2, 3))


def test_what_is_written_is_read():
    memory, (first, second) = Memory(4, 3), torch.rand(2, 3)
    memory.write(torch.tensor([3, 1]), torch.stack([first, second]))
    expected = torch.stack([second, torch.zeros(3), first, second])
    assert torch.equal(memory.read(torch.tensor([1, 2, 3, 1])), expected)


def test_what_is_noted_counts_only_when_it_is_asked_for():
    memory = Memory(4, 2)
    memory.note(torch.tensor([2, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    memory.note(torch.tensor([2]), torch.tensor([[3.0, 0.0]]))
    assert not memory.rows.any()
    index, seen = memory.noted()
    assert index.tolist() == [0, 2]
    assert seen.tolist() == [[3, 4], [2, 1]]
    assert memory.noted()[0].tolist() == []


def test_what_was_forgotten_does_not_count():
    memory = Memory(4, 2)
    memory.note(torch.tensor([2]), torch.ones(1, 2))
    memory.forget()
    assert len(memory.noted()[0]) == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-10, 10)), max_size=12))
@settings(deadline=None, max_examples=60)
def test_the_mean_by_index_is_that_of_a_dictionary(pairs):
    index = torch.tensor([i for i, _ in pairs], dtype=torch.int64)
    values = torch.tensor([[v, -v] for _, v in pairs], dtype=torch.float64).reshape(-1, 2)
    groups = {}
    for i, v in pairs:
        groups.setdefault(i, []).append(v)
    own, means = mean_by(index, values)
    assert own.tolist() == sorted(groups)
    for row, key in zip(means.tolist(), sorted(groups), strict=True):
        mean = sum(groups[key]) / len(groups[key])
        assert row == pytest.approx([mean, -mean])


def test_a_mean_of_one_is_the_number_itself():
    values = torch.rand(50, 7)
    own, means = mean_by(torch.randperm(50), values)
    assert torch.equal(own, torch.arange(50))
    assert {tuple(row) for row in means.tolist()} == {tuple(row) for row in values.tolist()}


@pytest.mark.parametrize(("dtype", "size"), [("float16", 2), ("float32", 4), ("float64", 8)])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_its_size_is_that_of_its_numbers(dtype, size, place):
    memory = Memory(10, 3, dtype, place)
    assert memory.bytes == 30 * size
    assert memory.read(torch.tensor([0])).dtype == torch.promote_types(
        torch.float32, memory.rows.dtype
    )


def test_on_disk_it_is_the_same_and_is_saved_and_leaves_nothing(tmp_path):
    held, kept = Memory(6, 3), Memory(6, 3, place="disk", folder=str(tmp_path))
    index, rows = torch.tensor([4, 0, 5]), torch.rand(3, 3)
    for memory in (held, kept):
        memory.write(index, rows)
    assert torch.equal(held.rows, kept.rows)
    torch.save(kept.state_dict(), tmp_path / "state.pt")
    again = Memory(6, 3, place="disk", folder=str(tmp_path))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(again.rows, held.rows)
    again.write(torch.tensor([0]), torch.ones(1, 3))
    assert torch.equal(kept.rows, held.rows)
    del kept, again
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_on_disk_its_rows_are_pages_of_a_file(tmp_path):
    memory = Memory(1000, 100, place="disk", folder=str(tmp_path))
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not say what is mapped")
    assert f"{tmp_path}/flatminima-memory-" in maps.read_text()
    assert memory.bytes == 400_000


def test_on_disk_it_stays_there_when_its_module_moves():
    memory = Memory(6, 3, place="disk")
    assert memory.to(torch.device("meta")).rows.device.type == "cpu"
    assert memory.double().rows.dtype == torch.float32
    assert Memory(6, 3).to(torch.device("meta")).rows.device.type == "meta"


def test_a_copy_on_its_own_is_another_memory():
    memory = Memory(6, 3, place="disk")
    other = copy.deepcopy(memory)
    other.write(torch.tensor([1]), torch.ones(1, 3))
    assert not memory.rows.any()


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: Memory(0, 3), "num_examples is 0"),
        (lambda: Memory(3, 2.5), "num_classes is 2.5"),
        (lambda: Memory(3, 3, "float8"), "dtype of a memory 'float8'"),
        (lambda: Memory(3, 3, place="dick"), "did you mean 'disk'"),
        (lambda: Memory(3, 3, folder="/tmp"), "set place=disk"),
        (lambda: Memory(3, 3, place="disk", folder="/no/such/place"), "is no folder"),
        (lambda: Memory(10**9, 10**6, place="disk"), "GB free: name another folder"),
        (lambda: Memory(3, 3).read(torch.tensor([3])), "3 samples are remembered"),
        (lambda: Memory(3, 3).read(torch.tensor([-1, 2])), "goes from -1 to 2"),
        (lambda: Memory(3, 3).read(torch.tensor([1.0])), "is torch.float32"),
        (lambda: Memory(3, 3).read(torch.tensor([[1]])), r"shape \(1, 1\)"),
    ],
)
def test_what_cannot_be_is_refused(make_it, words):
    with pytest.raises(InputError, match=words):
        make_it()
