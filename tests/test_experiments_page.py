"""The generated page of experiments, on kept results that are not there yet."""

import json
import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def flatness():
    return runpy.run_path(str(BENCHMARKS / "flatness.py"))


@pytest.fixture
def rows_picture():
    return runpy.run_path(str(BENCHMARKS / "rows_picture.py"))


def summary(methods):
    return {
        "seeds": [0, 1, 2],
        "methods": {
            name: {metric: {"values": values} for metric, values in of.items()}
            for name, of in methods.items()
        },
    }


FOUND = summary(
    {
        "plain": {"hessian_trace": [9.0, 9.0, 9.0], "top_eigenvalue": [9.0, 9.0, 9.0]},
        "nso:sigma=0.1": {"hessian_trace": [3.0, 3.0, 1.0], "top_eigenvalue": [2.0, 2.0, 2.0]},
        "sam:rho=0.5": {"hessian_trace": [4.0, 4.0, None], "top_eigenvalue": [1.0, 1.0, 1.0]},
        "asam:rho=1.0": {"hessian_trace": [8.0, 8.0, 8.0], "top_eigenvalue": [3.0, 3.0, 3.0]},
    }
)


def results(folder, **kept):
    for name, content in {"methods-digits": {}, "demo": {}, **kept}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_new_study_has_a_row_beside_the_claims_of_the_paper(flatness, tmp_path):
    table = flatness["table"](results(tmp_path, **{"experiment-letters": {"summary": FOUND}}))
    assert all(claim in table for claim in ("-15.8 %", "-9.7 %", "-17.7 %", "-12.8 %"))
    # Over the first two seeds: 3 over the mean of 4 and 8, and over 4; on the third SAM failed.
    row = next(line for line in table.splitlines() if line.startswith("| letters | 2 |"))
    trace_to_mean, to_flattest = row.split("|")[3:5]
    assert trace_to_mean.strip().startswith("-50")
    assert to_flattest.strip().startswith("-25")
    assert to_flattest.strip().endswith("(sam)")


def test_points_along_words_and_numbers_have_a_row_each(flatness, tmp_path):
    points = [
        {"at": {"model": "owner/name", "label_noise": noise}, "summary": FOUND}
        for noise in (0.0, 0.2)
    ]
    found = {"grid": {"model": ["owner/name"], "label_noise": [0.0, 0.2]}, "points": points}
    table = flatness["table"](results(tmp_path, **{"experiment-words": found}))
    assert "| words, model owner/name, label noise 0 |" in table
    assert "| words, model owner/name, label noise 0.2 |" in table


def test_a_study_that_measured_the_trace_alone_says_so(flatness, tmp_path):
    found = json.loads(json.dumps(FOUND))
    for method in found["methods"].values():
        del method["top_eigenvalue"]
    table = flatness["table"](results(tmp_path, **{"experiment-trace": {"summary": found}}))
    row = next(line for line in table.splitlines() if line.startswith("| trace | 2 |"))
    assert row.endswith("| - | - |")


def test_a_study_that_measured_nothing_or_no_such_method_has_no_row(flatness, tmp_path):
    bare = summary({"nso": {"test_accuracy": [1.0] * 3}, "sam": {"test_accuracy": [1.0] * 3}})
    alone = summary({"nso": {"hessian_trace": [1.0] * 3}, "plain": {"hessian_trace": [1.0] * 3}})
    kept = {"experiment-bare": {"summary": bare}, "experiment-alone": {"summary": alone}}
    table = flatness["table"](results(tmp_path, **kept))
    assert "bare" not in table
    assert "alone" not in table


def test_a_comparison_is_drawn_with_far_means_in_words(rows_picture, tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    pyplot.switch_backend("svg")
    means = {"plain": 77.0, "nso": 85.0, "sam": 82.0, "asam": 80.0, "diverged": 9.0}
    entries = {
        name: {
            "test_accuracy": {"mean": mean / 100, "ci95": [mean / 100 - 0.01, mean / 100 + 0.01]}
        }
        for name, mean in means.items()
    }
    found = {"reference": "plain", "methods": entries}
    rows_picture["draw"](found, tmp_path / "rows.svg", ["test_accuracy", "hessian_trace"])
    (panel,) = pyplot.gcf().axes
    assert (tmp_path / "rows.svg").is_file()
    assert [label.get_text() for label in panel.get_yticklabels()] == list(means)
    low, high = panel.get_xlim()
    assert 70 < low < 76
    assert 86 < high < 92
    (told,) = panel.texts
    assert told.get_text() == "← 9"
    assert told.get_position()[1] == 4
