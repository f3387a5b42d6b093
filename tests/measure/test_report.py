import json
import math

import pytest
import torch
from torch import nn

import flatminima
from flatminima.errors import InputError
from flatminima.measure import CurvatureReport, Hessian, curvature, hessian_trace
from flatminima.objectives import OwnLoss, Supervised, as_objective

from .cases import cross_entropy, dense_hessian, mlp, split


def test_a_report_measures_everything_in_one_call():
    model, batch = mlp()
    stages = []
    report = curvature(
        model,
        cross_entropy,
        split(batch, 20, 4),
        sigma=(0.01, 0.02),
        probes=30,
        eigenvalues=2,
        draws=20,
        density=True,
        progress=lambda stage, done, total: stages.append((stage, done == total)),
    )
    assert report.loss == pytest.approx(cross_entropy(model.eval(), batch).item(), rel=1e-12)
    assert (report.samples, report.parameters) == (24, 57)
    assert list(report.layers) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert len(report.top_eigenvalue.values) == 2
    assert report.sigma == 0.01
    assert len(report.noise_stability.points) == 2
    assert report.predicted_gap.value == pytest.approx(0.01**2 / 2 * report.trace.value)
    smoothed = 2 / 0.01**2 * report.perturbation_gap.value
    assert report.smoothed_curvature.value == pytest.approx(smoothed)
    assert report.density.moment(1).value == pytest.approx(report.trace.value, rel=0.5)
    assert 0 < report.criteria.edge_ratio < 1
    assert report.stopped == "done"
    for stage in ("trace", "noise stability", "eigenvalues", "density"):
        assert [full for name, full in stages if name == stage][-1]
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert CurvatureReport.from_dict(data) == report


def test_a_report_prints_as_a_table():
    model, batch = mlp()
    report = curvature(model, cross_entropy, split(batch, 12, 12), sigma=0.01, draws=5)
    rows = dict(line.split("  ", 1) for line in str(report).splitlines() if line[0] != " ")
    largest = sorted(report.layers, key=lambda name: -abs(report.layers[name].value))
    assert list(rows) == [
        "loss",
        "Hessian trace",
        "smoothed curvature, sigma 0.01",
        "gap F - f at sigma 0.01",
        "top eigenvalue",
        *(f"trace of {name}" for name in largest),
        "cost",
    ]
    assert rows["Hessian trace"].strip().startswith(str(report.trace))
    assert "other samples: ±" in rows["Hessian trace"]
    assert rows[f"trace of {largest[3]}"].strip() == str(report.layers[largest[3]])
    assert f"{report.trace.hvps + report.top_eigenvalue.hvps} HVPs" in rows["cost"]


def test_without_sigma_there_is_no_noise():
    model, batch = mlp()
    report = curvature(model, cross_entropy, [batch], probes=10)
    assert report.noise_stability is None
    assert report.perturbation_gap is None
    assert report.predicted_gap is None
    assert report.smoothed_curvature is None
    assert report.sigma is None
    assert torch.is_grad_enabled()


def test_only_some_parameters_by_name_or_by_a_generator():
    model, batch = mlp()
    by_name = curvature(model, cross_entropy, [batch], sigma=0.01, params="0.*")
    again = curvature(model, cross_entropy, [batch], sigma=0.01, params=model[0].parameters())
    assert list(by_name.layers) == ["0.weight", "0.bias"]
    assert again.trace.value == by_name.trace.value
    assert again.perturbation_gap.value == by_name.perturbation_gap.value


def test_an_error_target_takes_as_many_probes_as_it_needs():
    model, batch = mlp()
    loose, tight = (curvature(model, cross_entropy, [batch], rel_error=e) for e in (0.3, 0.02))
    for report, target in ((loose, 0.3), (tight, 0.02)):
        assert report.trace.stderr <= target * abs(report.trace.value)
    assert tight.trace.hvps > loose.trace.hvps
    assert tight.stopped == "done"
    missed = curvature(model, cross_entropy, [batch], rel_error=1e-3, probes=20)
    assert missed.stopped == "rel_error"
    assert "rel_error was not reached" in str(missed)


@pytest.mark.parametrize("gradients", [60, 200, 1000])
def test_a_budget_of_gradients_is_kept(gradients):
    model, batch = mlp(hidden=40)
    passes = []

    def counted(m, b):
        passes.append(1)
        return cross_entropy(m, b)

    report = curvature(
        model, counted, [batch], sigma=0.01, probes=5000, draws=400, max_gradients=gradients
    )
    hvps = report.trace.hvps + report.top_eigenvalue.hvps
    forwards = 2 * report.perturbation_gap.samples + 1
    assert 0.5 * gradients < 2 * hvps + forwards / 3 <= gradients
    assert report.stopped == "budget"


def test_a_budget_of_seconds_cuts_all_parts_short():
    model, batch = mlp(hidden=40)
    report = curvature(
        model, cross_entropy, [batch], sigma=0.01, probes=10**6, draws=10**6, max_seconds=0.2
    )
    assert report.trace.stopped == "max_seconds"
    assert report.perturbation_gap.samples < 10**6
    assert report.stopped == "budget"
    assert "stopped early: budget" in str(report)


def test_an_exact_trace_within_its_budget_is_all_there_is_to_have():
    model, batch = mlp()
    assert curvature(model, cross_entropy, [batch], max_gradients=5000).stopped == "done"


@pytest.mark.parametrize("stage", ["trace", "noise stability", "eigenvalues"])
def test_an_interrupt_leaves_what_there_is(stage):
    model, batch = mlp(hidden=40)

    def progress(now, done, total):
        if now == stage and done >= min(total, 20):
            raise KeyboardInterrupt

    arguments = {"sigma": 0.01, "probes": 60, "progress": progress}
    report = curvature(model, cross_entropy, split(batch, 12, 12), **arguments)
    assert report.stopped == "interrupted"
    assert report.trace.samples >= 2
    assert (report.noise_stability is None) == (stage != "eigenvalues")
    assert str(report)
    assert CurvatureReport.from_dict(report.to_dict()) == report
    with pytest.raises(KeyboardInterrupt):
        curvature(model, cross_entropy, [batch], **arguments, keep_interrupted=False)


def test_a_report_draws_itself(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    model, batch = mlp()
    for extra, panels in (({}, 2), ({"sigma": (0.01, 0.1), "density": True}, 3)):
        figure = curvature(model, cross_entropy, [batch], draws=5, **extra).plot()
        assert len(figure.axes) == panels
        figure.savefig(tmp_path / "report.png")
        pyplot.close(figure)


def test_torchs_losses_are_taken_as_they_are():
    model, batch = mlp()
    reports = [
        flatminima.curvature(model, loss, [batch])
        for loss in (nn.CrossEntropyLoss(), nn.functional.cross_entropy, Supervised())
    ]
    assert len({report.trace.value for report in reports}) == 1


def test_a_model_of_16_bits_is_measured_in_32():
    model, (x, y) = mlp()
    coarse, x = model.bfloat16(), x.bfloat16()
    before = [p.clone() for p in coarse.parameters()]
    report = curvature(coarse, cross_entropy, [(x, y)], sigma=0.01)
    fine = mlp()[0].bfloat16().float()
    same = curvature(fine, cross_entropy, [(x.float(), y)], sigma=0.01)
    assert report.trace.value == pytest.approx(same.trace.value, rel=1e-4)
    assert report.perturbation_gap.value == pytest.approx(same.perturbation_gap.value, rel=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, coarse.parameters(), strict=True))


def test_a_model_that_returns_its_own_loss():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 2)

        def forward(self, x, labels):
            return type("Output", (), {"loss": nn.functional.cross_entropy(self.body(x), labels)})()

    torch.manual_seed(0)
    model, batch = Own(), {"x": torch.randn(5, 3), "labels": torch.tensor([0, 1, 1, 0, 1])}
    own = curvature(model, None, [batch])
    body = curvature(model.body, nn.CrossEntropyLoss(), [(batch["x"], batch["labels"])])
    assert own.trace.value == pytest.approx(body.trace.value, rel=1e-6)
    assert own.samples == 5
    with pytest.raises(InputError, match="give batches that are mappings"):
        curvature(model, None, [(batch["x"], batch["labels"])])


def test_losses_that_cannot_be_meant():
    with pytest.raises(InputError, match="reduction='sum'"):
        as_objective(nn.CrossEntropyLoss(reduction="sum"))
    with pytest.raises(InputError, match="the loss is a str"):
        as_objective("cross_entropy")
    assert isinstance(as_objective(None), OwnLoss)
    with pytest.raises(InputError, match="returned no loss"):
        OwnLoss()(nn.Identity(), {"input": torch.ones(2)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": 0}, "probes is 0"),
        ({"eigenvalues": 0}, "eigenvalues is 0"),
        ({"draws": 0}, "draws is 0"),
        ({"sigma": -1}, "sigma is -1"),
        ({"sigma": (0.1, math.nan)}, "sigma is nan"),
        ({"max_seconds": 0}, "max_seconds is 0"),
        ({"max_gradients": 10}, "max_gradients is 10: give at least 60"),
        ({"rel_error": 0}, "rel_error is 0"),
        ({"params": "nothing.*"}, "nothing"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    model, batch = mlp()
    with pytest.raises(InputError, match=message):
        curvature(model, cross_entropy, [batch], **arguments)


def test_a_report_of_another_version_is_refused():
    with pytest.raises(InputError, match="measure again"):
        CurvatureReport.from_dict({"trace": None})


def test_an_error_that_small_networks_do_not_reach_by_probes_is_had_exactly():
    model, batch = mlp()
    found = curvature(model, cross_entropy, [batch], rel_error=1e-6)
    assert found.stopped == "done"
    assert found.trace.stderr == 0
    n = found.parameters
    assert found.trace.hvps <= 1.5 * n
    exact = hessian_trace(Hessian(model, cross_entropy, [batch]), probes=n)
    assert found.trace.value == pytest.approx(exact.value, rel=1e-10)


def test_what_was_found_is_kept_when_a_later_part_fails():
    model, batch = mlp()
    found = curvature(model, cross_entropy, [batch], sigma=[0.1, 1e300])
    assert found.stopped == "error"
    assert "noise_stability" in found.error
    assert found.trace.value == pytest.approx(curvature(model, cross_entropy, [batch]).trace.value)
    assert "stopped early: noise_stability" in str(found)
    assert CurvatureReport.from_dict(json.loads(json.dumps(found.to_dict()))).error == found.error


def test_too_many_eigenvalues_are_refused_before_anything_is_measured():
    model, batch = mlp()
    with pytest.raises(InputError, match="one for each parameter"):
        curvature(model, cross_entropy, [batch], eigenvalues=58)


def test_the_lowest_eigenvalue_is_found_where_asked_for():
    model, batch = mlp()
    found = curvature(model, cross_entropy, [batch], lowest=True)
    dense = torch.linalg.eigvalsh(dense_hessian(model, batch))
    assert found.lowest_eigenvalue.value == pytest.approx(dense[0].item(), rel=1e-2)
    assert "lowest eigenvalue" in str(found)
    assert curvature(model, cross_entropy, [batch]).lowest_eigenvalue is None


def test_a_small_budget_is_kept_also_by_the_later_parts():
    model, batch = mlp()
    settings = {"eigenvalues": 20, "density": True, "sigma": [0.1, 0.2, 0.3], "lowest": True}
    found = curvature(model, cross_entropy, [batch], max_gradients=60, **settings)
    assert found.stopped == "budget"
    parts = (found.trace, found.top_eigenvalue, found.lowest_eigenvalue, found.density)
    hvps = sum(part.hvps for part in parts if part is not None)
    assert 2.1 * hvps < 1.4 * 60
    assert found.top_eigenvalue is None


@pytest.mark.parametrize("sigma", [True, "a", float("nan"), 0, [0.1, "b"]])
def test_a_sigma_that_is_no_number_is_refused(sigma):
    model, batch = mlp()
    with pytest.raises(InputError, match="sigma is"):
        curvature(model, cross_entropy, [batch], sigma=sigma)


def test_tensors_are_taken_for_sigmas():
    model, batch = mlp()
    for sigma in (torch.tensor(0.1), torch.tensor([0.1]), (torch.tensor(0.1),)):
        found = curvature(model, cross_entropy, [batch], sigma=sigma, probes=5, draws=3)
        assert found.sigma == pytest.approx(0.1)


def test_a_function_of_outputs_and_targets_is_told_from_an_objective():
    model, batch = mlp()
    with pytest.raises(InputError, match="Supervised"):
        curvature(model, lambda o, t: nn.functional.cross_entropy(o, t), [batch])


@pytest.mark.parametrize("nested", [True, False])
def test_several_inputs_are_given_to_the_model_one_by_one(nested):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, x, z):
            return self.a(x) + self.b(z)

    torch.manual_seed(0)
    x, z, y = torch.randn(9, 3), torch.randn(9, 4), torch.randint(2, (9,))
    batch = ((x, z), y) if nested else (x, z, y)
    model = Two()
    found = curvature(model, nn.CrossEntropyLoss(), [batch])
    joined = nn.Linear(7, 2)
    with torch.no_grad():
        joined.weight.copy_(torch.cat([model.a.weight, model.b.weight], 1))
        joined.bias.copy_(model.a.bias + model.b.bias)
    other = curvature(joined, nn.CrossEntropyLoss(), [(torch.cat([x, z], 1), y)])
    assert found.loss == pytest.approx(other.loss, rel=1e-5)
    # The bias counts twice, being in both layers.
    twice = other.trace.value + other.layers["bias"].value
    assert found.trace.value == pytest.approx(twice, rel=1e-4)
    assert found.samples == 9


def test_what_was_measured_is_said():
    model, batch = mlp()
    assert curvature(model, cross_entropy, [batch]).selection == ""
    some = curvature(model, cross_entropy, [batch], params="*weight")
    assert some.selection == "*weight"
    tensors = curvature(model, cross_entropy, [batch], params=[next(model.parameters())])
    assert tensors.selection == "1 tensors"
