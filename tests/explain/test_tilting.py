"""Boundary tilting against closed forms, on arrays."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.explain import (
    class_means,
    mirror,
    nearest_centroid,
    projected,
    signed_distance,
    tilt,
    tilt_pairs,
    tilt_report,
    tilting_plane,
)


def cloud(seed=0, d=5, n=40, gap=3.0, ours=None):
    """Two clouds of d dimensions, n samples of I and as many, or `ours`, of J."""
    generator = np.random.default_rng(seed)
    ours = n if ours is None else ours
    X = generator.normal(size=(n + ours, d))
    X[n:, 0] += gap
    w = generator.normal(size=d) + 2 * np.eye(d)[0]
    return X, np.repeat([0, 1], [n, ours]), w, float(generator.normal())


def test_weights_and_samples_may_be_tensors():
    X, y, w, b = cloud()
    weight, bias, samples, labels = (torch.as_tensor(np.asarray(one)) for one in (w, b, X, y))
    bias.requires_grad_()
    ours, theirs = tilt_report(weight, bias, samples, labels), tilt_report(w, b, X, y)
    for name in ("deviation_angle", "adversarial_distance", "error_distance", "accuracy"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-13)
    for read in (signed_distance, projected, mirror):
        np.testing.assert_allclose(read(samples, weight, bias), read(X, w, b), atol=1e-13)
    for turned, expected in zip(
        tilt(weight, bias, samples[0], 0.3), tilt(w, b, X[0], 0.3), strict=True
    ):
        np.testing.assert_allclose(turned, expected, atol=1e-13)
    plane = tilting_plane(weight, bias, samples, labels)
    assert plane.offset == pytest.approx(tilting_plane(w, b, X, y).offset, abs=1e-13)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 999), d=st.integers(1, 7), n=st.integers(2, 9), ours=st.integers(2, 9))
def test_the_adversarial_distance_is_half_the_separation_times_the_cosine(seed, d, n, ours):
    X, y, w, b = cloud(seed, d, n, ours=ours)
    found = tilt_report(w, b, X, y)
    expected = found.separation / 2 * math.cos(found.deviation_angle)
    assert found.adversarial_distance == pytest.approx(expected, abs=1e-12)
    if expected > 0.1:
        ratio = found.separation / 2 / found.adversarial_distance
        assert found.strength == pytest.approx(ratio, rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3), shift=st.floats(-50, 50))
def test_angle_strength_and_distance_know_neither_the_scale_of_w_nor_b(seed, scale, shift):
    X, y, w, b = cloud(seed)
    one, other = tilt_report(w, b, X, y), tilt_report(scale * w, b + shift, X, y)
    assert other.deviation_angle == pytest.approx(one.deviation_angle, abs=1e-12)
    assert other.strength == pytest.approx(one.strength, rel=1e-9)
    assert other.adversarial_distance == pytest.approx(one.adversarial_distance, abs=1e-11)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), d=st.integers(1, 7))
def test_mirror_images_are_classified_oppositely_and_mirrored_twice_come_back(seed, d):
    X, _, w, b = cloud(seed, d)
    away = mirror(X, w, b)
    np.testing.assert_allclose(away @ w + b, -(X @ w + b), atol=1e-11)
    moved = np.linalg.norm(away - X, axis=1)
    np.testing.assert_allclose(moved, 2 * np.abs(signed_distance(X, w, b)), atol=1e-11)
    np.testing.assert_allclose(mirror(away, w, b), X, atol=1e-11)
    np.testing.assert_allclose(projected(X, w, b), (X + away) / 2, atol=1e-11)
    np.testing.assert_allclose(projected(X, w, b) @ w + b, 0, atol=1e-11)


def test_nearest_centroids_are_not_tilted():
    X, y, *_ = cloud()
    w, b = nearest_centroid(X, y)
    found = tilt_report(w, b, X, y)
    assert found.deviation_angle == pytest.approx(0, abs=1e-12)
    assert found.strength == pytest.approx(1)
    assert found.accuracy == found.nearest_centroid_accuracy
    i, j = X[y == 0].mean(0), X[y == 1].mean(0)
    nearer = np.linalg.norm(X - j, axis=1) < np.linalg.norm(X - i, axis=1)
    assert found.accuracy == np.mean(nearer == y)


def test_small_angles_keep_their_digits():
    X, y, *_ = cloud(d=2)
    z = np.diff([X[y == 0].mean(0), X[y == 1].mean(0)], axis=0)[0]
    z = z / np.linalg.norm(z)
    w = z + 1e-9 * np.array([-z[1], z[0]])
    assert tilt_report(w, 0.0, X, y).deviation_angle == pytest.approx(1e-9, rel=1e-5)


def test_a_plain_example_by_hand():
    X = np.array([[-1.0, 0], [-1, 2], [1, 0], [1, 2], [3, -6]])
    found = tilt_report([1.0, 1.0], -1.0, X, ["a", "a", "b", "b", "b"])
    away = np.array([-2, 0, 0, 2, -4]) / math.sqrt(2)
    assert found.classes == ("a", "b")
    assert found.accuracy == pytest.approx(2 / 5), "on the boundary is not right"
    assert found.error_distance == pytest.approx(4 / math.sqrt(2) / 5)
    assert found.median_distance == pytest.approx(2 / math.sqrt(2))
    gap = np.array([5 / 3 + 1, -4 / 3 - 1])
    assert found.separation == pytest.approx(np.linalg.norm(gap))
    expected = (away[2:].mean() - away[:2].mean()) / 2
    assert found.adversarial_distance == pytest.approx(expected)
    assert found.weight_norm == pytest.approx(math.sqrt(2))
    assert "tilted by" in str(found)


def test_a_boundary_that_points_away_has_infinite_strength():
    X, y, *_ = cloud()
    w, b = nearest_centroid(X, y)
    found = tilt_report(-w, -b, X, y)
    assert found.degrees == pytest.approx(180)
    assert found.strength == math.inf
    assert json.loads(json.dumps(found.to_dict()))["strength"] is None


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), phi=st.floats(0, 1.55), c=st.floats(-5, 5))
def test_tilting_along_a_direction_without_variance_changes_no_decision(seed, phi, c):
    X, y, w, b = cloud(seed)
    v = np.random.default_rng(seed + 1).normal(size=len(w))
    v = v - (v @ w) / (w @ w) * w
    v = v / np.linalg.norm(v)
    X = X - np.outer(X @ v - c, v)
    turned, moved = tilt(w, b, v, phi, c)
    before, after = signed_distance(X, w, b), signed_distance(X, turned, moved)
    np.testing.assert_allclose(after, math.cos(phi) * before, atol=1e-11)
    assert np.linalg.norm(turned) == pytest.approx(1)
    one, other = tilt_report(w, b, X, y), tilt_report(turned, moved, X, y)
    clear = np.abs(before) > 1e-6
    assert np.array_equal(np.sign(after[clear]), np.sign(before[clear]))
    if one.deviation_angle < 1.5 and phi < 1.5:
        assert other.strength == pytest.approx(one.strength / math.cos(phi), rel=1e-6)


def test_a_direction_that_leans_on_w_is_taken_without_that_part():
    *_, w, b = cloud()
    v = np.roll(w, 1)
    one, other = tilt(w, b, v, 0.4), tilt(w, b, v + 3 * w, 0.4)
    np.testing.assert_allclose(one[0], other[0])
    assert math.acos(one[0] @ w / np.linalg.norm(w)) == pytest.approx(0.4)
    with pytest.raises(InputError, match="parallel"):
        tilt(w, b, 2 * w, 0.4)


def test_centroids_may_be_those_of_other_samples():
    X, y, w, b = cloud(0)
    test, labels, *_ = cloud(1)
    means = X[y == 0].mean(0), X[y == 1].mean(0)
    found = tilt_report(w, b, test, labels, centroids=means)
    assert found.deviation_angle == tilt_report(w, b, X, y).deviation_angle
    assert found.accuracy == tilt_report(w, b, test, labels).accuracy
    with pytest.raises(InputError, match="centroids"):
        tilt_report(w, b, test, labels, centroids=(means[0], means[1][:2]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), d=st.integers(2, 7))
def test_distances_in_the_tilting_plane_are_those_of_the_inputs(seed, d):
    X, y, w, b = cloud(seed, d)
    plane = tilting_plane(w, b, X, y)
    assert np.hypot(*plane.normal) == pytest.approx(1)
    assert math.cos(plane.report.deviation_angle) == pytest.approx(plane.normal[0])
    np.testing.assert_allclose(
        plane.points @ plane.normal + plane.offset, signed_distance(X, w, b), atol=1e-10
    )
    i, j = plane.points[plane.labels == 0].mean(0), plane.points[plane.labels == 1].mean(0)
    np.testing.assert_allclose(j - i, [plane.report.separation, 0], atol=1e-9)


@pytest.mark.parametrize("d", [1, 4])
def test_without_a_tilt_there_is_a_plane_too_and_it_is_drawn(d):
    pytest.importorskip("matplotlib")
    import matplotlib

    matplotlib.use("agg")
    X, y, *_ = cloud(d=d)
    plane = tilting_plane(*nearest_centroid(X, y), X, y)
    assert plane.normal == pytest.approx((1, 0))
    ax = plane.plot()
    assert "0 degrees" in ax.get_title()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["0 and its mean", "1 and its mean", "boundary", "nearest centroid"]


def test_the_drawn_boundary_is_where_the_score_is_0():
    pytest.importorskip("matplotlib")
    import matplotlib

    matplotlib.use("agg")
    X, y, w, b = cloud()
    plane = tilting_plane(w, b, X, y)
    line = next(line for line in plane.plot().lines if line.get_label() == "boundary")
    points = np.stack(line.get_data(), axis=1)
    np.testing.assert_allclose(points @ plane.normal + plane.offset, 0, atol=1e-9)


def test_a_strength_without_a_number_is_said_in_words():
    pytest.importorskip("matplotlib")
    import matplotlib

    matplotlib.use("agg")
    X, y, _, b = cloud()
    away = -nearest_centroid(X, y)[0]
    report = tilt_report(away, b, X, y)
    assert "strength infinite" in str(report)
    assert report.to_dict()["strength"] is None
    assert "strength infinite" in tilting_plane(away, b, X, y).plot().get_title()
    assert "infinite (median)" in str(tilt_pairs(np.stack([0 * away, away]), [0, b], X, y, [0, 1]))


def test_pairs_of_many_classes_are_the_reports_of_two():
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(60, 4)), np.repeat(["a", "b", "c"], 20)
    X += np.repeat(np.eye(4)[:3] * 2, 20, axis=0)
    W, b = generator.normal(size=(3, 4)), generator.normal(size=3)
    found = tilt_pairs(W, b, X, y, ["a", "b", "c"])
    assert list(found.pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    here = y != "b"
    expected = tilt_report(W[2] - W[0], b[2] - b[0], X[here], y[here])
    assert found.pairs["a", "c"] == expected
    assert found.accuracy == np.mean(np.array(["a", "b", "c"])[(X @ W.T + b).argmax(1)] == y)
    degrees = [one.degrees for one in found.pairs.values()]
    assert found.mean_degrees == pytest.approx(np.mean(degrees))
    cosines = [math.cos(one.deviation_angle) for one in found.pairs.values()]
    assert found.mean_distance == pytest.approx(np.mean(cosines))
    assert found.pairs[found.most_tilted()[0]].degrees == max(degrees)
    assert len(json.loads(json.dumps(found.to_dict()))["pairs"]) == 3
    assert "linear classifier: tilted by" in str(found)
    means = class_means(X, y)
    again = tilt_pairs(W, b, X, y, ["a", "b", "c"], centroids=means)
    assert again.mean_degrees == pytest.approx(found.mean_degrees)


def test_a_class_without_samples_has_no_pairs():
    X, y, w, b = cloud()
    W = np.stack([0 * w, w, 2 * w])
    found = tilt_pairs(W, np.array([0, b, 0]), X, y, [0, 1, 2])
    assert list(found.pairs) == [(0, 1)]


def test_the_matrix_of_angles_is_drawn():
    pytest.importorskip("matplotlib")
    import matplotlib

    matplotlib.use("agg")
    X, y, w, b = cloud()
    names = np.array(["cat", "dog"])[y]
    found = tilt_pairs(np.stack([0 * w, w]), np.array([0, b]), X, names, ["cat", "dog"])
    ax = found.plot()
    assert [text.get_text() for text in ax.get_xticklabels()] == ["cat", "dog"]
    assert ax.images[0].get_array()[0, 1] == pytest.approx(found.mean_degrees)


def test_what_has_no_angle_is_refused():
    X, y, w, b = cloud()
    for arguments, words in (
        ((w, b, X, 0 * y), "a single class"),
        ((w, b, X, np.arange(len(y)) % 3), "3 classes"),
        ((w, b, X, y[:-1]), "for 80 samples"),
        ((w[:-1], b, X, y), "give"),
        ((w, b, X[0], y), "give"),
        ((0 * w, b, X, y), "w is 0"),
        ((w, math.nan, X, y), "not finite"),
        (("w", b, X, y), "w is 'w'"),
        ((w, "b", X, y), "b is 'b'"),
        ((w, [b], X, y), "give one number"),
        ((w, b, "X", y), "the samples is 'X'"),
        ((w, b, X * np.nan, y), "not finite"),
        ((w, b, np.concatenate([X[:40], X[:40]]), y), "means of the two classes are equal"),
    ):
        with pytest.raises(InputError, match=words):
            tilt_report(*arguments)
    for centroids in (5, (w,), "ab", (w, "b")):
        with pytest.raises(InputError, match="centroids"):
            tilt_report(w, b, X, y, centroids=centroids)
    for direction, phi in (("v", 0.1), (w[::-1], "a"), (w[::-1], math.inf)):
        with pytest.raises(InputError, match=r"give|array of numbers"):
            tilt(w, b, direction, phi)
    for call in (lambda: nearest_centroid(X[0], y), lambda: class_means(X, y[:3])):
        with pytest.raises(InputError, match=r"give \(n, d\)"):
            call()
    W = np.stack([0 * w, w])
    with pytest.raises(InputError, match="classes is 5"):
        tilt_pairs(W, np.zeros(2), X, y, 5)
    with pytest.raises(InputError, match="single class"):
        tilt_pairs(W, np.zeros(2), X, 0 * y, [0, 1])
    with pytest.raises(InputError, match="no score"):
        tilt_pairs(W, np.zeros(2), X, y + 1, [0, 1])
    with pytest.raises(InputError, match="a row for each class"):
        tilt_pairs(W, np.zeros(3), X, y, [0, 1])
    with pytest.raises(InputError, match="the samples have the shape"):
        tilt_pairs(W, np.zeros(2), X[:, :2], y, [0, 1])
