"""Pictures say what they show, leave gaps where there is nothing, and share a scale."""

import dataclasses

import numpy as np
import pytest

from flatminima.errors import InputError
from flatminima.landscape import (
    around,
    compare_plot,
    loss_slice,
    random_directions,
    through,
    trajectory_directions,
)
from measure.cases import cnn, cross_entropy, mlp

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _closed():
    yield
    matplotlib.pyplot.close("all")


def plane(seed=0, **settings):
    model, batch = mlp()
    frame = around(random_directions(model, 2, seed=seed))
    return loss_slice(model, cross_entropy, [batch], frame, points=9, **settings)


def words(figure):
    return " ".join(figure.get_supxlabel().split())


def test_the_caption_stands_below_the_picture():
    figure = plane().plot().figure
    assert words(figure) == (
        "centre the model's weights; along random, seed 0 and random, seed 1; "
        "normalization filter, biases and norm layers ignored; 24 samples"
    )


@pytest.mark.parametrize("kind", ["contour", "surface"])
def test_points_that_are_not_finite_are_gaps(tmp_path, kind):
    found = plane()
    loss = found.loss.copy()
    loss[:3, :3] = np.nan
    broken = dataclasses.replace(found, loss=loss)
    ax = broken.plot(kind=kind)
    assert "9 of 81 points not finite (gaps)" in words(ax.figure)
    ax.figure.savefig(tmp_path / "broken.png")
    if kind == "contour":
        filled = [p for c in ax.collections for path in c.get_paths() for p in path.vertices]
        corner = [p for p in filled if p[0] < -0.6 and p[1] < -0.6]
        assert not corner, "nothing is drawn in the gap"
        ax = found.plot()
        filled = [p for c in ax.collections for path in c.get_paths() for p in path.vertices]
        assert [p for p in filled if p[0] < -0.6 and p[1] < -0.6]


def test_several_slices_share_one_scale_and_what_their_captions_have_in_common():
    one, two = plane(), plane()
    two = dataclasses.replace(two, loss=3 * two.loss, centre="another run")
    figure = compare_plot({"one": one, "two": two})
    first, second, _ = figure.axes
    assert [first.get_title(), second.get_title()] == ["one", "two"]
    assert first.collections[0].norm.vmax == second.collections[0].norm.vmax == two.loss.max()
    assert first.collections[0].norm.vmin == one.loss.min()
    text = words(figure)
    assert text.count("24 samples") == 1
    assert text.endswith("one: centre the model's weights two: centre another run")


def test_lines_are_drawn_over_each_other_with_their_accuracy():
    model, batch = mlp()
    lines = {
        f"seed {seed}": loss_slice(
            model, cross_entropy, [batch], around(random_directions(model, 1, seed=seed)), points=7
        )
        for seed in (0, 1)
    }
    figure = compare_plot(lines)
    losses, accuracies = figure.axes
    assert len(losses.lines) == len(accuracies.lines) == 2
    assert accuracies.get_ylabel() == "accuracy (dashed)"
    with pytest.raises(InputError, match="lines and planes cannot be drawn on one scale"):
        compare_plot({**lines, "plane": plane()})


def test_a_plane_through_checkpoints_shows_true_distances():
    (model, batch), (other, _), (third, _) = cnn(), cnn(), cnn()
    for i, each in enumerate((other, third), 1):
        for p in each.parameters():
            p.data += 0.1 * i * p.data.sign()
    states = {n: m.state_dict() for n, m in zip("abc", (model, other, third), strict=True)}
    with pytest.raises(InputError, match="lie on one line"):
        through(model, states)
    next(iter(third.parameters())).data += 1
    found = loss_slice(model, cross_entropy, [batch], through(model, states), points=5)
    ax = found.plot()
    named = {text.get_text(): text.xy for text in ax.texts}
    assert set(named) == {"a", "b", "c"}
    apart = {
        pair: sum(
            (states[pair[0]][n] - states[pair[1]][n]).square().sum().item()
            for n in states["a"]
            if states["a"][n].is_floating_point()
        )
        ** 0.5
        for pair in ("ab", "ac", "bc")
    }
    for (p, q), distance in apart.items():
        assert np.hypot(*np.subtract(named[p], named[q])) == pytest.approx(distance)


def test_the_path_of_a_run_is_drawn():
    model, batch = mlp()
    one, two = random_directions(model, 2, normalization="unit")
    states = [
        {n: p + a * one.parts.get(n, 0) + b * two.parts.get(n, 0) for n, p in named}
        for named in [dict(model.named_parameters()).items()]
        for a, b in ((3.0, 0.0), (2.0, 1.0))
    ]
    found = trajectory_directions(model, states)
    frame = around(found.directions)
    ax = loss_slice(model, cross_entropy, [batch], frame, points=5, path=found.path).plot()
    drawn = next(line for line in ax.lines if line.get_label() == "the run")
    assert np.allclose(drawn.get_xydata(), found.path)


def test_bad_pictures_are_refused():
    with pytest.raises(InputError, match="unknown kind of picture 'heat'"):
        plane().plot(kind="heat")
    with pytest.raises(InputError, match="there is no landscape to draw"):
        compare_plot({})
