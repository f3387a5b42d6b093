"""Plug-and-play against dense solutions, and what its objectives must do."""

import pytest
import torch

from flatminima import LPN, LinearMap, PatchLPN, pnp_admm, pnp_hqs, pnp_pgd
from flatminima.errors import InputError
from flatminima.models.learned_proximal import (
    LearnedProximal,
    blurring,
    identity,
    masking,
    sensing,
)

FLOAT = torch.float64
METHODS = (pnp_admm, pnp_hqs, pnp_pgd)


class Quadratic(LearnedProximal):
    """f = M y, so R(x) = x' (M^-1 - I) x / 2."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", matrix)

    def potential(self, y):
        return ((y @ self.matrix) * y).sum(1) / 2

    def nonnegative(self):
        return []

    def check(self, y):
        assert y.shape[1] == len(self.matrix)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    factor = torch.randn(5, 5, dtype=FLOAT)
    matrix = torch.linalg.inv(torch.eye(5, dtype=FLOAT) + factor @ factor.T / 5)
    a = torch.randn(3, 5, dtype=FLOAT) / 4
    return Quadratic(matrix), a, torch.randn(2, 3, dtype=FLOAT)


def patches(seed=0):
    torch.manual_seed(seed)
    return PatchLPN(LPN(9, 16, 2, beta=10, alpha=0.02, free_mean=True), 3).double()


def image(seed=0):
    return torch.rand(1, 1, 9, 9, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", [pnp_admm, pnp_pgd])
def test_with_a_quadratic_prior_the_known_minimizer_is_found(problem, method):
    net, a, b = problem
    r = torch.linalg.inv(net.matrix) - torch.eye(5, dtype=FLOAT)
    w = 0.5
    known = torch.linalg.solve(w * a.T @ a + r, w * a.T @ b.T).T
    found = method(net, sensing(a, (5,)), b, weight=w, steps=3000, tolerance=1e-12)
    assert found.stopped == "tolerance"
    assert torch.allclose(found.image, known, atol=1e-9)
    objective = w / 2 * (known @ a.T - b).square().sum() + ((known @ r) * known).sum() / 2
    assert found.objective[-1] == pytest.approx(float(objective), abs=1e-10)


def test_splitting_finds_the_minimizer_of_its_own_objective(problem):
    net, a, b = problem
    eye = torch.eye(5, dtype=FLOAT)
    w = 3.0
    r = torch.linalg.inv(net.matrix) - eye
    both = torch.cat([torch.cat([w * a.T @ a + eye, -eye], 1), torch.cat([-eye, eye + r], 1)])
    right = torch.cat([w * a.T @ b.T, torch.zeros(5, 2, dtype=FLOAT)])
    known = torch.linalg.solve(both, right)[5:].T
    found = pnp_hqs(net, sensing(a, (5,)), b, weight=w, steps=3000, tolerance=1e-12)
    assert torch.allclose(found.image, known, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("method", "weight"), [(pnp_pgd, 1.0), (pnp_hqs, 20.0)])
def test_the_objective_never_rises(method, weight, seed):
    operator = blurring(1.0)
    b = operator(image(seed))
    found = method(patches(seed), operator, b, weight=weight, steps=40, tolerance=0.0)
    falls = [a - b for a, b in zip(found.objective, found.objective[1:], strict=False)]
    assert min(falls) >= -1e-12
    assert found.objective[0] - found.objective[-1] > 1e-6


@pytest.mark.parametrize("task", ["denoising", "deblurring", "inpainting", "compressed sensing"])
def test_where_admm_settles_is_a_fixed_point_of_proximal_gradient(task):
    generator = torch.Generator().manual_seed(1)
    operator = {
        "denoising": identity(),
        "deblurring": blurring(0.8),
        "inpainting": masking((torch.rand(9, 9, generator=generator) < 0.6).double()),
        "compressed sensing": sensing(
            torch.randn(40, 81, generator=generator, dtype=FLOAT) / 40**0.5, (1, 9, 9)
        ),
    }[task]
    net, b, w = patches(), operator(image()), 4.0
    found = pnp_admm(net, operator, b, weight=w, steps=800, tolerance=1e-8)
    assert found.stopped == "tolerance"
    z = found.image
    with torch.no_grad():
        again = net(z - w * operator.adjoint(operator(z) - b))
    assert torch.allclose(again, z, atol=1e-5)


def test_noise_gives_the_weight_of_the_posterior_mode():
    net, b = patches(), image()
    net.sigma.fill_(0.1)
    one = pnp_admm(net, identity(), b, noise=0.05, steps=5)
    two = pnp_admm(net, identity(), b, weight=float(net.sigma) ** 2 / 0.05**2, steps=5)
    assert torch.equal(one.image, two.image)


def test_another_denoiser_has_no_objective_and_progress_is_told():
    calls = []
    found = pnp_hqs(
        lambda y: 0.9 * y,
        identity(),
        image(),
        weight=1.0,
        steps=3,
        progress=lambda *t: calls.append(t),
    )
    assert found.objective == ()
    assert calls[-1] == ("half-quadratic splitting", 3, 3)
    assert "3 steps" in str(found)


@pytest.mark.parametrize("method", METHODS)
def test_pictures_of_convergence_can_be_drawn(method):
    pytest.importorskip("matplotlib").use("agg")
    found = method(patches(), identity(), image(), weight=1.0, steps=3)
    assert len(found.plot().lines[0].get_ydata()) == len(found.change)


def test_operators_are_adjoint_and_blurs_keep_the_mean():
    x = image()
    for operator in (blurring(1.3), masking(torch.eye(9)), sensing(torch.ones(2, 81), (1, 9, 9))):
        operator.check(operator(x))
    assert torch.allclose(blurring(2.0)(x).mean(), x.mean())
    slow = torch.zeros_like(x)
    weights = torch.tensor([torch.exp(torch.tensor(-(d**2) / 2 / 0.49)) for d in range(-4, 5)])
    weights = weights.double() / weights.sum()
    for i, one in enumerate(weights):
        for j, two in enumerate(weights):
            slow += one * two * x.roll((i - 4, j - 4), (2, 3))
    assert torch.allclose(blurring(0.7)(x), slow, atol=1e-7)
    norm = torch.linalg.matrix_norm(torch.arange(6.0, dtype=FLOAT).reshape(2, 3), 2) ** 2
    square = sensing(torch.arange(6.0).reshape(2, 3), (3,)).square_norm(torch.zeros(1, 3).double())
    assert square == pytest.approx(float(norm), rel=1e-6)


def restore(b=None, operator=None, net=None, method=pnp_admm, **options):
    given = {"weight": 1.0, "steps": 3} | options
    return method(net or patches(), operator or identity(), image() if b is None else b, **given)


def trained(sigma=0.0):
    net = patches()
    net.range.copy_(torch.tensor([0.0, 1.0]))
    net.sigma.fill_(sigma)
    return net


def broken():
    net = patches()
    with torch.no_grad():
        net.net.out[0, 0] = -1
    return net


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"b": torch.zeros(1, 1, 9, 9, dtype=torch.uint8)}, "divided by 255"),
        ({"b": 255 * image(), "net": trained()}, "divided by 255"),
        ({"b": image()[0]}, "height, width"),
        ({"b": image()[:, :, :2]}, "smaller than"),
        (
            {
                "b": torch.zeros(1, 3, dtype=FLOAT),
                "operator": sensing(torch.ones(4, 81), (1, 9, 9)),
            },
            "does not take",
        ),
        (
            {"operator": LinearMap(lambda x: x, lambda b: b.flip(3), "a wrong map")},
            "not its adjoint",
        ),
        ({"operator": masking(torch.zeros(9, 9))}, "every image to 0"),
        ({"weight": None}, "either weight or noise"),
        ({"weight": 0.0}, "weight is 0"),
        ({"weight": None, "noise": 0.1}, "no sigma"),
        ({"start": torch.zeros(1, 1, 3, 3)}, "start has the shape"),
        ({"method": pnp_pgd, "weight": 2.0}, "Lower the weight to 1"),
        ({"net": broken()}, "1 negative weights"),
        ({"net": "net"}, "denoiser is 'net'"),
        ({"net": lambda y: 3}, "makes 3 of an image"),
        ({"net": lambda y: y[:, :, :2]}, r"makes \(1, 1, 2, 9\) of an image"),
        ({"net": torch.nn.Linear(5, 5)}, "does not take images"),
        ({"operator": "blur"}, "operator is 'blur'"),
        ({"operator": lambda x: x}, "give a LinearMap"),
        ({"b": "b"}, "b must be a tensor"),
        ({"b": image().numpy()}, "torch.from_numpy"),
        ({"b": image().float()}, r"float32 and the network of torch\.float64"),
        ({"net": patches().float()}, r"float64 and the network of torch\.float32"),
        ({"weight": "a"}, "weight is 'a'"),
        ({"weight": None, "noise": "a", "net": trained(0.1)}, "noise is 'a'"),
        ({"start": "a"}, "start must be a tensor"),
        ({"start": image().float()}, "start has the shape"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"tolerance": -1.0}, "tolerance is -1.0"),
    ],
)
def test_what_cannot_work_is_refused_with_the_mend(options, words):
    with pytest.raises(InputError, match=words):
        restore(**options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinearMap("f", "a"), "forward is 'f'"),
        (lambda: masking([1, 0]), "mask must be a tensor"),
        (lambda: blurring("a"), "the blur's std is 'a'"),
        (lambda: blurring(0), "the blur's std is 0"),
        (lambda: sensing("m", (4,)), "matrix must be a tensor"),
        (lambda: sensing(torch.ones(2, 4), 4), "shape is 4"),
        (lambda: sensing(torch.ones(2, 4), (2.0, 2)), "a side of shape is 2.0"),
    ],
)
def test_operators_of_wrong_arguments_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_denoiser_that_runs_away_is_stopped():
    with pytest.raises(InputError, match="ran away"):
        restore(net=lambda y: 10 * y, method=pnp_pgd, weight=0.5, steps=1000)
