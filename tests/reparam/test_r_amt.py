"""Regularized mask tuning as a reparametrization: in a loop, under passes, and in runs."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima import NSO, RAMT, SAM, Plain, Supervised, apply_mask
from flatminima.errors import InputError
from flatminima.objectives import Mixup
from flatminima.perturb.shares import cut
from flatminima.reparam import MaskTuning, gradient_dropout, make_reparam
from flatminima.training.measuring import open_target
from flatminima.training.prepared import prepare
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune


def network(dropout=0.0):
    torch.manual_seed(0)
    hidden = nn.Linear(6, 8), nn.GELU(), nn.Dropout(dropout)
    return nn.Sequential(*hidden, nn.Linear(8, 3)).double()


def batch(samples=12):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (samples,), generator=generator)


def shaken(free):
    """Scores and so predictions that differ from the base."""
    generator = torch.Generator().manual_seed(2)
    for scores in free.tuning.scores.values():
        scores.data.add_(0.004 * torch.randn(scores.shape, generator=generator))
    return free


def gradients(free):
    return [scores.grad.clone() for scores in free.tuning.scores.values()]


def one_step(optimizer=Plain, pieces=1, scale=1.0, step=3, wrapped=None, **given):
    """The scores' gradients as the base optimizer would see them."""
    model = network()
    free = shaken(RAMT(model, seed=5, **given))
    objective = free.objective(wrapped or Supervised())
    sgd = torch.optim.SGD(free.tuning.scores.values(), lr=0.1)
    x, y = batch()
    size = len(x) // pieces
    own = optimizer(sgd)
    for current in own.passes():
        free.before_pass(current.weight)
        for start in range(0, len(x), size):
            part = cut((x, y), start, start + size, len(x))
            (objective(model, part) * (scale / pieces)).backward()
    free.before_step(step)
    return free, gradients(free)


def test_a_step_is_that_of_the_function_on_both_losses():
    free, found = one_step(strength=0.7, penalty=1e-2, temperature=2.0)
    model = network()
    tuning = MaskTuning(model)
    for mine, theirs in zip(tuning.scores.values(), free.tuning.scores.values(), strict=True):
        mine.data.copy_(theirs)
    x, y = batch()
    z, base = model(x), network()(x).detach()
    task = cross_entropy(z, y) + 1e-2 * sum(m.norm() for m in tuning.scores.values())
    soft = (base / 2).float().softmax(1)
    reference = 4 * -(soft * (z.float() / 2).log_softmax(1)).sum(1).mean()
    generator = torch.Generator().manual_seed(free._address(3))
    gradient_dropout(tuning.scores.values(), task, reference, 0.7, generator)
    for mine, theirs in zip(tuning.scores.values(), found, strict=True):
        torch.testing.assert_close(mine.grad, theirs, rtol=1e-5, atol=1e-8)


def test_it_drops_something_and_only_where_gradients_conflict():
    _, with_dropout = one_step()
    _, without = one_step(strength=0.0)
    for a, b in zip(with_dropout, without, strict=True):
        assert torch.equal(a[a != 0], b[a != 0])
        assert ((a == 0) & (b != 0)).any()


@pytest.mark.parametrize(
    "other", [{"pieces": 3}, {"scale": 1024.0}, {"optimizer": lambda b: NSO(b, sigma=1e-12)}]
)
def test_how_a_step_is_cut_and_scaled_decides_nothing(other):
    _, whole = one_step()
    _, cut_up = one_step(**other)
    for a, b in zip(whole, cut_up, strict=True):
        torch.testing.assert_close(a * other.get("scale", 1.0), b, rtol=1e-4, atol=1e-8)


def test_of_the_passes_of_sam_the_second_counts():
    def at_moved_weights(base):
        return SAM(base, rho=0.02)

    free, found = one_step(at_moved_weights, strength=1.0, penalty=0.0)
    model = network()
    other = shaken(RAMT(model, strength=0.0, penalty=0.0))
    x, y = batch()
    objective = other.objective(Supervised())
    objective(model, (x, y)).backward()
    norm = torch.stack([g.norm() for g in gradients(other)]).norm()
    for scores in other.tuning.scores.values():
        scores.data.add_(0.02 * scores.grad / norm)
    z, base = model(x), network()(x).detach()
    reference = -(base.float().softmax(1) * z.float().log_softmax(1)).sum(1).mean()
    generator = torch.Generator().manual_seed(free._address(3))
    own = other.tuning.scores.values()
    gradient_dropout(own, cross_entropy(z, y), reference, 1.0, generator)
    for a, b in zip(found, gradients(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8)


def test_steps_draw_anew_and_a_seed_draws_again():
    (_, first), (_, again), (_, later) = one_step(), one_step(), one_step(step=4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, later, strict=True))


def test_the_base_model_is_asked_without_dropout_and_draws_nothing():
    def after(strength):
        model = network(dropout=0.5)
        free = RAMT(model, strength=strength, penalty=0.0)
        torch.manual_seed(7)
        free.objective(Supervised())(model.train(), batch()).backward()
        return torch.rand(1), gradients(free)

    (drawn, found), (alone, plain) = after(1.0), after(0.0)
    assert torch.equal(drawn, alone)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_mixed_inputs_are_those_that_the_base_model_sees():
    model, seen = network(), []
    free = RAMT(model)
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    free.objective(Mixup(alpha=1.0))(model, batch()).backward()
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], batch()[0])


def test_in_evaluation_mode_the_objective_is_as_it_was():
    model = network()
    free = shaken(RAMT(model, penalty=10.0))
    model.eval()
    loss = free.objective(Supervised())(model, batch())
    assert torch.equal(loss, Supervised()(model, batch()))


def test_objectives_that_do_not_fit_are_refused():
    model = network()
    free = RAMT(model)

    def twice(module, given):
        return Supervised()(module, given) + Supervised()(module, given)

    with pytest.raises(InputError, match="calls the model 2 times"):
        free.objective(twice)(model, batch())
    regression = nn.Linear(6, 1)
    free = RAMT(regression)
    with pytest.raises(InputError, match=r"outputs of the shape \(4, 1\): use it for classif"):
        free.objective(lambda m, b: m(b).square().mean())(regression, torch.randn(4, 6))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"strength": 1.5}, "strength is 1.5: give a number from 0 to 1"),
        ({"penalty": -1.0}, "penalty is -1.0: give a finite number 0 or above"),
        ({"temperature": 0}, "temperature is 0: give a finite number above 0"),
        ({"temperature": True}, "temperature is True"),
        ({"init": 0.001}, "not above the threshold"),
        ({"targets": "query"}, "no weight is called 'query'"),
        ({"seed": -1}, "seed is -1"),
        ({"tempreature": 1.0}, "did you mean 'temperature'"),
    ],
)
def test_bad_options_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        make_reparam("r-amt", network(), **given)


SMALL = {"epochs": 3, "train_size": 60, "batch_size": 16, "measure": False, "optimizer": "adam"}
SMALL |= {"lr": 2e-3, "reparam": "r-amt"}


def start(path, **values):
    return finetune(Recipe.from_flat({**SMALL, **values}), path, say=lambda text: None)


def weights(run, kind="last"):
    return load_file(run / f"checkpoints/{kind}/model.safetensors")


@pytest.mark.parametrize(
    "values",
    [
        {"objective": "elr", "perturb": "nso", "sigma": 1e-4},
        {"reparam": "r-amt(strength=0.5; targets=3)", "perturb": "sam", "micro_batch_size": 5},
        {"precision": "bf16", "model": "cnn", "pretrain": False, "keep": "swa"},
    ],
)
def test_killed_and_resumed_equals_never_stopped(whole_and_cut, values):
    files = [(place / "mask.safetensors").read_bytes() for place in whole_and_cut(**SMALL | values)]
    assert files[0] == files[1]


def test_the_mask_of_a_run_and_the_base_model_make_what_the_run_made(tmp_path):
    start(tmp_path / "a")
    baked = weights(tmp_path / "a", "baked")
    recipe = Recipe.from_flat(SMALL)
    model = apply_mask(prepare(recipe).built.model, tmp_path / "a/mask.safetensors")
    found = model.state_dict()
    assert found.keys() == baked.keys()
    assert all(torch.equal(found[name], baked[name]) for name in baked)
    assert any((tensor == 0).any() for tensor in baked.values())
    opened = open_target(str(tmp_path / "a"), {}, say=lambda text: None)
    again = opened.prepared.built.model.state_dict()
    assert all(torch.equal(again[name], baked[name]) for name in baked)
    size = (tmp_path / "a/mask.safetensors").stat().st_size
    whole = (tmp_path / "a/checkpoints/baked/model.safetensors").stat().st_size
    assert size < whole / 20


def test_a_run_that_switches_nothing_off_says_why(tmp_path):
    with pytest.warns(UserWarning, match=r"no weight was switched off: .* more than 0\.005"):
        start(tmp_path / "a", lr=1e-6, epochs=1)


def test_steps_of_a_run_in_micro_batches_are_those_of_the_whole(tmp_path):
    # Adam moves by the sign of gradients that are rounded to 0, so that SGD is compared.
    values = {"optimizer": "sgd", "lr": 1.0}
    start(tmp_path / "whole", **values)
    start(tmp_path / "cut", micro_batch_size=5, **values)
    for name, tensor in weights(tmp_path / "whole").items():
        if name.endswith("scores"):
            other = weights(tmp_path / "cut")[name]
            near = (tensor - other).abs() < 1e-6
            # A draw may fall between two roundings of one probability.
            assert near.float().mean() > 0.99
            assert (tensor != 0.01).float().mean() > 0.5


def test_an_averaged_run_keeps_the_statistics_of_the_base_model(tmp_path):
    start(tmp_path / "a", model="cnn", keep="swa", average_from=0.0)
    recipe = Recipe.from_flat({**SMALL, "model": "cnn"})
    model = apply_mask(prepare(recipe).built.model, tmp_path / "a/mask.safetensors")
    baked = weights(tmp_path / "a", "baked")
    assert all(torch.equal(tensor, baked[name]) for name, tensor in model.state_dict().items())


def test_measured_and_logged_runs_end(tmp_path):
    start(tmp_path / "a", perturb="nso", sigma=1e-4, keep="ema", measure=True, probes=2, draws=2)
    found = json.loads((tmp_path / "a/results.json").read_text())
    assert found["curvature"] is not None
