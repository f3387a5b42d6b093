"""Self-tuning: what each step moves, what it finds where the truth is known, and going on."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima.errors import InputError
from flatminima.perturb import NSO
from flatminima.tuning.self_tuning import Knob, Knobs, SelfTuning, bake, gate, gated_layers

DOUBLE = torch.float64


def classifier() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


def batches(n: int, samples: int = 12, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(samples, 6, generator=generator),
            torch.randint(3, (samples,), generator=generator),
        )
        for _ in range(n)
    ]


def smoothed(model, batch, values):
    x, y = batch
    hot = nn.functional.one_hot(y, 3).float()
    part = values["smoothing"][:, None]
    loss = -((1 - part) * hot + part / 3).mul(model(x).log_softmax(1)).sum(1).mean()
    if "noise" in values:
        loss = loss + 0 * values["noise"].sum()
    return loss


def tuner(optimizer=None, knobs=None, objective=smoothed, validation=None, **options) -> SelfTuning:
    torch.manual_seed(0)
    knobs = knobs or Knobs({"smoothing": Knob(0.1, high=0.9), "noise": Knob(3, whole=True)})
    model = gate(classifier(), len(knobs))
    make = optimizer or (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    validation = batches(3, seed=1) if validation is None else validation
    return SelfTuning(model, knobs, make(model.parameters()), objective, validation, **options)


def weights(t: SelfTuning):
    return [p.detach().clone() for p in t.model.parameters()]


def knob_tensors(t: SelfTuning):
    return [t.knobs.position.detach().clone(), t.knobs.raw_scale.detach().clone()]


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_training_step_moves_the_weights_only_and_a_validation_step_the_knobs_only():
    t = tuner()
    (batch,) = batches(1)
    w, k = weights(t), knob_tensors(t)
    t.train_step(batch)
    assert same(knob_tensors(t), k)
    assert not any(torch.equal(a, b) for a, b in zip(weights(t), w, strict=True))
    assert t.knobs.position.grad is None
    w = weights(t)
    t.valid_step(batch)
    assert same(weights(t), w)
    assert all(p.grad is None for p in t.model.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(knob_tensors(t), k, strict=True))


def test_all_parameters_of_the_response_are_trained():
    t = tuner()
    names = [name for name, _ in t.model.named_parameters()]
    assert sum("response" in name for name in names) == 4
    before = dict(zip(names, weights(t), strict=True))
    t.train_step(batches(1)[0])
    for name, now in zip(names, weights(t), strict=True):
        assert not torch.equal(now, before[name]), name


def test_the_hypergradient_is_that_through_the_gates_and_nothing_else():
    t = tuner(tune_scales=False, lr=1e-3)
    (batch,) = batches(1, seed=3)
    for layer in gated_layers(t.model).values():
        nn.init.normal_(layer.slopes)
    model = copy.deepcopy(t.model).double().eval()
    x, y = batch[0].double(), batch[1]

    def at(position) -> float:
        for layer in gated_layers(model).values():
            layer.home.copy_(position)
        return cross_entropy(model(x), y).item()

    position, h = t.knobs.position.detach().double(), 1e-5
    slopes = []
    for i in range(2):
        e = torch.zeros(2, dtype=DOUBLE).index_fill(0, torch.tensor([i]), h)
        slopes.append((at(position + e) - at(position - e)) / (2 * h))
    before = t.knobs.position.detach().clone()
    t.valid_step(batch)
    assert t._adam.state[t.knobs.position]["exp_avg"].tolist() == pytest.approx(
        [0.1 * s for s in slopes], rel=1e-4
    )
    assert (before - t.knobs.position).sign().tolist() == [math.copysign(1, s) for s in slopes]


def test_without_slopes_the_knobs_stay():
    t = tuner(tune_scales=False)
    for layer in gated_layers(t.model).values():
        nn.init.zeros_(layer.slopes)
    before = t.knobs.position.detach().clone()
    t.valid_step(batches(1)[0])
    assert torch.equal(t.knobs.position, before)


def test_entropy_holds_the_scales_up():
    scales = {}
    for entropy in (0.0, 10.0):
        t = tuner(entropy=entropy, lr=0.05)
        for batch in batches(8):
            t.step(batch)
        scales[entropy] = t.knobs.scale.detach()
    assert (scales[10.0] > 0.55).all()
    assert (scales[10.0] > scales[0.0]).all()


def test_steps_alternate_after_the_warm_up():
    t = tuner(train_steps=3, valid_steps=2, warmup=6)
    seen = []
    for batch in batches(13):
        t.step(batch)
        seen.append(t.validations)
    assert seen == [0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 4, 4]
    assert [entry["step"] for entry in t.result().history] == [9, 9, 12, 12]


def test_gates_and_regularizer_are_given_the_same_draw():
    met = []

    def objective(model, batch, values):
        layer = model[0]
        met.append((layer.response.u.clone(), values["smoothing"].clone()))
        return smoothed(model, batch, values)

    t = tuner(objective=objective)
    for batch in batches(2):
        t.train_step(batch)
    for u, value in met:
        assert torch.equal(t.knobs.knobs["smoothing"].value(u[:, 0]), value)
        assert value.unique().numel() == 12
    assert not torch.equal(met[0][0], met[1][0])


def test_the_passes_of_a_step_share_its_draws_and_sigma_is_the_drawn_one():
    met = []

    def objective(model, batch, values):
        met.append((values["smoothing"].clone(), values["sigma"].item(), t.optimizer.param_groups))
        sigmas = {group["sigma"] for group in t.optimizer.param_groups}
        assert sigmas == {values["sigma"].item()}
        return smoothed(model, batch, values)

    knobs = Knobs(
        {
            "smoothing": Knob(0.1, high=0.9),
            "sigma": Knob(0.1, low=1e-3, high=1, log=True, shared=True),
        }
    )
    t = tuner(lambda p: NSO(torch.optim.SGD(p, lr=0.05), sigma=0.5, seed=0), knobs, objective)
    for batch in batches(4):
        t.step(batch)
    assert len(met) == 8
    for i in range(0, 8, 2):
        assert torch.equal(met[i][0], met[i + 1][0])
        assert met[i][1] == met[i + 1][1]
    assert len({m[1] for m in met}) == 4
    assert t.knobs.current()["sigma"] != pytest.approx(0.1, rel=1e-6)


def both(t: SelfTuning):
    return copy.deepcopy([t.model.state_dict(), t.optimizer.state_dict(), t.state_dict()])


@pytest.mark.parametrize("nso", [False, True])
def test_resuming_equals_never_having_stopped(nso):
    def optimizer(p):
        base = torch.optim.Adam(p, lr=0.01)
        return NSO(base, sigma=0.05, seed=1) if nso else base

    def plain():
        knobs = Knobs(
            {
                "smoothing": Knob(0.1, high=0.9),
                "sigma": Knob(0.1, low=1e-3, high=1, log=True, shared=True),
            },
            seed=5,
        )
        found = tuner(optimizer, knobs, warmup=2)
        found.model[2].p = 0.0
        return found

    straight = plain()
    data = batches(11)
    for i, batch in enumerate(data):
        straight.step(batch)
        if i == 4:
            states = both(straight)
    resumed = plain()
    resumed.knobs.noise(3, 1)
    resumed.model.load_state_dict(states[0])
    resumed.optimizer.load_state_dict(states[1])
    resumed.load_state_dict(states[2])
    for batch in data[5:]:
        resumed.step(batch)
    assert same(weights(straight), weights(resumed))
    assert same(knob_tensors(straight), knob_tensors(resumed))
    assert straight.result() == resumed.result()
    assert straight.validations == 4


def test_it_finds_the_input_noise_that_validates_best():
    """Linear regression: the best response to input noise is ridge, so the truth is a grid."""
    n, d = 30, 20
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=DOUBLE, generator=generator)

    truth = normal(d) / 4
    x, v = normal(n, d), normal(400, d)
    y, w = x @ truth + normal(n), v @ truth + normal(400)

    def validated(position: float) -> float:
        ridge = math.exp(2 * position) * torch.eye(d, dtype=DOUBLE)
        solution = torch.linalg.solve(x.T @ x / n + ridge, x.T @ y / n)
        return (v @ solution - w).square().mean().item()

    best = min(torch.linspace(-3, 1, 401).tolist(), key=validated)

    def noisy(model, batch, values):
        noise = normal(8 * n, d)
        inputs = batch[0] + values["noise"].exp()[:, None] * noise
        return (model(inputs)[:, 0] - batch[1]).square().mean()

    def squared(model, batch):
        return (model(batch[0])[:, 0] - batch[1]).square().mean()

    torch.manual_seed(0)
    knobs = Knobs({"noise": Knob(-2.5, low=-math.inf)}, dtype=DOUBLE)
    model = gate(nn.Linear(d, 1, bias=False, dtype=DOUBLE), 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    t = SelfTuning(
        model, knobs, optimizer, noisy, [(v, w)], validation_objective=squared, lr=0.02, warmup=300
    )
    for _ in range(3300):
        t.step((x.repeat(8, 1), y.repeat(8)))
    late = [entry["values"]["noise"] for entry in t.history[-200:]]
    assert abs(sum(late) / len(late) - best) < 0.2
    assert squared(bake(copy.deepcopy(model)), (v, w)).item() < 1.01 * validated(best)
    assert validated(-2.5) > 1.02 * validated(best)


def test_a_result_is_saved_and_drawn():
    import json

    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    t = tuner()
    for batch in batches(4):
        t.step(batch)
    found = t.result()
    assert json.loads(json.dumps(found.to_dict()))["validations"] == 2
    assert "smoothing" in str(found)
    assert found.plot().get_xlabel() == "training step"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation": []}, "there is no validation batch"),
        ({"validation": iter(batches(2))}, "give a list of batches"),
        ({"validation": {"inputs": 1}}, "give a list of batches"),
        ({"train_steps": 0}, "train_steps is 0"),
        ({"valid_steps": 1.5}, "valid_steps is 1.5"),
        ({"warmup": -1}, "warmup is -1"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"entropy": -1.0}, "entropy is -1.0"),
    ],
)
def test_what_cannot_work_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        tuner(**options)


def test_a_strength_that_is_drawn_for_each_sample_is_refused():
    knobs = Knobs({"smoothing": Knob(0.1, high=0.9), "sigma": Knob(0.1)})
    with pytest.raises(InputError, match="give it shared=True"):
        tuner(lambda p: NSO(torch.optim.SGD(p, lr=0.05), sigma=0.5), knobs)


def test_gates_for_other_knobs_are_refused():
    knobs = Knobs({"smoothing": Knob(0.1)})
    model = gate(classifier(), 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="for 2 knobs, and there are 1"):
        SelfTuning(model, knobs, optimizer, smoothed, batches(1))


def test_a_hypergradient_that_is_not_finite_names_the_knob_and_moves_nothing():
    t = tuner(tune_scales=False)
    t.train_step(batches(1)[0])
    layer = next(iter(gated_layers(t.model).values()))
    with torch.no_grad():
        layer.slopes[:, 1] = math.nan
    before = knob_tensors(t)
    with pytest.raises(InputError, match="hypergradient of smoothing, noise is not finite"):
        t.valid_step(batches(1)[0])
    assert same(knob_tensors(t), before)
