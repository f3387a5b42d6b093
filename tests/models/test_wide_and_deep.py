"""Kernels of wide and deep networks against quadrature, limits and networks written out."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.hermite_e import hermegauss
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_estimator

from flatminima import (
    DeepKernelClassifier,
    DualActivation,
    HilbertKernelClassifier,
    limiting_classifier,
    optimal_activation,
)
from flatminima.errors import InputError
from flatminima.models.wide_and_deep.chunks import Chunks, intrinsic_dimension, nearest_two
from flatminima.models.wide_and_deep.kernels import log_kernel, log_singular, sufficient_depth
from flatminima.progress import silent

ROOT2 = math.sqrt(2)
SMOOTH = {
    "cubic": (lambda x: x / ROOT2 + (x**3 - 3 * x) / math.sqrt(12), optimal_activation(2)),
    "sine": (
        lambda x: torch.sin(x) / math.sqrt((1 - math.exp(-2)) / 2),
        DualActivation.sine(1.0),
    ),
    "erf": (
        lambda x: torch.erf(x) / math.sqrt(2 / math.pi * math.asin(2 / 3)),
        DualActivation.erf(),
    ),
}
ALL = {**{name: dual for name, (_, dual) in SMOOTH.items()}, "relu": DualActivation.relu()}


def grid():
    return torch.linspace(0, 1, 41, dtype=torch.float64)


def by_quadrature(phi, t):
    """E[phi(u) phi(v)], with v = t u + sqrt(1 - t^2) w."""
    nodes, weights = (torch.tensor(part) for part in hermegauss(150))
    weights = weights / weights.sum()
    u, w = nodes[:, None], nodes[None]
    values = phi(u) * phi(t * u + math.sqrt(1 - t * t) * w)
    return (weights[:, None] * weights[None] * values).sum().item()


def circle(n, seed=0):
    """Two classes on a quarter of the circle."""
    random = np.random.RandomState(seed)
    y = (random.uniform(size=n) < 0.4).astype(int)
    draws = random.dirichlet([1, 2], size=n), random.dirichlet([2, 1], size=n)
    X = np.where(y[:, None] == 1, *draws)
    return X / np.linalg.norm(X, axis=1, keepdims=True), y


def plain(T, dual, depth, kind):
    """The recursion as it is written down, on t."""
    S, K = T, T
    for _ in range(depth):
        after = dual(S)
        K = after + K * dual.derivative(S)
        S = after
    return S if kind == "nngp" else K


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("t", [-0.7, 0.0, 0.3, 0.9, 1.0])
def test_the_dual_is_an_expectation(name, t):
    phi, dual = SMOOTH[name]
    found = dual(torch.tensor(t, dtype=torch.float64)).item()
    assert found == pytest.approx(by_quadrature(phi, t), abs=1e-13)


@pytest.mark.parametrize("name", SMOOTH)
def test_a_function_gives_its_own_dual(name):
    phi, dual = SMOOTH[name]
    found = DualActivation.from_function(lambda x: 3 * phi(x))
    torch.testing.assert_close(found(grid()), dual(grid()), atol=1e-12, rtol=0)
    assert found.slope_at_one == pytest.approx(dual.slope_at_one, rel=1e-10)
    assert found.missing < 1e-12


def test_duals_have_their_closed_forms():
    t = grid()
    for a in (0.5, 2.676, 13.8258, 150.0):
        wanted = torch.sinh(a * t) / math.sinh(a)
        torch.testing.assert_close(DualActivation.sine(a)(t), wanted, atol=1e-13, rtol=1e-11)
    wanted = torch.asin(2 * t / 3) / math.asin(2 / 3)
    torch.testing.assert_close(DualActivation.erf()(t), wanted, atol=1e-14, rtol=0)
    torch.testing.assert_close(optimal_activation(1)(t), (t**7 + t) / 2, atol=1e-15, rtol=0)
    d4 = optimal_activation(4)(t)
    torch.testing.assert_close(d4, t**3 / 4 + t**2 / 2 + t / 4, atol=1e-15, rtol=0)


def test_the_closed_form_of_relu_is_its_series_and_its_function():
    dual, t = DualActivation.relu(), 0.8 * grid()
    series = sum(square * t**k for k, square in enumerate(dual.squares))
    torch.testing.assert_close(dual(t), series, atol=1e-8, rtol=0)
    found = DualActivation.from_function(torch.relu)
    np.testing.assert_allclose(found.squares[:20], dual.squares[:20], atol=3e-4)
    assert found.slope_at_one == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_the_derivative_is_that_of_autograd(name):
    t = (0.02 + 0.96 * grid()).requires_grad_()
    (wanted,) = torch.autograd.grad(sum(s * t**k for k, s in enumerate(ALL[name].squares)).sum(), t)
    tolerance = 2e-3 if name == "relu" else 1e-12
    found = ALL[name].derivative(t.detach())
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


@given(
    st.lists(st.floats(-2, 2), min_size=2, max_size=8).filter(lambda c: sum(x * x for x in c) > 1)
)
@settings(max_examples=30, deadline=None)
def test_any_hermite_sum_has_a_dual_of_its_squares(coefficients):
    dual = DualActivation.from_hermite(coefficients)
    total = sum(c * c for c in coefficients)
    t = grid()
    wanted = sum(c * c / total * t**k for k, c in enumerate(coefficients))
    torch.testing.assert_close(dual(t), wanted, atol=1e-13, rtol=0)
    torch.testing.assert_close(dual.log_dual(t.log()).exp(), dual(t), atol=1e-12, rtol=0)
    slopes = dual.log_derivative(t.log()).exp()
    torch.testing.assert_close(slopes, dual.derivative(t), atol=1e-11, rtol=0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
@pytest.mark.parametrize("depth", [1, 2, 9])
def test_the_kernel_in_logarithms_is_the_plain_recursion(name, kind, depth):
    t = grid()
    wanted = plain(t, ALL[name], depth, kind)
    wanted = wanted / plain(torch.ones(1, dtype=torch.float64), ALL[name], depth, kind)
    found = log_kernel(1 - t, ALL[name], depth, kind).exp()
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)


def test_the_diagonal_of_the_ntk_is_a_sum_of_powers_of_b():
    one = torch.ones(1, dtype=torch.float64)
    assert plain(one, optimal_activation(2), 10, "ntk").item() == pytest.approx(2047)
    # Divided by it, the kernel at t = 0 of an activation with a constant tells what it was.
    dual = DualActivation.from_hermite([1, 1])
    assert log_kernel(one, dual, 1, "ntk").exp().item() == pytest.approx(0.5 / 1.5)


@pytest.mark.parametrize(("depth", "wanted"), [(10, 0.343), (100, 0.275), (1000, 0.2535)])
def test_relu_forgets_all_but_a_quarter(depth, wanted):
    gap = torch.tensor([0.7], dtype=torch.float64)
    found = log_kernel(gap, DualActivation.relu(), depth, "ntk").exp().item()
    assert found == pytest.approx(wanted, abs=5e-4)


@pytest.mark.parametrize(
    ("dual", "alpha", "constant"),
    [
        (optimal_activation(1), 1, 0.718),
        (optimal_activation(2), 2, 1.2103),
        (DualActivation.sine(2.676), 2, 1.243),
    ],
    ids=["d=1", "d=2", "sine"],
)
def test_the_singular_kernel_grows_like_a_power_of_the_distance(dual, alpha, constant):
    gaps = torch.logspace(-20, -4, 9, dtype=torch.float64)
    found = (log_singular(gaps, dual) + alpha / 2 * (2 * gaps).log()).exp()
    torch.testing.assert_close(found, torch.full_like(gaps, constant), rtol=2e-3, atol=0)


def test_the_singular_kernel_is_the_limit_of_the_deep_one():
    dual = optimal_activation(2)
    gaps = torch.tensor([0.0, 1e-6, 0.1, 0.6, 1.0], dtype=torch.float64)
    found = log_singular(gaps, dual)
    deep = log_kernel(gaps, dual, 80, "nngp") - 80 * math.log(dual.slope_at_zero)
    assert found[0] == math.inf
    assert found[4] == -math.inf == deep[4]
    torch.testing.assert_close(found[1:4], deep[1:4], atol=1e-10, rtol=0)


def test_near_inputs_are_told_apart_where_rounding_would_not():
    dual, gap = optimal_activation(2), 1e-25
    found = log_kernel(torch.tensor([gap], dtype=torch.float64), dual, 30, "nngp").item()
    assert found == pytest.approx(-gap * 2**30, rel=1e-6)
    alike = log_kernel(torch.zeros(1, dtype=torch.float64), dual, 5000, "nngp").item()
    assert alike == 0


@pytest.mark.parametrize(
    ("activation", "kind", "alpha"),
    [
        (torch.relu, "majority", None),
        (torch.nn.functional.gelu, "majority", None),
        (torch.exp, "majority", None),
        (torch.nn.functional.leaky_relu, "majority", None),
        (lambda x: x**2 - 1, "1nn", None),
        (lambda x: x**3 - 3 * x, "1nn", None),
        (torch.erf, "singular", 0.888),
        (torch.sin, "singular", 1.186),
        (lambda x: torch.sin(math.sqrt(2.676) * x), "singular", 2.0),
        (lambda x: torch.sin(math.sqrt(6.13539) * x), "singular", 4.0),
        (DualActivation.sine(13.8258), "singular", 8.0),
        (torch.tanh, "singular", 0.881),
    ],
)
def test_an_activation_tells_its_limit(activation, kind, alpha):
    found = limiting_classifier(activation)
    assert found.kind == kind
    assert found.alpha == (None if alpha is None else pytest.approx(alpha, abs=1e-3))


@pytest.mark.parametrize("dimension", [1, 2, 3, 5, 20])
def test_the_optimal_activation_has_the_exponent_of_its_dimension(dimension):
    dual = optimal_activation(dimension)
    assert sum(dual.squares) == pytest.approx(1)
    assert dual.taxonomy().alpha == pytest.approx(dimension)


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        (torch.sign, "jumps"),
        (torch.sigmoid, "all inputs become alike"),
        (lambda x: 2 * x, "a line"),
        (lambda x: 0 * x, "is 0.0 for a standard normal"),
        (lambda x: torch.exp(x**2), r"E\[phi\(z\)\^2\] is"),
        (lambda x: torch.tensor([math.sin(v) for v in x.tolist()]), "autograd can follow"),
    ],
)
def test_activations_without_a_limit_are_refused(activation, words):
    with pytest.raises(InputError, match=words):
        limiting_classifier(activation)


@pytest.mark.parametrize("kind", ["nngp", "ntk"])
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_the_classifier_is_interpolation_written_out(kind, solver):
    # Spread out, so that few layers do and the plain recursion is good to many digits.
    angles = torch.linspace(0.05, 1.5, 12, dtype=torch.float64)
    X = torch.stack([angles.cos(), angles.sin()], dim=1)
    X_test = torch.stack([(angles + 0.03).cos(), (angles + 0.03).sin()], dim=1)
    y = torch.tensor([0, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 1])
    dual, depth = optimal_activation(1), 8
    G, K = (plain((left @ X.T).clamp(max=1), dual, depth, kind) for left in (X, X_test))
    raw = K @ torch.linalg.solve(G, 2.0 * y.double() - 1)
    # Weights are relative to the diagonal, and to their sum.
    wanted = raw * G[0, 0] / K.sum(1)
    model = DeepKernelClassifier(dimension=1, depth=depth, kind=kind, lift=False, solver=solver)
    model.fit(X.numpy(), y.numpy())
    np.testing.assert_allclose(model.decision_function(X_test.numpy()), wanted, atol=1e-6)
    assert (model.predict(X_test.numpy()) == (raw > 0).numpy()).all()


def test_deep_networks_agree_with_the_smoother_and_shallow_ones_do_not():
    X, y = circle(200)
    X_test, _ = circle(300, seed=1)
    limit = DeepKernelClassifier(dimension=1, kind="limit", lift=False).fit(X, y).predict(X_test)
    agreement = []
    for depth in (12, 60):
        model = DeepKernelClassifier(dimension=1, depth=depth, lift=False).fit(X, y)
        agreement.append((model.predict(X_test) == limit).mean())
    assert agreement[1] > 0.99 > agreement[0]
    hilbert = HilbertKernelClassifier(dimension=1).fit(X, y).predict(X_test)
    assert (hilbert == limit).mean() > 0.97


def test_training_labels_are_interpolated():
    X, y = circle(50)
    for options in ({}, {"solver": "cg"}, {"kind": "ntk"}, {"kind": "limit"}):
        model = DeepKernelClassifier(dimension=1, lift=False, **options).fit(X, y)
        assert (model.predict(X) == y).all(), options


def test_the_limit_of_a_square_is_the_nearest_neighbour_also_when_deep():
    X, y = circle(150)
    X_test, _ = circle(200, seed=1)
    square = DualActivation.from_hermite([0, 0, 1])
    wanted = KNeighborsClassifier(1).fit(X, y).predict(X_test)
    for options in ({"kind": "limit"}, {"depth": 40}):
        model = DeepKernelClassifier(square, lift=False, **options).fit(X, y)
        # In 40 layers t becomes t to the power of 2^40, which is no float.
        assert (model.predict(X_test) == wanted).all()


def test_the_limit_of_relu_is_the_majority():
    X, y = circle(101)
    model = DeepKernelClassifier("relu", kind="limit").fit(X, y)
    assert set(model.predict(X)) == {np.bincount(y).argmax()}
    assert model.limit_.kind == "majority"


def test_the_limits_weights_are_the_singular_kernel():
    X, y = circle(30)
    X_test, _ = circle(20, seed=1)
    model = DeepKernelClassifier(dimension=1, kind="limit", lift=False).fit(X, y)
    gaps = torch.tensor(1 - X_test @ X.T)
    psi = log_singular(gaps, optimal_activation(1)).exp().numpy()
    wanted = psi @ (2.0 * y - 1) / psi.sum(1)
    np.testing.assert_allclose(model.decision_function(X_test), wanted, atol=1e-9)


def test_hilberts_weights_are_powers_of_distances():
    random = np.random.RandomState(0)
    X, y = random.normal(size=(30, 3)), random.randint(3, size=30)
    points = random.normal(size=(10, 3))
    weights = np.linalg.norm(points[:, None] - X, axis=2) ** -3.0
    wanted = weights @ np.eye(3)[y] / weights.sum(1, keepdims=True)
    model = HilbertKernelClassifier().fit(X, y)
    np.testing.assert_allclose(model.predict_proba(points), wanted, atol=1e-12)
    np.testing.assert_array_equal(model.predict_proba(X), np.eye(3)[y])


def test_inputs_that_are_alike_count_with_their_mean_label():
    X, y = circle(20)
    X, y = np.vstack([X, X[:1], X[:1]]), np.append(y, [1 - y[0], 1 - y[0]])
    model = DeepKernelClassifier(dimension=1, lift=False).fit(X, y)
    assert len(model.points_) == 20
    assert model.decision_function(X[:1])[0] == pytest.approx((1 - 2 * y[0]) / 3, abs=1e-6)
    votes = DeepKernelClassifier(dimension=1, lift=False, kind="limit").fit(X, y)
    assert votes.decision_function(X[:1])[0] == pytest.approx((1 - 2 * y[0]) / 3)


def test_what_is_at_right_angles_to_all_samples_gets_the_majority():
    X, y = np.array([[1.0, 0, 0], [0.9, 0.1, 0], [0.8, 0.3, 0]]), [0, 1, 1]
    for kind in ("nngp", "limit"):
        model = DeepKernelClassifier(dimension=2, kind=kind, lift=False).fit(X, y)
        assert model.predict([[0, 0, 1.0]]) == [1]


def test_lifting_keeps_lengths():
    X, y = np.array([[1.0], [2.0], [3.0], [4.0]]), [0, 0, 1, 1]
    assert DeepKernelClassifier(dimension=1).fit(X, y).predict([[1.2], [3.9]]).tolist() == [0, 1]
    # Without it all of these are one direction.
    flat = DeepKernelClassifier(dimension=1, lift=False).fit(X, y)
    assert len(flat.points_) == 1


@pytest.mark.parametrize("options", [{}, {"kind": "ntk", "depth": 9}, {"kind": "limit"}])
def test_chunks_do_not_matter(options):
    X, y = load_iris(return_X_y=True)
    whole = DeepKernelClassifier(dimension=2, **options).fit(X, y)
    steps = []
    cut = DeepKernelClassifier(
        dimension=2, chunk=7, progress=lambda *step: steps.append(step), **options
    ).fit(X, y)
    np.testing.assert_allclose(cut.decision_function(X), whole.decision_function(X), atol=1e-10)
    assert steps[-1] == ("predicting", 150, 150)
    assert ("predicting", 7, 150) in steps
    if options.get("kind") != "limit":
        assert any(stage == "kernel" for stage, _, _ in steps)


def test_conjugate_gradients_find_what_the_factor_does():
    X, y = load_iris(return_X_y=True)
    wanted = DeepKernelClassifier(dimension=2).fit(X, y).decision_function(X + 0.05)
    found = DeepKernelClassifier(dimension=2, solver="cg", chunk=40).fit(X, y)
    np.testing.assert_allclose(found.decision_function(X + 0.05), wanted, atol=1e-8)


def test_a_kernel_too_large_is_refused_before_it_is_computed_with_the_chunk_that_fits():
    X, y = circle(500)
    with pytest.raises(InputError, match=r"solver='cg' or kind='limit'.*chunk=25 fits"):
        DeepKernelClassifier(dimension=1, max_bytes=1_000_000).fit(X, y)
    for options in ({"solver": "cg"}, {"kind": "limit"}):
        settings = {"dimension": 1, "max_bytes": 1_000_000, "depth": 30, **options}
        with pytest.raises(InputError, match=r"chunk=26 rows .* chunk=25 fits"):
            DeepKernelClassifier(chunk=26, **settings).fit(X, y).predict(X)
        DeepKernelClassifier(chunk=25, **settings).fit(X, y).predict(X[:30])
    with pytest.raises(InputError, match="one row of a kernel of 500"):
        HilbertKernelClassifier(max_bytes=1000).fit(X, y)


def test_chunks_stay_in_their_budget():
    # Peak of torch's own allocations, counted by a dispatch mode; the recursion's arrays and all.
    from torch.utils._python_dispatch import TorchDispatchMode

    class Peak(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.live, self.peak = {}, 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            import weakref

            found = function(*args, **(kwargs or {}))
            for part in found if isinstance(found, tuple) else (found,):
                if isinstance(part, torch.Tensor):
                    storage = part.untyped_storage()
                    if storage._cdata not in self.live:
                        self.live[storage._cdata] = storage.nbytes()
                        weakref.finalize(storage, self.live.pop, storage._cdata, None)
            self.peak = max(self.peak, sum(self.live.values()))
            return found

    X, _ = circle(400)
    points, budget = torch.tensor(X), 3_000_000
    chunks = Chunks(torch.device("cpu"), budget, None)
    with Peak() as seen:
        for _, gaps in chunks.gaps(points, points, "kernel", silent):
            log_kernel(gaps, optimal_activation(1), 5, "ntk").exp_()
    assert chunks.size(400) > 50
    assert 0.3 * budget < seen.peak <= budget


def test_the_dimension_of_data_is_found():
    random = np.random.RandomState(0)
    for dimension in (1, 2, 4):
        flat = random.uniform(size=(1000, dimension)) @ random.normal(size=(dimension, 9))
        chunks = Chunks.of("cpu", None, None)
        found = intrinsic_dimension(*nearest_two(torch.tensor(flat), chunks, silent))
        assert found == pytest.approx(dimension, rel=0.15)
    X, y = circle(300)
    model = DeepKernelClassifier(lift=False).fit(X, y)
    assert model.dimension_ == 1
    assert model.limit_.alpha == pytest.approx(1)


def test_a_depth_that_is_enough_is_named_and_is_enough():
    dual = optimal_activation(2)
    depth = sufficient_depth(dual, 1e-6, 1000)
    # log_2(1e6) = 19.9 layers, and log_2(1000) = 10 more.
    assert depth == 30
    gap = torch.tensor([1e-6], dtype=torch.float64)
    assert log_kernel(gap, dual, depth, "nngp").exp().item() < 5e-3
    with pytest.raises(InputError, match="only singular"):
        sufficient_depth(DualActivation.relu(), 1e-6, 10)
    X, y = circle(400)
    for solver in ("cholesky", "cg"):
        with pytest.raises(InputError, match=r"too much alike at depth 1; depth=\d+ is enough"):
            DeepKernelClassifier(dimension=1, depth=1, lift=False, solver=solver).fit(X, y)


def test_pipelines_grid_search_and_pickling():
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = DeepKernelClassifier(dimension=4, progress=lambda *_: None)
    steps = make_pipeline(MinMaxScaler(clip=True), model)
    grid = {"deepkernelclassifier__kind": ["nngp", "limit"]}
    grid["deepkernelclassifier__activation"] = ["optimal", "relu", DualActivation.sine(2.0)]
    search = GridSearchCV(steps, grid, cv=3, error_score="raise").fit(X, names)
    assert search.best_score_ > 0.9
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(X), search.predict(X))
    assert again[-1].progress is None
    assert clone(model).progress is not None


@pytest.mark.parametrize(
    "estimator",
    [DeepKernelClassifier(), DeepKernelClassifier(kind="limit"), HilbertKernelClassifier()],
    ids=["nngp", "limit", "hilbert"],
)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_accepts_the_estimator(estimator):
    check_estimator(estimator)


@pytest.mark.parametrize("estimator", [DeepKernelClassifier(), HilbertKernelClassifier()])
@pytest.mark.filterwarnings("error")
def test_rows_turned_round_and_read_only_inputs_are_taken(estimator):
    X, y = circle(30)
    wanted = clone(estimator).fit(X, y).decision_function(X)
    turned = clone(estimator).fit(X[::-1], y[::-1])
    np.testing.assert_allclose(turned.decision_function(X[::-1])[::-1], wanted)
    X.flags.writeable = False
    np.testing.assert_array_equal(clone(estimator).fit(X, y).decision_function(X), wanted)


def test_a_function_is_an_activation_by_its_hermite_series():
    X, y = circle(30)
    ours = DeepKernelClassifier(activation=torch.tanh).fit(X, y)
    dual = DeepKernelClassifier(activation=DualActivation.from_function(torch.tanh)).fit(X, y)
    np.testing.assert_array_equal(ours.decision_function(X), dual.decision_function(X))
    assert pickle.loads(pickle.dumps(ours)).limit_.kind == "singular"
    with pytest.raises(InputError, match="function of a tensor"):
        DeepKernelClassifier(activation=np.tanh).fit(X, y)


def test_bad_input_is_named_with_its_mend():
    X, y = circle(30)
    for options, words in (
        ({"depth": 0}, "depth is 0: give a whole number of 1 or above"),
        ({"depth": 2.5}, "depth is 2.5"),
        ({"kind": "ngp"}, "unknown kind 'ngp': did you mean 'nngp'"),
        ({"solver": "lu"}, "unknown solver 'lu'"),
        ({"activation": "rleu"}, "unknown activation 'rleu': did you mean 'relu'"),
        ({"dimension": 0}, "dimension is 0"),
        ({"dimension": 1.5}, "dimension is 1.5"),
        ({"chunk": 0}, "chunk is 0"),
        ({"max_bytes": -1}, "max_bytes is -1"),
        ({"device": "nowhere"}, "the device 'nowhere'"),
        ({"activation": DualActivation.from_function(torch.sigmoid)}, "become alike"),
        ({"activation": DualActivation.from_function(torch.abs, 4)}, "give .* a higher degree"),
    ):
        with pytest.raises(InputError, match=words):
            DeepKernelClassifier(**options).fit(X, y)
    with pytest.raises(InputError, match="one class only"):
        DeepKernelClassifier().fit(X, np.ones(30))
    with pytest.raises(InputError, match="one class only"):
        HilbertKernelClassifier().fit(X, np.ones(30))
    for dimension in (0, -1, float("inf")):
        with pytest.raises(InputError, match="dimension is"):
            HilbertKernelClassifier(dimension=dimension).fit(X, y)
    with pytest.raises(InputError, match=r"Negative values.*MinMaxScaler\(clip=True\)"):
        DeepKernelClassifier().fit(X - 1, y)
    with pytest.raises(InputError, match="Negative values"):
        DeepKernelClassifier().fit(X, y).predict(-X)
    X[3] = 0
    with pytest.raises(InputError, match="row 3 of the inputs is all 0"):
        DeepKernelClassifier(lift=False).fit(X, y)
    for bad in ([], [0.0, 0.0], [1.0, math.nan]):
        with pytest.raises(InputError, match="finite Hermite coefficients"):
            DualActivation.from_hermite(bad)
    with pytest.raises(InputError, match="a is 0"):
        DualActivation.sine(0)
