"""torch.compile beside the passes: right statistics, and no endless recompiling."""

import pytest
import torch
from torch import nn

from flatminima.perturb import NSO

from .cases import assert_same_bits, batch, sgd, state_of, stateful, train


class Compiled:
    """A backend that counts its graphs and runs them as they are."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, _):
        self.graphs += 1
        return graph.forward


class Network(nn.Module):
    """Torch does not compile an nn.Sequential in place."""

    def __init__(self):
        super().__init__()
        self.layers = stateful()

    def forward(self, x):
        return self.layers(x)


def trained(wrap, given):
    model = Network()
    call = wrap(model)
    torch.manual_seed(1)
    optimizer = NSO(sgd(model.parameters()), sigma=0.1, model=model if given else None)
    train(optimizer, call, [batch(seed=seed) for seed in range(12)])
    return state_of(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
@pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
@pytest.mark.parametrize("way", ["wrapped", "in_place", "function"])
def test_a_compiled_model_trains_as_the_model_does(way, given):
    if way == "function" and not given:
        pytest.skip("a hook inside compiled code is compiled again and again: give the model")
    torch.compiler.reset()
    backend = Compiled()

    def wrap(model):
        if way == "wrapped":
            return torch.compile(model, backend=backend)
        if way == "in_place":
            model.compile(backend=backend)
            return model
        return torch.compile(lambda x: model(x), backend=backend)

    ours = trained(wrap, given)
    theirs = trained(lambda model: model, given)
    assert_same_bits(ours, theirs)
    # Unbounded it would be one for each of the 24 passes, up to torch's limit of 8.
    assert 1 <= backend.graphs <= 4
