"""A comparison along a setting is a study at each of its values."""

import json

import pytest

from flatminima.errors import InputError
from flatminima.study.compare import compare
from flatminima.study.vary import vary
from flatminima.study.vary_plot import draw
from flatminima.training.recipe import Recipe

QUICK = {"epochs": 1, "pretrain": False, "measure": False, "keep_checkpoints": False}
METHODS = ["plain", "nso"]


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    out = tmp_path_factory.mktemp("varied") / "sizes"
    recipe = Recipe.from_flat(QUICK)
    return out, vary(recipe, METHODS, 2, {"train_size": [20, 40]}, out, workers=1)


def test_each_point_is_the_study_of_its_value(varied, tmp_path):
    _, result = varied
    alone = compare(
        Recipe.from_flat({**QUICK, "train_size": 40}), METHODS, 2, tmp_path / "alone", workers=1
    )
    assert [point["at"] for point in result["points"]] == [{"train_size": 20}, {"train_size": 40}]
    point = result["points"][1]["summary"]["methods"]
    for method in METHODS:
        expected = alone["methods"][method]["test_accuracy"]["values"]
        assert point[method]["test_accuracy"]["values"] == expected


def test_results_and_tables_are_on_disk(varied):
    out, result = varied
    assert json.loads((out / "vary.json").read_text()) == json.loads(json.dumps(result))
    assert "### train_size 20" in (out / "table.md").read_text()
    assert (out / "train_size=40" / "nso" / "seed-1" / "results.json").is_file()


def test_more_values_may_follow_and_fewer_may_not(varied):
    out, result = varied
    recipe = Recipe.from_flat(QUICK)
    longer = vary(recipe, METHODS, 2, {"train_size": [20, 40, 60]}, out, workers=1)
    assert longer["points"][:2] == result["points"]
    assert len(longer["points"]) == 3
    with pytest.raises(InputError, match="train_size=60"):
        vary(recipe, METHODS, 2, {"train_size": [20, 40]}, out, workers=1)
    with pytest.raises(InputError, match="would lose"):
        vary(recipe, METHODS, 2, {"lr": [0.1]}, out, workers=1)


def test_two_fields_are_varied_together(tmp_path):
    recipe = Recipe.from_flat(QUICK)
    grid = {"train_size": [20], "lr": [0.01, 0.1]}
    found = vary(recipe, ["plain"], 1, grid, tmp_path / "two", workers=1)
    places = [point["at"] for point in found["points"]]
    assert places == [{"train_size": 20, "lr": 0.01}, {"train_size": 20, "lr": 0.1}]
    with pytest.raises(InputError, match="one field"):
        draw(found, tmp_path / "figure.svg", ["test_accuracy"])


def test_the_picture_is_drawn(varied, tmp_path):
    pytest.importorskip("matplotlib")
    _, result = varied
    draw(result, tmp_path / "figure.svg", ["test_accuracy", "hessian_trace"])
    text = (tmp_path / "figure.svg").read_text()
    # What no run has measured has no panel.
    assert text.count('<g id="axes_') == 1


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({}, "nothing to vary"),
        ({"seed": [1, 2]}, "vary another field"),
        ({"perturb": ["plain"]}, "vary another field"),
        ({"trainsize": [1]}, "did you mean 'train_size'"),
        ({"train_size": 20}, "give a list"),
        ({"train_size": []}, "give a list"),
        ({"train_size": [20, 20.0]}, "given twice"),
        ({"lr": [0.1, "fast"]}, "give a number"),
        ({"epochs": [1, 0]}, "--epochs"),
    ],
)
def test_what_cannot_be_varied_is_refused_before_anything_runs(tmp_path, grid, words):
    with pytest.raises(InputError, match=words):
        vary(Recipe.from_flat(QUICK), METHODS, 1, grid, tmp_path / "no", workers=1)
    assert not (tmp_path / "no").exists()


def test_a_directory_with_something_else_is_refused(tmp_path):
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(InputError, match="holds a study"):
        vary(Recipe.from_flat(QUICK), METHODS, 1, {"lr": [0.1]}, tmp_path, workers=1)
