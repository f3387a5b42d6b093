"""The experiments on theory as ordinary runs: matrix sensing, and rates on a sum of cosines."""

import json

import numpy as np
import pytest
import torch

from flatminima.errors import InputError
from flatminima.objectives import SquaredError
from flatminima.training.data import DataSpec, load
from flatminima.training.data.encode import encode
from flatminima.training.loader import loader
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune
from flatminima.training.tasks import CosineSum, MatrixSensing
from flatminima.training.tasks.cosines import SIGMA
from flatminima.training.theory import Cosines, MatrixFactor

CPU = torch.device("cpu")


def batches(data, size=1000):
    return list(loader(encode(data.train, data), size))


def symmetric(row, d):
    """The matrix A of a measurement, the slow way."""
    a, upper = np.zeros((d, d)), np.triu_indices(d)
    a[upper] = row / np.where(upper[0] == upper[1], 1, 2)
    return a + np.triu(a, 1).T


def test_a_measurement_is_an_inner_product_with_a_symmetric_matrix():
    d = 7
    data = load(DataSpec(f"matrix-sensing(d={d};rank=2;measurements=12)"), 0)
    model = MatrixFactor(data.train.inputs.shape[1])
    product = (model.weight @ model.weight.T).detach().numpy()
    wanted = [np.sum(symmetric(row, d) * product) for row in data.train.inputs]
    found = model(torch.from_numpy(data.train.inputs)).detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_the_true_matrix_has_no_error_and_its_nuclear_norm():
    d = 6
    data = load(DataSpec(f"matrix-sensing(d={d};rank=6;measurements=40)"), 3)
    rows = np.stack([symmetric(row, d)[np.triu_indices(d)] for row in data.train.inputs])
    rows *= np.where(np.equal(*np.triu_indices(d)), 1, 2)
    upper = np.linalg.lstsq(rows, data.train.targets, rcond=None)[0]
    truth = np.zeros((d, d))
    truth[np.triu_indices(d)] = upper
    truth += np.triu(truth, 1).T
    model = MatrixFactor(rows.shape[1])
    values, vectors = np.linalg.eigh(truth)
    root = vectors * np.sqrt(np.maximum(values, 0))
    model.weight.data = torch.from_numpy(root).float()
    score = MatrixSensing().score(model, batches(data), CPU)
    assert score["error"] < 1e-8
    assert score["nuclear_norm"] == pytest.approx(data.report["details"]["nuclear_norm"], rel=1e-4)


def test_the_trace_at_zero_loss_is_what_the_proposition_says():
    data = load(DataSpec("matrix-sensing(d=5;rank=1;measurements=30)"), 0)
    d, (batch,) = 5, batches(data)
    model = MatrixFactor(15).double()
    batch = {"inputs": batch["inputs"].double(), "targets": None}
    batch["targets"] = model(batch["inputs"]).detach()  # so that the weights interpolate

    def loss(weight):
        product = (weight @ weight.T).flatten()[model.upper]
        return SquaredError(scale=0.25).scale * torch.nn.functional.mse_loss(
            batch["inputs"] @ product, batch["targets"]
        )

    hessian = torch.autograd.functional.hessian(loss, model.weight.detach())
    trace = hessian.reshape(d * d, d * d).trace().item()
    weight = model.weight.detach().numpy()
    measured = [symmetric(row, d) for row in data.train.inputs.astype(np.float64)]
    wanted = 2 * np.mean([np.sum((a @ weight) ** 2) for a in measured])
    assert trace == pytest.approx(wanted, rel=1e-5)


def test_noise_finds_the_matrix_of_low_rank_and_descent_does_not(tmp_path):
    found = {}
    for method in ("plain", "wp-sgd:num_perturbations=2", "nso"):
        asked = Recipe.from_flat(
            {
                "data": "matrix-sensing(d=20;rank=1;measurements=100)",
                "perturb": method,
                "sigma": 0.08,
                "lr": 0.01,
                "momentum": 0.0,
                "lr_schedule": "constant",
                "epochs": 1500,
                "batch_size": 100,
                "save_every": 1500,
                "measure": False,
            }
        )
        results = finetune(asked, tmp_path / method.partition(":")[0], say=lambda text: None)
        found[method] = results["metrics"]["test_error"]
    assert found["plain"] > 1
    assert found["nso"] < 0.05
    assert found["wp-sgd:num_perturbations=2"] < 0.05


def test_the_gradient_of_the_smoothed_cosines_is_that_of_its_closed_form():
    data = load(DataSpec("cosines(d=4;terms=9)"), 1)
    model = Cosines(4)
    a = torch.from_numpy(data.train.inputs).double()
    c = torch.from_numpy(data.train.targets).double()
    weight = model.weight.detach().double().requires_grad_()
    damping = torch.exp(-(SIGMA**2) / 2 * a.square().sum(dim=1))
    smoothed = (c * damping * torch.cos(a @ weight)).mean()
    (gradient,) = torch.autograd.grad(smoothed, weight)
    score = CosineSum().score(model, batches(data, 4), CPU)
    assert score["squared_gradient"] == pytest.approx(gradient.square().sum().item(), rel=1e-5)
    assert score["smoothed_loss"] == pytest.approx(smoothed.item(), rel=1e-5, abs=1e-9)


def test_the_mean_squared_gradient_is_below_the_bound_and_noise_falls_with_k(tmp_path):
    d, steps, rate, late = 10, 600, 1.0, {}
    for k in (1, 16):
        asked = Recipe.from_flat(
            {
                "data": f"cosines(d={d};terms=10)",
                "perturb": f"wp-sgd:num_perturbations={k}",
                "sigma": SIGMA,
                "lr": rate,
                "momentum": 0.0,
                "lr_schedule": "constant",
                "epochs": steps,
                "batch_size": 10,
                "save_every": steps,
                "measure": False,
            }
        )
        run = tmp_path / str(k)
        finetune(asked, run, say=lambda text: None)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        squared = [r["validation_squared_gradient"] for r in lines if "validation_loss" in r]
        height = json.loads((run / "data.json").read_text())["details"]["range"]
        assert len(squared) == steps
        assert np.mean(squared) < 2 * height / (rate * steps) + rate * SIGMA**2 * d / k
        late[k] = np.mean(squared[steps // 2 :])
    assert late[16] < late[1] / 4


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="no rank of 9"):
        load(DataSpec("matrix-sensing(d=5;rank=9)"), 0)
    with pytest.raises(InputError, match=r"measurements is 2\.5"):
        load(DataSpec("matrix-sensing(measurements=2.5)"), 0)
    with pytest.raises(InputError, match="unknown option of matrix-sensing 'm'"):
        load(DataSpec("matrix-sensing(m=5)"), 0)
    with pytest.raises(InputError, match="terms of cosines is 0"):
        load(DataSpec("cosines(terms=0)"), 0)


def test_they_take_no_other_model_and_no_other_loss(tmp_path):
    small = {"data": "cosines(d=4;terms=9)", "measure": False}
    for changes, message in (
        ({"model": "mlp"}, "for the model 'cosines' alone"),
        ({"objective": "cross-entropy"}, "a loss of classification"),
    ):
        with pytest.raises(InputError, match=message):
            finetune(Recipe.from_flat({**small, **changes}), tmp_path / "a")


def test_validation_is_looked_at_as_seldom_as_asked(tmp_path):
    asked = {"data": "cosines(d=4;terms=9)", "measure": False, "epochs": 10, "batch_size": 9}
    finetune(Recipe.from_flat({**asked, "validate_every": 4}), tmp_path / "a", say=lambda t: None)
    lines = map(json.loads, (tmp_path / "a/metrics.jsonl").read_text().splitlines())
    assert [r["epoch"] for r in lines if "validation_loss" in r] == [4, 8, 10]
