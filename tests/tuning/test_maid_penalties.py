"""The penalties of a head, tuned on its own features."""

import json

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima.errors import InputError
from flatminima.tuning.maid import tune_penalties
from flatminima.tuning.maid.softmax import SoftmaxRegression


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))


def batches(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=generator)
    y = (x[:, :3] + 0.8 * torch.randn(n, 3, generator=generator)).argmax(1)
    return list(zip(x.split(16), y.split(16), strict=True))


def tune(**given):
    return tune_penalties(network(), batches(40, 1), batches(60, 2), **{"steps": 15, **given})


def refitted(weight_decay, bias_decay, distance):
    """The validation loss of the head trained by L-BFGS, with torch's own loss."""
    model = network().eval()
    body, head = model[:3], model[3].double()
    before = head.weight.detach().clone()
    (x, y), (v, w) = (
        map(torch.cat, zip(*b, strict=True)) for b in (batches(40, 1), batches(60, 2))
    )
    x, v = body(x).detach().double(), body(v).detach().double()
    optimizer = torch.optim.LBFGS(
        head.parameters(),
        max_iter=500,
        tolerance_grad=1e-10,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def loss():
        optimizer.zero_grad()
        found = cross_entropy(head(x), y) + weight_decay / 2 * head.weight.square().sum()
        found = found + bias_decay / 2 * head.bias.square().sum()
        found = found + distance * (head.weight - before).square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    return cross_entropy(head(v), w).item()


def test_the_validation_loss_is_that_of_a_head_trained_with_the_penalties():
    found = tune(knobs=["weight_decay", "distance_penalty"], each=True)
    own = found.penalties
    again = refitted(own["weight_decay:weight"], own["weight_decay:bias"], own["distance_penalty"])
    assert found.descent.low - 1e-7 <= again <= found.descent.high + 1e-7
    assert found.validation < found.start
    assert found.descent.certified


def test_one_weight_decay_ends_near_the_best_of_a_grid():
    found = tune(steps=30)
    grid = [refitted(d, d, 0) for d in torch.logspace(-3, 0, 13).tolist()]
    assert found.validation <= min(grid) + 1e-4
    assert list(found.penalties) == ["weight_decay"]


def test_the_distance_alone_is_tuned_beside_a_fixed_weight_decay():
    found = tune(knobs=["distance_penalty"], start=0.02)
    again = refitted(0.02, 0.02, found.penalties["distance_penalty"])
    assert found.descent.low - 1e-7 <= again <= found.descent.high + 1e-7


def test_each_penalty_starts_where_it_is_told():
    first = {"weight_decay": 0.3, "distance_penalty": 0.02}
    found = tune(knobs=["distance_penalty", "weight_decay"], start=first, steps=1)
    own = torch.tensor([found.penalties[name] for name in first]).log()
    # One step of MAID from there, along the gradient of the logarithms.
    moved = own - torch.tensor(list(first.values())).log()
    assert 0 < moved.norm() <= 1.01 * found.descent.history[0].gradient
    alone = tune(knobs=["distance_penalty"], start=first)
    again = refitted(0.3, 0.3, alone.penalties["distance_penalty"])
    assert alone.descent.low - 1e-7 <= again <= alone.descent.high + 1e-7


def test_the_model_is_left_as_it_was_and_the_result_is_plain_numbers():
    model = network().train()
    model[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = tune_penalties(model, batches(40, 1), batches(60, 2), steps=3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not model[0].training
    assert not model[3]._forward_pre_hooks
    assert json.loads(json.dumps(found.to_dict()))["head"] == "3"
    assert "weight_decay" in str(found)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"knobs": ["batch_size"]}, "unknown knob of MAID 'batch_size'.*has none"),
        ({"knobs": ["weightdecay"]}, "did you mean 'weight_decay'"),
        ({"knobs": []}, "give a list of names"),
        ({"start": 0.0}, "start is 0.0"),
        ({"start": {"weight_decay": -1.0}}, "start is -1.0"),
        ({"start": {"decay": 0.1}}, "unknown penalty in start 'decay'"),
        ({"head": "4"}, "unknown linear layer '4'"),
    ],
)
def test_what_cannot_be_tuned_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        tune(**given)


def test_models_and_data_that_do_not_fit_are_refused():
    data = batches(40, 1)
    with pytest.raises(InputError, match=r"no nn\.Linear"):
        tune_penalties(nn.Flatten(), data, data)
    with pytest.raises(InputError, match="no batch"):
        tune_penalties(network(), data, [])
    twice = nn.Sequential(layer := nn.Linear(5, 5), nn.Tanh(), layer)
    with pytest.raises(InputError, match="called once"):
        tune_penalties(twice, data, data, head="0")
    x, y = torch.zeros(4, 2).double(), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(InputError, match="nothing to tune"):
        SoftmaxRegression((x, y), (x, y), groups=None)
    with pytest.raises(InputError, match="those of one network"):
        SoftmaxRegression((x, y), (x[:, :1], y), groups=torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="must be finite"):
        SoftmaxRegression((x / 0, y), (x, y), groups=torch.zeros(1, 3, dtype=torch.int64))
