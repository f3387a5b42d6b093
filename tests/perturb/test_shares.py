from collections import OrderedDict, namedtuple
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.perturb.shares import bounds, cut, sample_count

Pair = namedtuple("Pair", ["x", "y"])
x, y = torch.arange(10).view(5, 2), torch.arange(5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 200), st.integers(1, 20))
def test_shares_cover_the_batch_in_nearly_equal_parts(samples, parts):
    cuts = [bounds((part, parts), samples) for part in range(parts)]
    assert cuts[0][0] == 0
    assert cuts[-1][1] == samples
    assert all(a[1] == b[0] for a, b in pairwise(cuts))
    sizes = [stop - start for start, stop in cuts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("batch", [x, (x, y), [x, y], {"x": x}, {"a": {"b": [x]}}, Pair(x, y)])
def test_samples_are_counted_in_any_nesting(batch):
    assert sample_count(batch) == 5


@pytest.mark.parametrize("batch", ["text", 3, None, torch.tensor(1.0), (), {}, [torch.tensor(1.0)]])
def test_a_batch_without_samples_is_refused(batch):
    with pytest.raises(InputError, match=f"cannot cut a {type(batch).__name__}"):
        sample_count(batch)


def test_structure_is_kept_and_what_holds_no_samples_stays_whole():
    table = torch.ones(3)
    batch = (x, OrderedDict(y=y, scale=torch.tensor(2.0), table=table), [y], None, "name", 7)
    first, second, third, *rest = cut(batch, 1, 3, 5)
    assert torch.equal(first, x[1:3])
    assert torch.equal(second["y"], y[1:3])
    assert second["scale"] == 2
    assert second["table"] is table
    assert torch.equal(third[0], y[1:3])
    assert rest == [None, "name", 7]


def test_named_tuples_stay_named():
    part = cut(Pair(x, y), 0, 2, 5)
    assert isinstance(part, Pair)
    assert torch.equal(part.y, y[:2])


def test_lists_of_one_entry_a_sample_are_cut():
    names = ["a", "b", "c", "d", "e"]
    boxes = [{"boxes": torch.ones(n, 4)} for n in (1, 5, 2, 0, 3)]
    _, names_, boxes_ = cut((x, names, boxes), 1, 3, 5)
    assert names_ == ["b", "c"]
    assert [len(entry["boxes"]) for entry in boxes_] == [5, 2]


def test_a_list_of_two_batches_of_two_is_not_a_list_of_samples():
    first, second = cut([x[:2], y[:2]], 0, 1, 2)
    assert first.shape == (1, 2)
    assert second.shape == (1,)
