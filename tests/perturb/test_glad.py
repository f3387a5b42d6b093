"""GLAD: its ends, its quadratic, and its constrained mode."""

import pytest
import torch

from flatminima.errors import InputError
from flatminima.perturb import GLAD, SAM
from flatminima.perturb.glad import constrained

DOUBLE = torch.float64


def quadratic(seed=0, d=5):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, dtype=DOUBLE, generator=generator)
    return root @ root.T + torch.eye(d, dtype=DOUBLE), torch.randn(
        d, dtype=DOUBLE, generator=generator
    )


def gradient_of(method, hessian, start):
    """What the method hands to the base optimizer for 1/2 w'Hw."""
    weight = torch.nn.Parameter(start.clone())
    optimizer = method(torch.optim.SGD([weight], lr=0.0))
    for _ in optimizer.passes():
        (0.5 * weight @ hessian @ weight).backward()
    found = weight.grad.clone()
    optimizer.step()
    assert torch.equal(weight, start)
    return found


def test_a_blend_of_0_is_the_gradient_and_of_1_is_that_of_sam_bit_for_bit():
    hessian, start = quadratic()
    sam = gradient_of(lambda base: SAM(base, rho=0.3), hessian, start)
    assert torch.equal(
        gradient_of(lambda base: GLAD(base, rho=0.3, blend=1.0), hessian, start), sam
    )
    plain = gradient_of(lambda base: GLAD(base, rho=0.3, blend=0.0), hessian, start)
    torch.testing.assert_close(plain, hessian @ start)


def test_on_a_quadratic_it_is_the_gradient_of_the_loss_and_the_gradient_norm():
    hessian, start = quadratic(1)
    rho, blend = 0.4, 0.3
    found = gradient_of(lambda base: GLAD(base, rho=rho, blend=blend), hessian, start)
    weight = start.clone().requires_grad_()
    (0.5 * weight @ hessian @ weight + blend * rho * (hessian @ weight).norm()).backward()
    torch.testing.assert_close(found, weight.grad, rtol=1e-13, atol=1e-13)


def test_the_constrained_mode_takes_the_first_the_second_or_the_projection_by_the_cosine():
    g = torch.tensor([1.0, 0.0], dtype=DOUBLE)
    at = lambda angle: 2 * torch.tensor([angle, (1 - angle**2) ** 0.5], dtype=DOUBLE)  # noqa: E731
    assert torch.equal(constrained(g, at(0.4), 0.5, 0.8), g)
    assert torch.equal(constrained(g, at(0.9), 0.5, 0.8), at(0.9))
    middle = at(0.6) + g
    expected = (at(0.6) @ middle) / (middle @ middle) * middle
    torch.testing.assert_close(constrained(g, at(0.6), 0.5, 0.8), expected)


def test_without_a_lower_cosine_all_below_the_upper_one_is_projected():
    g, other = torch.tensor([1.0, 0.0]), torch.tensor([-0.6, 0.8])
    middle = g + other
    expected = (other @ middle) / (middle @ middle) * middle
    torch.testing.assert_close(constrained(g, other, 0.0, 0.8), expected)
    assert torch.equal(constrained(g, g + 0.1 * other, 0.0, 0.8), g + 0.1 * other)


def test_the_constrained_mode_runs_through_the_engine():
    hessian, start = quadratic(2)
    home, climbed = hessian @ start, None
    climbed = hessian @ (start + 0.5 * home / home.norm())
    found = gradient_of(lambda base: GLAD(base, rho=0.5, mode="constrain"), hessian, start)
    torch.testing.assert_close(found, constrained(home, climbed, 0.5, 0.8))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"blend": 1.5}, r"blend must be a number in \[0, 1\]"),
        ({"mode": "blended"}, "did you mean 'blend'"),
        ({"low": 0.9}, "low is 0.9 and up is 0.8"),
    ],
)
def test_bad_options_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        GLAD(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), rho=0.1, **given)
