"""Regression and ConR as a user of the command line has them."""

import json

import numpy as np
import pytest

from flatminima.cli import main

RUN = ["--epochs", "2", "--probes", "3", "--draws", "3"]


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def ages(tmp_path):
    """A table of numbers to be predicted from two others, rare above."""
    rng = np.random.default_rng(0)
    years = np.round(rng.exponential(10, 200), 2)
    inputs = np.stack([np.sin(years / 9), np.cos(years / 9)], 1) + 0.1 * rng.normal(size=(200, 2))
    rows = [f"{a:.4f},{b:.4f},{year}" for (a, b), year in zip(inputs, years, strict=True)]
    (tmp_path / "ages.csv").write_text("a,b,age\n" + "\n".join(rows))
    return ["--data", tmp_path / "ages.csv", "--label-column", "age"]


def test_a_table_of_numbers_from_training_to_landscape(ages, tmp_path, capsys):
    out = tmp_path / "a"
    asked = ["--task", "regression", "--objective", "conr(window=2;beta=4)", "--label-bin", "4"]
    code, printed, errors = run(capsys, "finetune", *ages, *asked, *RUN, "--out", out)
    assert (code, errors) == (0, "")
    for metric in ("test_mae ", "test_gmean ", "test_mae_medium", "test_mae_few", "hessian_trace"):
        assert metric in printed
    assert "accuracy" not in printed
    code, printed, errors = run(capsys, "measure", out, "--probes", "4")
    assert (code, errors) == (0, "")
    at_the_end = json.loads((out / "results.json").read_text())["metrics"]["train_loss"]
    # What is measured is the squared error, whatever was minimized.
    assert json.loads((out / "measure.json").read_text())["loss"] == pytest.approx(at_the_end)
    code, printed, errors = run(capsys, "landscape", out, "--points", "5")
    assert code == 0, errors
    assert f"loss {at_the_end:.4f}"[:10] in printed


def test_numbers_without_the_flag_name_it(ages, tmp_path, capsys):
    code, _, errors = run(capsys, "finetune", *ages, "--out", tmp_path / "a")
    assert code == 2
    assert "which is not a class: to predict numbers say --task regression" in errors
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--task", "regresion"], "did you mean 'regression'"),
        (["--data", "digits", "--task", "regression"], "does not fit digits"),
        (["--data", "diabetes", "--label-noise", "0.2"], "--label-noise draws classes anew"),
        (["--data", "diabetes", "--objective", "mixup"], "is a task of regression: take"),
        (["--data", "diabetes", "--objective", "conr"], "'conr' needs window; start with"),
        (["--data", "digits", "--objective", "conr(window=1)"], "is a loss of regression"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(flags, words, tmp_path, capsys):
    code, _, errors = run(capsys, "finetune", *flags, "--out", tmp_path / "a")
    assert code == 2
    assert words in errors
    assert not (tmp_path / "a").exists()


RECIPE = """
data: diabetes
epochs: 1
measure: false
perturb: [plain, "nso:objective=conr(window=10;beta=4)"]
seeds: 1
vary:
  lr: [0.01]
"""


def test_a_recipe_with_conr_is_judged_by_the_absolute_error(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(RECIPE)
    out = tmp_path / "out"
    arguments = [tmp_path / "mine.yaml", "--out", out, "--workers", "1"]
    code, printed, _ = run(capsys, "run", *arguments)
    assert code == 0
    assert "test MAE" in printed
    assert "MAE difference" in printed
    assert "accuracy" not in printed
    assert "test MAE" in (out / "figure.svg").read_text()
    assert "Test MAE, run by run" in (out / "lr=0.01/report.html").read_text()
