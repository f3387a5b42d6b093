"""The first screen says who won, and only what the numbers show."""

from dataclasses import replace

import pytest

from flatminima.report import read
from flatminima.report.comparing import excludes_zero, verdict
from flatminima.study.statistics import paired
from report.conftest import write_run, write_study


def of(tmp_path, methods, seeds=5, **settings):
    return verdict(read([write_study(tmp_path / "study", methods, seeds, **settings)]))


def test_a_clear_winner_is_named_with_its_gain(tmp_path):
    found = of(tmp_path, {"plain": 0.6, "nso": 0.8, "sam": 0.7})
    assert found.winner == "nso"
    assert found.headline == "nso wins: +20 points over plain"
    assert "jointly for 2 comparisons" in " ".join(found.sentences)


def test_a_tie_is_said_to_be_one(tmp_path):
    for seed in range(6):
        write_run(tmp_path / f"plain-{seed}", "plain", seed, 0.6)
        write_run(tmp_path / f"nso-{seed}", "nso", seed, 0.61 + (0.05 if seed % 2 else -0.05))
    found = verdict(read(sorted(tmp_path.iterdir(), key=lambda place: "nso" in place.name)))
    assert found.headline == "No gain over plain is shown"
    assert "The best on the mean is nso, with +1 points over plain." in found.sentences


def test_methods_that_are_not_distinguished_from_the_best_are_named_with_their_cost(tmp_path):
    folder = write_study(tmp_path / "s", {"plain": 0.5}, seeds=6)
    for seed in range(6):
        for method, sign, gradients in (("nso", 1, 200), ("nso-one-pass", -1, 100)):
            # Which of the two is better goes up and down with the seed.
            accuracy = 0.8 + sign * (0.02 if seed % 2 else -0.019)
            place = folder / method / f"seed-{seed}"
            write_run(place, method, seed, accuracy, gradients=gradients)
    names = ", ".join(f'"{m}"' for m in ("plain", "nso", "nso-one-pass"))
    (folder / "study.json").write_text(
        f'{{"methods": [{names}], "seeds": [0, 1, 2, 3, 4, 5], "recipe": {{}}}}'
    )
    found = verdict(read([folder]))
    assert found.winner == "nso"
    assert "Not distinguished from nso: nso-one-pass (0.5 x its gradients)." in found.sentences


def test_one_seed_claims_nothing(tmp_path):
    found = of(tmp_path, {"plain": 0.6, "nso": 0.8}, seeds=1)
    assert "wins" not in found.headline
    assert any("One seed" in sentence for sentence in found.sentences)


def test_the_reference_may_be_best(tmp_path):
    found = of(tmp_path, {"plain": 0.8, "nso": 0.6})
    assert found.headline == "No method is better than plain on the mean"


def test_one_method_is_not_compared(tmp_path):
    found = of(tmp_path, {"nso": 0.8})
    assert "nothing to compare" in " ".join(found.sentences)


def test_the_joint_interval_is_wider_than_that_of_one_comparison():
    values, reference = {s: 0.6 + 0.01 * s for s in range(5)}, dict.fromkeys(range(5), 0.6)
    one, joint = (paired(values, reference, level=level) for level in (0.95, 1 - 0.05 / 3))
    assert joint.t_interval[0] < one.t_interval[0]


def test_differences_without_any_spread_show_nothing():
    same = paired({0: 0.5, 1: 0.5}, {0: 0.4, 1: 0.4})
    assert not excludes_zero(same)


@pytest.mark.parametrize("metric", ["train_loss"])
def test_a_study_without_a_test_set_is_judged_by_what_it_has(tmp_path, metric):
    import json

    folder = write_study(tmp_path / "s", {"plain": 0.6, "nso": 0.8}, seeds=2)
    for file in folder.glob("*/seed-*/results.json"):
        results = json.loads(file.read_text())
        results["metrics"] = {metric: 1.0 if "plain" in str(file) else 0.5 + 0.1 * results["seed"]}
        file.write_text(json.dumps(results))
    assert verdict(read([folder])).winner == "nso"


def test_of_a_regression_the_smallest_absolute_error_wins(tmp_path):
    study = read([write_study(tmp_path / "study", {"plain": 0.6, "nso": 0.8}, 5)])
    errors = {"plain": {s: 5.0 + 0.1 * s for s in range(5)}, "nso": {}}
    errors["nso"] = {s: error - 1 - 0.01 * s for s, error in errors["plain"].items()}
    values = {k: v for k, v in study.values.items() if "accuracy" not in k}
    found = verdict(replace(study, values={**values, "test_mae": errors}))
    assert found.winner == "nso"
    assert found.headline == "nso wins: -1 test MAE over plain"
