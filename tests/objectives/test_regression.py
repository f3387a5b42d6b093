"""The losses of numbers."""

import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.objectives import AbsoluteError, SquaredError, make_objective
from flatminima.objectives.regression import predictions


def batch(outputs=1, n=7):
    torch.manual_seed(0)
    model = nn.Linear(3, outputs).double()
    return model, (torch.randn(n, 3, dtype=torch.float64), torch.randn(n, dtype=torch.float64))


def test_they_are_the_means_that_their_names_say():
    model, (x, y) = batch()
    error = (x @ model.weight.T + model.bias)[:, 0] - y
    assert torch.equal(SquaredError()(model, (x, y)), error.square().mean())
    assert torch.equal(AbsoluteError()(model, (x, y)), error.abs().mean())


def test_a_model_that_gives_a_vector_of_numbers_is_taken_as_it_is():
    model, (x, y) = batch()
    flat = nn.Sequential(model, nn.Flatten(0))
    assert torch.equal(predictions(flat, (x, y))[0], model(x)[:, 0])


def test_whole_numbers_are_targets_too():
    model, (x, _) = batch()
    targets = torch.arange(7)
    assert SquaredError()(model, (x, targets)) == SquaredError()(model, (x, targets.double()))


def test_two_outputs_for_one_number_are_refused():
    model, given = batch(outputs=2)
    with pytest.raises(InputError, match=r"shape \(7, 2\) for targets of shape \(7,\)"):
        SquaredError()(model, given)


def test_they_are_known_by_their_usual_names():
    assert isinstance(make_objective("mse"), SquaredError)
    assert isinstance(make_objective("mae"), AbsoluteError)
