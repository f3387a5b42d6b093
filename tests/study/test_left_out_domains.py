"""Leave-one-domain-out: every domain in turn, and what all of them say together."""

import json

import pytest

from flatminima.errors import InputError
from flatminima.study.domains import across_domains
from flatminima.study.summary import summarize
from flatminima.study.vary import vary
from flatminima.training.recipe import Recipe

QUICK = {"epochs": 1, "measure": False, "keep_checkpoints": False, "data": "two-bits(samples=40)"}


def study(values):
    runs = {
        method: {seed: {"metrics": {"test_accuracy": v}} for seed, v in enumerate(row)}
        for method, row in values.items()
    }
    return summarize("task", [0, 1], runs)


def test_the_mean_and_the_worst_are_of_each_seed():
    first = study({"a": [0.9, 0.5], "b": [0.8, 0.8]})
    second = study({"a": [0.5, 0.7], "b": [0.6, 1.0]})
    found = across_domains([first, second])
    assert found["methods"]["a"]["test_accuracy"]["values"] == pytest.approx([0.7, 0.6])
    assert found["methods"]["a"]["worst_domain"]["values"] == pytest.approx([0.5, 0.5])
    assert found["methods"]["b"]["worst_domain"]["values"] == pytest.approx([0.6, 0.8])
    assert found["paired"]["b"]["test_accuracy"]["difference"] == pytest.approx(0.15)


def test_a_seed_that_failed_in_one_domain_is_in_no_mean():
    first = study({"a": [0.9, 0.5], "b": [0.8, 0.8]})
    second = study({"a": [0.5, None], "b": [0.6, 1.0]})
    found = across_domains([first, second])["methods"]["a"]
    assert found["test_accuracy"]["values"] == [pytest.approx(0.7), None]


def test_all_domains_are_left_out_in_turn(tmp_path, monkeypatch):
    accuracies = {"0.2": [0.9, 0.5], "0.1": [0.5, 0.7], "0.9": [0.1, 0.9]}

    def compared(recipe, methods, seeds, out, **rest):
        assert seeds == 2
        return study({methods[0]: accuracies[recipe.data.test_domain], methods[1]: [0.8, 0.8]})

    monkeypatch.setattr("flatminima.study.vary.compare", compared)
    methods = ["plain:objective=erm", "plain:objective=hgp(weight=2)"]
    grid = {"test_domain": "all"}
    found = vary(Recipe.from_flat(QUICK), methods, 2, grid, tmp_path / "a")
    assert [point["at"]["test_domain"] for point in found["points"]] == ["0.2", "0.1", "0.9"]
    metrics = found["domains"]["methods"]["plain:objective=erm"]
    assert metrics["test_accuracy"]["values"] == pytest.approx([0.5, 0.7])
    assert metrics["worst_domain"]["values"] == pytest.approx([0.1, 0.5])
    kept = json.loads((tmp_path / "a/vary.json").read_text())
    assert kept["domains"] == json.loads(json.dumps(found["domains"]))
    text = (tmp_path / "a/table.md").read_text()
    assert "Over all left-out domains" in text
    assert "worst domain (%)" in text
    # Again, with names for "all": the same experiment.
    again = vary(Recipe.from_flat(QUICK), methods, 2, found["grid"], tmp_path / "a")
    assert again["points"] == found["points"]


def test_data_without_domains_have_none_to_leave_out(tmp_path):
    recipe = Recipe.from_flat({"measure": False})
    with pytest.raises(InputError, match="no domains to leave out"):
        vary(recipe, ["plain"], 1, {"test_domain": "all"}, tmp_path / "a", workers=1)
    wrong = {"test_domain": ["0.99"]}
    with pytest.raises(InputError, match=r"did you mean '0\.9'"):
        vary(Recipe.from_flat(QUICK), ["plain"], 1, wrong, tmp_path / "a", workers=1)
