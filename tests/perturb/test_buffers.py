"""Buffers come out of a step as after one forward pass at W."""

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from flatminima.perturb import NSO, SAM

from .cases import copies

SHAPES = {1: (6, 3), 2: (4, 3, 5, 5), 3: (4, 3, 2, 3, 3)}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVOLUTIONS = {1: lambda: nn.Linear(3, 3), 2: lambda: nn.Conv2d(3, 3, 1)}
CONVOLUTIONS[3] = lambda: nn.Conv3d(3, 3, 1)


def normed(dims=1, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return nn.Sequential(CONVOLUTIONS[dims](), NORMS[dims](3, **options)).to(dtype)


def buffers_of(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def step(optimizer, model, x):
    for _ in optimizer.passes():
        model(x).pow(2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def frozen_rate(model):
    """Learning rate 0, so that plain forwards give the statistics at W of each step."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


AT_HOME = [
    pytest.param(lambda base: SAM(base, rho=0.1), id="sam"),
    pytest.param(lambda base: NSO(base, sigma=0.1, clean_weight=0.2), id="clean_weight"),
    pytest.param(
        lambda base: NSO(base, sigma=0.1, num_perturbations=2, running_statistics="clean"),
        id="clean_statistics",
    ),
    pytest.param(lambda base: NSO(base, sigma=0.0), id="sigma_0"),
]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("wrap", AT_HOME)
def test_with_a_pass_at_home_they_are_exactly_those_of_plain_forwards(dims, momentum, wrap):
    ours, theirs = normed(dims, momentum=momentum), normed(dims, momentum=momentum)
    optimizer = wrap(frozen_rate(ours))
    for _ in range(3):
        x = torch.randn(SHAPES[dims])
        step(optimizer, ours, x)
        theirs(x)
    torch.testing.assert_close(buffers_of(ours), buffers_of(theirs), rtol=0, atol=0)


def test_the_average_differs_from_them_by_sigma_squared():
    x = torch.randn(64, 3, dtype=torch.float64)
    errors = []
    for sigma in (0.02, 0.01, 0.005):
        model, plain = normed(dtype=torch.float64), normed(dtype=torch.float64)
        step(NSO(frozen_rate(model), sigma=sigma, seed=1), model, x)
        plain(x)
        errors.append((model[1].running_var - plain[1].running_var).norm().item())
    # The variance is quadratic in the weights, so its average is off by the square of U exactly.
    assert errors[0] / errors[1] == pytest.approx(4, rel=1e-6)
    assert errors[1] / errors[2] == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_the_mean_of_a_linear_layer_is_exact_in_the_average(k):
    model, plain = normed(dtype=torch.float64), normed(dtype=torch.float64)
    x = torch.randn(16, 3, dtype=torch.float64)
    step(NSO(frozen_rate(model), sigma=0.3, num_perturbations=k), model, x)
    plain(x)
    torch.testing.assert_close(model[1].running_mean, plain[1].running_mean, rtol=0, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"num_perturbations": 3}, {"signs": "split"}])
def test_batches_are_counted_once_a_step(options):
    model = normed()
    optimizer = NSO(frozen_rate(model), sigma=0.1, **options)
    for expected in (1, 2):
        for (part,) in optimizer.passes((torch.randn(8, 3),)):
            model(part).pow(2).mean().backward()
        optimizer.step()
        assert model[1].num_batches_tracked == expected


def test_they_are_found_in_modules_called_apart_or_first_called_in_a_later_pass():
    body, head, late = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    optimizer = NSO(frozen_rate(nn.ModuleList([body, head, late])), sigma=0.1)
    for index, _ in enumerate(optimizer.passes()):
        out = head(body(torch.randn(8, 3)))
        (late(out) if index else out).pow(2).mean().backward()
    assert head.num_batches_tracked == 1
    assert late.num_batches_tracked == 1


class Rebinding(nn.Module):
    """Binds a new tensor to a buffer's name, and writes to another in place."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("rebound", torch.zeros(3))
        self.register_buffer("written", torch.zeros(3))
        self.register_buffer("counted", torch.zeros((), dtype=torch.long))
        self.register_buffer("nothing", None)

    def forward(self, x):
        out = x * self.weight
        self.rebound = 0.9 * self.rebound + 0.1 * out.detach().mean(0)
        self.written.mul_(0.9).add_(0.1 * out.detach().mean(0))
        self.counted = self.counted + 1
        return out


@pytest.mark.parametrize("method", [NSO, SAM])
def test_rebound_buffers_fare_as_written_ones(method):
    model, plain = Rebinding(), Rebinding()
    rebound = model.rebound
    optimizer = method(frozen_rate(model), **{method.strength_name: 0.1})
    for _ in range(3):
        x = torch.randn(5, 3)
        step(optimizer, model, x)
        plain(x)
    torch.testing.assert_close(buffers_of(model), buffers_of(plain), rtol=1e-5, atol=1e-6)
    assert model.counted == 3
    assert model.rebound is rebound


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(50))
        self.register_buffer("table", torch.randn(50))
        self.register_buffer("mask", torch.full((4,), float("-inf")))
        self.register_buffer("same", torch.randn(50))
        self.register_buffer("expanded", torch.ones(1).expand(50))

    def forward(self, x):
        self.same.copy_(self.same.clone())
        return x * self.weight * self.table * self.expanded


def test_constant_buffers_keep_their_bits_and_infinities():
    model = Constant()
    before = buffers_of(model)
    optimizer = NSO(frozen_rate(model), sigma=0.1, num_perturbations=3)
    for _ in range(5):
        step(optimizer, model, torch.randn(2, 50))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_a_buffer_of_two_modules_is_one_buffer():
    model, plain = (nn.Sequential(normed(), nn.BatchNorm1d(3)) for _ in range(2))
    for net in (model, plain):
        for name, buffer in net[0][1].named_buffers():
            net[1].register_buffer(name, buffer)
    optimizer = NSO(frozen_rate(model), sigma=0.1, running_statistics="clean")
    for _ in range(3):
        x = torch.randn(6, 3)
        step(optimizer, model, x)
        plain(x)
    assert model[1].running_mean is model[0][1].running_mean
    torch.testing.assert_close(buffers_of(model), buffers_of(plain), rtol=0, atol=0)


def test_modules_in_eval_mode_are_left_alone():
    model = normed()
    model(torch.randn(6, 3))
    model[1].eval()
    before = buffers_of(model)
    step(NSO(frozen_rate(model), sigma=0.1), model, torch.randn(6, 3))
    torch.testing.assert_close(buffers_of(model), before, rtol=0, atol=0)


def test_a_network_evaluated_between_passes_is_not_changed():
    model, teacher = normed(), normed().eval()
    before = buffers_of(teacher)
    optimizer = SAM(frozen_rate(model), rho=0.1)
    for _ in optimizer.passes():
        with torch.inference_mode():
            teacher(torch.randn(6, 3))
        model(torch.randn(6, 3)).pow(2).mean().backward()
    torch.testing.assert_close(buffers_of(teacher), before, rtol=0, atol=0)


def test_buffers_made_in_inference_mode_are_taken_as_constant():
    model = normed()
    with torch.inference_mode():
        model.register_buffer("table", torch.ones(3))
    step(NSO(frozen_rate(model), sigma=0.1), model, torch.randn(6, 3))
    assert torch.equal(model.table, torch.ones(3))


@pytest.mark.parametrize("end", ["finished", "broken", "raised"])
def test_no_hook_outlives_the_passes(end):
    model = normed()
    optimizer = NSO(frozen_rate(model), sigma=0.1)
    assert not torch_module._global_forward_pre_hooks
    try:
        for _ in optimizer.passes():
            assert torch_module._global_forward_pre_hooks
            model(torch.randn(6, 3)).sum().backward()
            if end == "broken":
                break
            if end == "raised":
                raise KeyError
    except KeyError:
        pass
    assert not torch_module._global_forward_pre_hooks


def test_the_model_given_by_hand_needs_no_hook():
    ours, theirs = normed(), normed()
    x = torch.randn(6, 3)
    by_hand = NSO(frozen_rate(ours), sigma=0.1, seed=1, model=ours)
    for index, _ in enumerate(by_hand.passes()):
        assert not torch_module._global_forward_pre_hooks, index
        ours(x).pow(2).mean().backward()
    by_name = NSO(torch.optim.SGD(theirs.named_parameters(), lr=0.0), sigma=0.1, seed=1)
    step(by_name, theirs, x)
    torch.testing.assert_close(buffers_of(ours), buffers_of(theirs), rtol=0, atol=0)


def test_scripted_modules_train():
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        model = torch.jit.script(normed())
    step(NSO(frozen_rate(model), sigma=0.1), model, torch.randn(6, 3))
    assert model.state_dict()["1.num_batches_tracked"] == 1


def test_checkpointed_activations_count_as_in_plain_training():
    from torch.utils.checkpoint import checkpoint

    ours, theirs = normed(), normed()
    x = torch.randn(6, 3, requires_grad=True)
    for model, loops in ((ours, SAM(frozen_rate(ours), rho=0.1).passes()), (theirs, range(1))):
        for _ in loops:
            checkpoint(model, x, use_reentrant=False).pow(2).mean().backward()
    torch.testing.assert_close(buffers_of(ours), buffers_of(theirs), rtol=0, atol=0)


def test_spectral_norm_vectors_advance_once():
    ours, theirs = (nn.utils.parametrizations.spectral_norm(normed()[0]) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(6, 3)
    step(SAM(frozen_rate(ours), rho=0.1), ours, x)
    theirs(x)
    torch.testing.assert_close(buffers_of(ours), buffers_of(theirs), rtol=0, atol=0)


def test_passes_of_two_optimizers_may_be_nested():
    one, two = normed(), normed()
    outer, inner = NSO(frozen_rate(one), sigma=0.1), NSO(frozen_rate(two), sigma=0.1)
    homes = copies([*one.parameters(), *two.parameters()])
    for _ in outer.passes():
        for _ in inner.passes():
            two(one(torch.randn(6, 3))).pow(2).mean().backward()
    assert one[1].num_batches_tracked == 1
    assert two[1].num_batches_tracked == 1
    assert all(map(torch.equal, homes, [*one.parameters(), *two.parameters()]))
