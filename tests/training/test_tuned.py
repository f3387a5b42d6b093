"""Runs that tune their own settings: while training, by MAID, by a sweep."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from flatminima.errors import InputError
from flatminima.objectives import LabelSmoothing
from flatminima.reparam import DistancePenalty
from flatminima.training import loop
from flatminima.training.checks import for_methods
from flatminima.training.input_noise import NoisyInputs, with_noise
from flatminima.training.interrupts import Interrupted
from flatminima.training.knobs import asked_knobs, check_tuner_is_used, with_values
from flatminima.training.methods import specialize
from flatminima.training.prepared import prepare
from flatminima.training.recipe import Recipe
from flatminima.training.reparametrized import reparam
from flatminima.training.run import finetune, resume
from flatminima.training.self_tuned import AtDrawnKnobs
from flatminima.training.settled import grid
from flatminima.tuning import Knob, gate, tune_penalties
from flatminima.tuning.self_tuning.gating import response_of, set_home

SMALL = {"epochs": 3, "measure": False, "pretrain": False, "validation_fraction": 0.3}
ALL = "sigma,weight_decay,distance_penalty,label_smoothing,input_noise"


def recipe(**values):
    return Recipe.from_flat({**SMALL, **values})


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_bits(one, other) -> bool:
    one, other = (load_file(run / "checkpoints/last/model.safetensors") for run in (one, other))
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_self_tuned_run_logs_the_way_of_its_knobs_and_leaves_an_ordinary_model(tmp_path):
    results = finetune(recipe(perturb="nso", tune=ALL, tune_warmup=0.2), tmp_path / "a")
    tuned = [record for record in lines(tmp_path / "a") if "tuned" in record]
    steps = results["steps"]
    assert [record["step"] for record in tuned] == [*range(4, steps + 1, 2)]
    assert results["metrics"]["gradients"] == 2 * steps + len(tuned)
    assert results["tuned"]["validation_steps"] == len(tuned)
    assert results["tuned"]["values"] == pytest.approx(tuned[-1]["tuned"])
    assert list(results["tuned"]["values"]) == ALL.split(",")
    starts = {"sigma": 0.1, "weight_decay": 1e-3, "distance_penalty": 1e-3}
    for name, start in starts.items():
        assert results["tuned"]["values"][name] != pytest.approx(start, rel=1e-4)
    ordinary = prepare(recipe()).built.model
    baked = load_file(tmp_path / "a/checkpoints/baked/model.safetensors")
    assert baked.keys() == ordinary.state_dict().keys()
    gated = load_file(tmp_path / "a/checkpoints/last/model.safetensors")
    assert len(gated) > len(baked)
    home, slopes = gated["1.home"], gated["1.slopes"]
    across = (slopes @ home)[: len(gated["1.weight"]), None]
    torch.testing.assert_close(
        baked["1.weight"], gated["1.weight"] + across * gated["1.response_weight"]
    )


def test_a_model_with_gates_begins_as_the_ordinary_one_and_draws_no_random_number():
    ordinary, tuned = prepare(recipe()), prepare(recipe(tune="weight_decay"))
    before = torch.get_rng_state()
    reparam(tuned.recipe, tuned.built.model)
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(4, 64)
    assert torch.equal(tuned.built.model.eval()(x), ordinary.built.model.eval()(x))


@pytest.mark.parametrize("method", ["plain", "nso"])
def test_a_self_tuned_run_resumes_bit_for_bit(tmp_path, monkeypatch, method):
    tune = "weight_decay,label_smoothing,input_noise" + (",sigma" if method == "nso" else "")
    values = {"perturb": method, "tune": tune, "save_every": 1, "tune_warmup": 0.0, "epochs": 2}
    finetune(recipe(**values), tmp_path / "straight")
    save = loop.save

    def die(run, state, name="last"):
        save(run, state, name)
        if state.step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save", die)
    with pytest.raises(KeyboardInterrupt):
        finetune(recipe(**values), tmp_path / "cut")
    monkeypatch.setattr(loop, "save", save)
    resume(tmp_path / "cut")
    assert same_bits(tmp_path / "straight", tmp_path / "cut")
    ways = [
        [record.get("tuned") for record in lines(tmp_path / run) if "loss" in record]
        for run in ("straight", "cut")
    ]
    assert ways[0] == ways[1]


def test_noise_is_added_to_the_weights_that_answer_and_not_to_the_answers(tmp_path, monkeypatch):
    seen = []
    objective = AtDrawnKnobs.__call__

    def spy(self, model, batch, values):
        layer = self._layers[0]
        seen.append([p.detach().clone() for p in (layer.weight, layer.response_weight)])
        return objective(self, model, batch, values)

    monkeypatch.setattr(AtDrawnKnobs, "__call__", spy)
    finetune(recipe(perturb="nso", tune="sigma", epochs=1), tmp_path / "a")
    for one, other in zip(seen[::2], seen[1::2], strict=True):
        assert not torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_the_tuned_regularizers_are_those_of_the_library():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    distance = DistancePenalty(network, 0.3)
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    model = gate(network, 2)
    loss = AtDrawnKnobs(lambda m, b: cross_entropy(m(b[0]), b[1]), model, ["distance_penalty"])
    with torch.no_grad():
        model[0].weight.add_(0.1)
    values = {name: torch.tensor(v) for name, v in (("distance_penalty", 0.3),)}
    expected = cross_entropy(model(x), y) + 0.3 * distance.penalty()
    torch.testing.assert_close(loss(model, (x, y), values), expected)

    decay = AtDrawnKnobs(loss.objective, model, ["weight_decay"])
    squares = model[0].weight.square().sum() + model[2].weight.square().sum()
    torch.testing.assert_close(
        decay(model, (x, y), {"weight_decay": torch.tensor(0.2)}),
        cross_entropy(model(x), y) + 0.1 * squares,
    )
    smooth = decay(model, (x, y), {"label_smoothing": torch.full((6,), 0.3)})
    torch.testing.assert_close(smooth, LabelSmoothing(0.3)(model.train(), (x, y)))


def test_penalties_are_of_the_weights_at_the_draw():
    torch.manual_seed(0)
    model = gate(torch.nn.Sequential(torch.nn.Linear(4, 3)), 1)
    set_home(model, torch.tensor([2.0]))
    torch.nn.init.normal_(model[0].slopes)
    decay = AtDrawnKnobs(lambda m, b: torch.zeros(()), model, ["weight_decay"])
    u = torch.tensor([[-1.3]])
    with response_of(model).to(u):
        found = decay(model, None, {"weight_decay": torch.tensor(2.0)})
    torch.testing.assert_close(found, model[0].at(u)[0].square().sum())


def test_maid_sets_the_penalties_before_the_run_and_a_resumed_run_keeps_them(tmp_path):
    values = {"tune": "weight_decay,distance_penalty", "tuner": "maid"}
    results = finetune(recipe(**values), tmp_path / "a")
    found = results["tuned"]
    assert found["certified"]
    assert found["validation_of_head"][1] < found["validation_of_head"][0]
    prepared = prepare(recipe(**values))
    data = prepared.data
    from flatminima.training.data.encode import encode
    from flatminima.training.loader import loader

    parts = [
        loader(encode(part, data, prepared.built.encoding), 256)
        for part in (data.train, data.validation)
    ]
    again = tune_penalties(prepared.built.model, *parts, knobs=["weight_decay", "distance_penalty"])
    assert again.penalties == pytest.approx(found["values"])

    plain = with_values(recipe(), found["values"])
    assert plain.reparam.reparam.startswith("distance-penalty(weight=")
    finetune(plain, tmp_path / "by-hand")
    assert same_bits(tmp_path / "a", tmp_path / "by-hand")

    changed = {**found, "values": {"weight_decay": 0.5, "distance_penalty": 0.25}}
    (tmp_path / "a/tuned.json").write_text(json.dumps(changed))
    (tmp_path / "a/results.json").unlink()
    assert resume(tmp_path / "a")["tuned"]["values"]["weight_decay"] == 0.5


def test_the_knobs_of_the_best_weights_are_those_reported(tmp_path, monkeypatch):
    # The second epoch's end is made the best.
    scores = iter([0.5, 0.9, 0.1])
    monkeypatch.setattr(loop, "_validate", lambda run: {"accuracy": next(scores), "loss": 1.0})
    results = finetune(
        recipe(tune="weight_decay", tune_warmup=0.0, tune_lr=0.3, keep="best"), tmp_path / "a"
    )
    way = {record["step"]: record["tuned"] for record in lines(tmp_path / "a") if "tuned" in record}
    last_of_second = max(step for step in way if step <= results["steps"] * 2 // 3)
    assert results["tuned"]["values"] == pytest.approx(way[last_of_second])
    assert results["tuned"]["values"] != pytest.approx(way[max(way)], rel=1e-3)


def test_settings_of_a_tuner_without_a_knob_are_refused():
    check_tuner_is_used(recipe())
    check_tuner_is_used(recipe(tuner="maid", perturb="plain:tune=weight_decay"))
    with pytest.raises(InputError, match="--tuner is of a tuner"):
        check_tuner_is_used(recipe(tuner="maid"))
    with pytest.raises(InputError, match="--tune-trials is of a tuner"):
        check_tuner_is_used(recipe(tune_trials=9))
    with pytest.raises(InputError, match="names no knob"):
        check_tuner_is_used(recipe(tune=" ,"))


def test_maid_starts_where_the_recipe_says():
    asked = recipe(tune="weight_decay,distance_penalty(start=0.3)", tuner="maid")
    knobs = asked_knobs(asked)
    assert (knobs["weight_decay"].start, knobs["distance_penalty"].start) == (0.01, 0.3)
    assert asked_knobs(asked.but(weight_decay=2.0))["weight_decay"].start == 2.0


def test_maid_holds_a_weight_decay_that_is_not_tuned(tmp_path):
    values = {"tune": "distance_penalty", "tuner": "maid", "epochs": 1}
    ends = [
        finetune(recipe(**values, weight_decay=w), tmp_path / str(w))["tuned"]["validation_of_head"]
        for w in (0.01, 1.0)
    ]
    # All of it is in the head's loss, so what the head begins at depends on it.
    assert ends[0][0] != pytest.approx(ends[1][0], rel=1e-3)


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path, monkeypatch):
    values = {"tune": "weight_decay", "tuner": "sweep", "epochs": 10}
    finetune(recipe(**values), tmp_path / "whole")
    saved, real = [], loop.save

    def stops(run, state, name="last"):
        real(run, state, name)
        saved.append(state.step)
        if len(saved) == 5:
            raise Interrupted("stopped")

    monkeypatch.setattr(loop, "save", stops)
    with pytest.raises(Interrupted, match=rf"in trial 2 of 4.*--resume {tmp_path / 'cut'}$"):
        finetune(recipe(**values), tmp_path / "cut")
    monkeypatch.setattr(loop, "save", real)
    found = resume(tmp_path / "cut")
    assert found["tuned"] == json.loads((tmp_path / "whole/results.json").read_text())["tuned"]
    assert same_bits(tmp_path / "cut", tmp_path / "whole")


def test_a_trial_that_diverges_is_not_the_best_and_ends_nothing(tmp_path, monkeypatch):
    real = loop.gather_gradient

    def breaks(run, state, samples, batch):
        loss = real(run, state, samples, batch)
        return loss * math.nan if run.directory.path.name == "2" and state.step == 3 else loss

    monkeypatch.setattr(loop, "gather_gradient", breaks)
    values = {"tune": "weight_decay", "tuner": "sweep", "epochs": 10}
    trials = finetune(recipe(**values), tmp_path / "a")["tuned"]["trials"]
    assert [trial["validation_loss"] is None for trial in trials] == [False, False, True, False]
    assert trials[2]["gradients"] == 3
    monkeypatch.setattr(loop, "gather_gradient", lambda *given: real(*given) * math.nan)
    with pytest.raises(InputError, match="no trial has a finite validation loss"):
        finetune(recipe(**values), tmp_path / "b")
    assert not (tmp_path / "b/trials").exists()


def test_a_sweep_may_lie_beside_where_the_knob_starts():
    knob = asked_knobs(recipe(tune="input_noise(low=0.2;high=0.8)", tuner="sweep"))["input_noise"]
    assert [p["input_noise"] for p in grid({"input_noise": knob}, 2)] == pytest.approx(
        [0.2 * 4**0.25, 0.2 * 4**0.75]
    )


def test_a_sweep_shares_the_epochs_and_takes_the_best_trial(tmp_path):
    values = {"tune": "weight_decay,label_smoothing", "tuner": "sweep", "epochs": 10}
    results = finetune(recipe(**values), tmp_path / "a")
    found = results["tuned"]
    assert len(found["trials"]) == 4
    assert found["epochs"] == 2
    best = min(found["trials"], key=lambda t: t["validation_loss"])
    assert found["values"] == best["values"]
    # The run is the best trial again: same seed, same length.
    assert results["metrics"]["validation_loss"] == pytest.approx(best["validation_loss"])
    assert results["metrics"]["gradients"] == best["gradients"]


def test_a_grid_lies_evenly_on_each_knobs_own_scale():
    knobs = {
        "a": Knob(0.5, low=0.01, high=100, log=True),
        "b": Knob(0.1, low=0, high=0.8),
    }
    assert grid(knobs, 5) == [
        pytest.approx(point)
        for point in (
            {"a": 0.1, "b": 0.2},
            {"a": 0.1, "b": 0.6},
            {"a": 10.0, "b": 0.2},
            {"a": 10.0, "b": 0.6},
        )
    ]
    assert [p["b"] for p in grid({"b": knobs["b"]}, 4)] == pytest.approx([0.1, 0.3, 0.5, 0.7])
    with pytest.raises(InputError, match="give 4 or more"):
        grid(knobs, 3)


def test_one_method_of_a_comparison_may_tune_itself():
    methods = ["plain", "plain:tune=weight_decay+input_noise", "nso:tune=sigma:tuner=sweep"]
    recipes = for_methods(recipe(), methods)
    assert specialize(recipes[methods[0]]).tune.tune is None
    assert list(asked_knobs(specialize(recipes[methods[1]]))) == ["weight_decay", "input_noise"]
    assert specialize(recipes[methods[2]]).tune.tuner == "sweep"
    with pytest.raises(InputError, match="'plain' has no strength"):
        for_methods(recipe(), ["plain:tune=sigma"])


def test_knobs_begin_at_the_recipes_own_values():
    asked = recipe(
        perturb="nso", sigma=0.2, weight_decay=0.02, objective="label-smoothing(alpha=0.3)"
    ).but(tune="sigma,weight_decay(high=0.1),label_smoothing")
    knobs = asked_knobs(asked)
    assert (knobs["sigma"].low, knobs["sigma"].start) == (0.02, 0.2)
    assert (knobs["weight_decay"].start, knobs["weight_decay"].high) == (0.02, 0.1)
    assert knobs["label_smoothing"].start == 0.3


def test_noise_on_inputs_has_the_strength_of_each_sample():
    strength = torch.tensor([0.0, 0.1, 10.0])
    inputs, _ = with_noise((torch.zeros(3, 2, 50, 50), torch.zeros(3)), strength)
    found = inputs.flatten(1).std(dim=1)
    torch.testing.assert_close(found, strength, rtol=0.05, atol=0)
    model = torch.nn.Identity().eval()
    noisy = NoisyInputs(lambda m, b: b[0].sum(), 1.0)
    assert noisy(model, (torch.zeros(3), torch.zeros(3))) == 0
    assert noisy(model.train(), (torch.zeros(3), torch.zeros(3))) != 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tune": "lr"}, "unknown knob of --tune 'lr'.*it does not change what training conv"),
        ({"tune": "batch_size"}, "it is counted"),
        ({"tune": "sigma"}, "'plain' has no strength"),
        ({"tune": "rho", "perturb": "nso"}, "'nso' has sigma"),
        ({"tune": "sigma", "perturb": "nso:sigma=0.1"}, "sets sigma itself"),
        ({"tune": "sigma", "perturb": "nso", "sigma": 0.0}, "give one above 0"),
        ({"tune": "weight_decay,weight_decay"}, "names weight_decay twice"),
        ({"tune": "weight_decay(low=1;high=0.1)"}, "low must be below high"),
        ({"tune": "weight_decay(start=2)"}, "start between them"),
        ({"tune": "weight_decay(lowest=2)"}, "unknown option of the knob"),
        ({"tune": "weight_decay(low=a)"}, "give a number"),
        ({"tune": "weight_decay", "validation_fraction": 0.0}, "set --validation-fraction"),
        (
            {"tune": "distance_penalty", "reparam": "distance-constraint(radius=1)"},
            "takes the place of --reparam",
        ),
        ({"tune": "label_smoothing", "objective": "mixup"}, "--objective is mixup"),
        ({"tune": "weight_decay", "reparam": "distance-penalty(weight=1)"}, "--reparam"),
        ({"tune": "weight_decay", "keep": "ema"}, "--keep ema"),
        ({"tune": "weight_decay", "measure_every": 1}, "--measure-every"),
        ({"tune": "weight_decay", "live_trace": True, "perturb": "nso"}, "--live-trace"),
        (
            {"tune": "sigma", "perturb": "nso", "strength_schedule": "linear"},
            "--strength-schedule",
        ),
        ({"tune": "label_smoothing", "tuner": "maid"}, "take --tuner stn or --tuner sweep"),
        ({"tune": "sigma", "perturb": "nso", "tuner": "maid"}, "no part of the head's problem"),
        ({"tune": "weight_decay(low=0.1)", "tuner": "maid"}, "maid makes no use of low"),
        ({"tune": "weight_decay(start=0)", "tuner": "maid"}, "start between them"),
        ({"tune": "input_noise(start=0.2)", "tuner": "sweep"}, "sweep makes no use of start"),
        ({"tune": "weight_decay", "tuner": "sweep", "epochs": 3}, "are shared by 4 trials"),
        ({"tune_trials": 1}, "--tune-trials is 1"),
        ({"tuner": "bayes"}, "unknown value of --tuner"),
        ({"tune_lr": math.nan}, "--tune-lr is nan"),
        ({"input_noise": -1.0}, "--input-noise is -1"),
    ],
)
def test_what_cannot_be_tuned_is_refused(tmp_path, values, words):
    with pytest.raises(InputError, match=words):
        finetune(recipe(**values), tmp_path / "a")
    assert not (tmp_path / "a/recipe.yaml").exists()
