"""A sweep of sigma or rho: what it trains, what it chooses, and what it says."""

import json

import pytest

from flatminima.errors import InputError
from flatminima.study import Outcome, tune_sigma
from flatminima.study.runs import Runs
from flatminima.study.sweep_table import sweep_markdown, sweep_table
from flatminima.study.tune import _choice, start_value
from flatminima.study.worker import _resolve
from flatminima.training.recipe import Recipe

QUICK = {"epochs": 2, "pretrain": False, "probes": 3, "draws": 3, "train_size": 100}
NAMED = {"plain": 0.0, "nso:sigma=0.1": 0.1, "nso:sigma=0.2": 0.2, "nso:sigma=0.4": 0.4}


def recipe(**changes):
    return Recipe.from_flat({**QUICK, **changes})


@pytest.fixture
def in_process(monkeypatch):
    """Jobs that run here, one after the other: a process takes seconds to start."""

    def run_jobs(jobs, target, **_):
        for job in jobs:
            _resolve(target)(job.payload, job.directory)
        return [Outcome(job.name, job.directory, "finished") for job in jobs]

    for module in ("runs", "tune"):
        monkeypatch.setattr(f"flatminima.study.{module}.run_jobs", run_jobs)


def chosen(losses):
    """The choice among runs with these validation losses, a list over seeds for each value."""
    results = {
        method: {
            seed: {"metrics": {"validation_loss": loss, "validation_accuracy": 0.5}}
            for seed, loss in enumerate(by_seed)
            if loss is not None
        }
        for method, by_seed in zip(NAMED, losses, strict=True)
    }
    seeds = list(range(len(losses[0])))
    failed = [
        {"method": method, "seed": seed, "error": "it failed"}
        for method, by_seed in zip(NAMED, losses, strict=True)
        for seed, loss in enumerate(by_seed)
        if loss is None
    ]
    return _choice(Runs("task", seeds, results, failed), NAMED)


def as_result(choice, **more):
    validation = {"samples": 40, "fraction": None}
    said = {"method": "nso", "strength": "sigma", "start": None, "validation": validation}
    return {**choice, **said, **more}


def test_the_best_is_that_of_the_lowest_mean_validation_loss():
    choice = chosen([[1.0, 1.1, 1.2], [0.7, 0.8, 0.9], [0.8, 0.91, 0.99], [2.0, 2.1, 2.2]])
    assert choice["best"] == 0.1
    assert choice["edge"] is True
    assert [row["value"] for row in choice["values"]] == [0.0, 0.1, 0.2, 0.4]
    assert choice["values"][0]["difference"]["difference"] == pytest.approx(0.3)


def test_a_tie_is_a_value_whose_paired_difference_may_be_zero():
    clear = [1.0, 2.0, 3.0]
    # On average above the best, but not on every seed.
    tied = [0.9, 2.3, 3.1]
    choice = chosen([[x + 1 for x in clear], tied, clear, [x + 0.5 + x / 100 for x in clear]])
    assert choice["best"] == 0.2
    assert [row["tied"] for row in choice["values"]] == [False, True, True, False]
    assert choice["edge"] is False


def test_one_seed_tells_no_ties():
    choice = chosen([[1.0], [0.7], [0.8], [0.9]])
    assert [row["tied"] for row in choice["values"]] == [None, True, None, None]
    assert "One seed" in sweep_markdown(as_result(choice))


@pytest.mark.parametrize("broken", [None, float("nan")])
def test_a_value_that_broke_on_a_seed_is_not_chosen(broken):
    choice = chosen([[1.0, 1.1], [0.8, 0.9], [0.1, broken], [2.0, 2.1]])
    assert choice["best"] == 0.1
    assert choice["values"][2]["tied"] is False
    json.dumps(choice, allow_nan=False)


def test_nothing_is_chosen_where_every_value_broke():
    with pytest.raises(InputError, match="no value gave a finite validation loss"):
        chosen([[1.0, None], [0.8, None], [None, 1.0], [float("inf"), 1.0]])


def test_where_plain_training_is_best_that_is_what_is_said():
    choice = chosen([[0.5, 0.6], [0.8, 0.9], [0.9, 1.0], [2.0, 2.1]])
    assert (choice["best"], choice["edge"]) == (0.0, False)
    assert "No sigma did better than plain training." in sweep_markdown(as_result(choice))


def test_the_table_shows_the_curve_and_what_it_rests_on():
    from rich.console import Console

    choice = chosen([[1.0, 1.1], [0.7, 0.8], [0.8, 0.9], [70.0, 80.0]])
    start = {"value": 0.1234, "fraction": 0.1}
    result = as_result(choice, start=start, validation={"samples": 20, "fraction": 0.2})
    console = Console(width=200)
    with console.capture() as captured:
        console.print(sweep_table(result))
    lines = captured.get().splitlines()
    dots = [next(line for line in lines if line.startswith(f"│ {v} ")) for v in ("0 (plain)", 0.1)]
    assert dots[0].index("●") > dots[1].index("●")
    assert next(line for line in lines if line.startswith("│ 0.4 ")).count("→") == 1
    text = " ".join(captured.get().split())
    assert "20 samples a seed, 20% of the training samples" in text
    assert "Start value: sigma = 0.12, where noise raises the loss after one plain epoch" in text
    assert "The best is at the edge: try smaller --values." in text
    assert "best" in dots[1]
    narrow = Console(width=100)
    with narrow.capture() as captured:
        narrow.print(sweep_table(result, narrow=True))
    assert "validation accuracy" not in captured.get()
    assert captured.get().count("●") == 3


def test_a_sweep_trains_chooses_and_is_kept(tmp_path):
    result = tune_sigma(recipe(), "nso", [0.2, 0.1], 2, out=tmp_path, workers=1)
    assert json.loads((tmp_path / "tune.json").read_text()) == result
    assert [row["value"] for row in result["values"]] == [0.0, 0.1, 0.2]
    assert result["validation"] == {"samples": 40, "fraction": 0.2}
    assert result["start"] is None
    first = tmp_path / "nso,sigma=0.1" / "seed-0"
    metrics = json.loads((first / "results.json").read_text())["metrics"]
    assert result["values"][1]["validation_loss"]["values"][0] == metrics["validation_loss"]
    assert result["values"][1]["hessian_trace"]["values"][0] == metrics["hessian_trace"]
    lowest = min(result["values"], key=lambda row: row["validation_loss"]["mean"])
    assert result["best"] == lowest["value"]
    assert "test" not in (tmp_path / "tune.json").read_text()
    assert "test" not in (tmp_path / "table.md").read_text()
    made = (first / "results.json").stat().st_mtime_ns
    assert tune_sigma(recipe(), "nso", [0.2, 0.1], 2, out=tmp_path, workers=1) == result
    assert (first / "results.json").stat().st_mtime_ns == made


def test_the_values_of_sigma_go_around_the_start_value(tmp_path, in_process):
    changes = {"epochs": 1, "measure": False, "pretrain": True}
    result = tune_sigma(recipe(**changes), "nso-one-pass", None, 1, out=tmp_path, workers=1)
    start = result["start"]["value"]
    tried = [row["value"] for row in result["values"][1:]]
    assert tried == [float(f"{factor * start:.2g}") for factor in (0.25, 0.5, 1, 2, 4)]
    assert result["start"]["gap"] == pytest.approx(0.1 * result["start"]["loss"], rel=0.011)
    assert result["start"]["loss_before"] > 2 * result["start"]["loss"]
    warm_up = (tmp_path / "start/run/recipe.yaml").read_text()
    assert "perturb: plain" in warm_up
    assert "epochs: 1" in warm_up


def test_noise_may_undo_a_tenth_of_what_a_new_head_has_learned(tmp_path, in_process):
    found = start_value(recipe(batch_size=8, lr=0.1, train_size=160), tmp_path)
    learned = found["loss_before"] - found["loss"]
    assert 0 < learned < found["loss"]
    assert found["gap"] == pytest.approx(0.1 * learned, rel=0.02)


def test_an_epoch_that_learns_nothing_gives_no_start_value(tmp_path):
    with pytest.raises(InputError, match=r"no start value: one plain epoch changed the loss from"):
        start_value(recipe(lr=0.0), tmp_path)


def test_the_values_of_rho_go_around_the_default(tmp_path, in_process):
    changes = {"epochs": 1, "measure": False}
    result = tune_sigma(recipe(**changes), "sam", None, 1, out=tmp_path, workers=1)
    assert [row["value"] for row in result["values"]] == [0.0, 0.025, 0.05, 0.1, 0.2, 0.4]
    assert (result["strength"], result["start"]) == ("rho", None)
    assert not (tmp_path / "start").exists()


def test_data_with_samples_for_validation_keep_their_own(tmp_path, in_process):
    changes = {"epochs": 1, "measure": False, "validation_fraction": 0.3}
    result = tune_sigma(recipe(**changes), "nso", [0.1], 1, out=tmp_path, workers=1)
    assert result["validation"] == {"samples": 60, "fraction": None}


@pytest.mark.parametrize(
    ("changes", "method", "values", "message"),
    [
        ({}, "plain", None, "'plain' has nothing to tune"),
        ({}, "nso,sam", None, "name one method"),
        ({}, "nso:sigma=0.1", None, "sets sigma, which is to be tuned"),
        ({}, "nso:sigmaa=0.1", None, "unknown option of 'nso'"),
        ({}, "nso", [0.1, 0.1], "one twice"),
        ({}, "nso", [], "names no value"),
        ({}, "nso", [0.0], "--values has 0: give numbers above 0"),
        ({}, "nso", [float("nan")], "--values has nan"),
        ({"validation_fraction": 0.0}, "nso", [0.1], "leaves no samples to choose by"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_written(
    tmp_path, changes, method, values, message
):
    with pytest.raises(InputError, match=message) as caught:
        tune_sigma(recipe(**changes), method, values, 1, out=tmp_path / "t")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "t").exists()


def test_a_run_is_not_overwritten_by_a_sweep(tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(InputError, match="holds a run"):
        tune_sigma(recipe(), "nso", None, 1, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_of_a_regression_the_table_has_the_absolute_error(tmp_path, in_process):
    asked = Recipe.from_flat({"data": "diabetes", "epochs": 1, "measure": False})
    found = tune_sigma(asked, "nso", [0.1], 1, out=tmp_path / "s")
    table = (tmp_path / "s/table.md").read_text()
    assert "validation MAE" in table
    assert "accuracy" not in table
    assert found["values"][0]["validation_mae"]["mean"] > 10
