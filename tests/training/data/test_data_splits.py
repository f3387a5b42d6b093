from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.training.data.label_noise import add_label_noise
from flatminima.training.data.splits import by_count, cut, subsample
from flatminima.training.data.streams import stream

labels = st.lists(st.integers(2, 30), min_size=2, max_size=6).map(
    lambda counts: np.repeat(np.arange(len(counts)), counts)
)
NAMES = tuple("abcdef")


def counts(targets: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(targets, minlength=classes)


@settings(max_examples=60, deadline=None)
@given(targets=labels, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_cut_is_disjoint_complete_stratified_and_seeded(
    targets: np.ndarray, fraction: float, seed: int
) -> None:
    rest, part = cut(targets, fraction, NAMES, stream(seed, "test"))
    assert np.array_equal(np.sort(np.concatenate([rest, part])), np.arange(len(targets)))
    classes = len(np.unique(targets))
    of_all, of_part = counts(targets, classes), counts(targets[part], classes)
    assert (of_part >= 1).all()
    assert (of_all - of_part >= 1).all()
    wanted = np.clip(round(fraction * len(targets)), classes, len(targets) - classes)
    assert len(part) == wanted
    again = cut(targets, fraction, NAMES, stream(seed, "test"))
    assert np.array_equal(again[1], part)


@settings(max_examples=60, deadline=None)
@given(targets=labels, share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_subsample_takes_exactly_the_size_in_proportion(
    targets: np.ndarray, share: float, seed: int
) -> None:
    classes = len(np.unique(targets))
    size = round(classes + share * (len(targets) - classes))
    chosen = subsample(targets, size, NAMES, stream(seed, "train_size"))
    assert len(chosen) == size == len(np.unique(chosen))
    taken = counts(targets[chosen], classes)
    assert (taken >= 1).all()
    quota = counts(targets, classes) * size / len(targets)
    # One example per class comes first; without that, each class is within one of its quota.
    if (quota >= 1).all():
        assert (np.abs(taken - quota) < 1).all()


def test_an_exact_share_is_met_exactly() -> None:
    targets = np.repeat([0, 1, 2], [50, 30, 20])
    _, part = cut(targets, 0.2, NAMES, stream(0, "test"))
    assert counts(targets[part], 3).tolist() == [10, 6, 4]


def test_seeds_and_purposes_give_different_choices() -> None:
    targets = np.repeat([0, 1], 50)
    one, other, third = (
        cut(targets, 0.5, NAMES, stream(seed, purpose))[1].tolist()
        for seed, purpose in ((0, "test"), (1, "test"), (0, "validation"))
    )
    assert one != other
    assert one != third


def test_a_class_too_small_to_split() -> None:
    with pytest.raises(InputError, match=r"class 'b' has too few samples \(1\) to be split"):
        cut(np.array([0, 0, 0, 1]), 0.2, NAMES, stream(0, "test"))


def test_train_sizes_that_cannot_be() -> None:
    targets = np.array([0, 0, 1, 1, 2])
    with pytest.raises(InputError, match=r"train_size is 6, but there are only 5 .*--train-size"):
        subsample(targets, 6, NAMES, stream(0, "s"))
    with pytest.raises(InputError, match="train_size is 2, but there are 3 classes"):
        subsample(targets, 2, NAMES, stream(0, "s"))


@pytest.mark.parametrize("seed", [-1, 0.5, True, "0"])
def test_a_wrong_seed(seed: object) -> None:
    with pytest.raises(InputError, match=r"seed is .*whole number of at least 0 \(--seed\)"):
        stream(seed, "s")  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 200),
    percent=st.integers(0, 100),
    classes=st.integers(2, 12),
    seed=st.integers(0, 1000),
)
def test_label_noise_redraws_the_floor_and_reports_what_changed(
    n: int, percent: int, classes: int, seed: int
) -> None:
    targets = stream(seed, "targets").integers(classes, size=n)
    before = targets.copy()
    noisy, report = add_label_noise(targets, percent / 100, classes, stream(seed, "noise"))
    assert np.array_equal(targets, before)
    assert noisy.dtype == np.int64
    assert ((noisy >= 0) & (noisy < classes)).all()
    assert report["redrawn"] == percent * n // 100
    assert report["changed"] == int((noisy != targets).sum()) <= report["redrawn"]
    assert report["true_rate"] == pytest.approx(report["changed"] / max(n, 1))
    again, _ = add_label_noise(targets, percent / 100, classes, stream(seed, "noise"))
    assert np.array_equal(noisy, again)


def test_the_true_rate_is_near_its_expectation() -> None:
    targets = np.repeat(np.arange(10), 2000)
    noisy, report = add_label_noise(targets, 0.4, 10, stream(0, "noise"))
    # 8000 draws that change with probability 0.9: one standard deviation is 0.0013 of the labels.
    assert report["true_rate"] == pytest.approx(0.4 * 9 / 10, abs=0.006)
    new = noisy[noisy != targets]
    assert np.bincount(new, minlength=10) / len(new) == pytest.approx(np.full(10, 0.1), abs=0.02)


@settings(max_examples=40, deadline=None)
@given(targets=labels, seed=st.integers(0, 2**32))
def test_parts_by_count_are_disjoint_and_hold_the_same_number_of_every_class(
    targets: np.ndarray, seed: int
) -> None:
    classes = len(np.unique(targets))
    least = counts(targets, classes).min()
    wanted = (int(least) - 1, 0, 1)
    parts = by_count(targets, wanted, NAMES[:classes], stream(seed, "test"))
    everything = np.concatenate(parts)
    assert len(np.unique(everything)) == len(everything) == classes * least
    for part, count in zip(parts, wanted, strict=True):
        assert counts(targets[part], classes).tolist() == [count] * classes


def test_a_class_with_too_few_examples_for_the_counts_is_named() -> None:
    targets = np.repeat([0, 1], [70, 69])
    with pytest.raises(InputError, match="class 'b' has 69 examples, and 30/20/20"):
        by_count(targets, (30, 20, 20), ("a", "b"), stream(0, "test"))
