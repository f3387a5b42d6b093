"""The pages of objectives with a memory: snippets run as written, claims are what was found."""

import json
import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs/methods"


@pytest.mark.parametrize("page", ["elr", "ps-kd"])
def test_the_snippets_of_a_page_run_in_their_order(page, capsys):
    snippets = re.findall(r"```python\n(.*?)```", (PAGES / f"{page}.md").read_text(), re.DOTALL)
    assert len(snippets) >= 2
    names = {}
    for snippet in snippets:
        exec(snippet, names)
    assert names["loss"].memory.rows.any(1).all()
    if page == "ps-kd":
        assert capsys.readouterr().out == "2400\n"


def found(name):
    return json.loads((PAGES.parent / f"results/system-{name}.json").read_text())


@pytest.mark.parametrize("method", ["ELR, beta 0.7, lambda 3", "ELR, beta 0.9, lambda 7"])
def test_elr_was_found_to_resist_wrong_labels(method):
    results = found("elr")
    assert len(results["seeds"]) == 10
    assert results["paired"][method]["final"]["ci95"][0] > 0.10
    assert results["methods"][method]["memorized"]["ci95"][1] < 0.10
    assert results["methods"][method]["found"]["ci95"][0] > 0.95


def test_nso_with_elr_was_found_to_tie_with_elr():
    low, high = found("elr")["nso_over_elr"]["final"]["ci95"]
    assert low < 0 < high


@pytest.mark.parametrize("setting", ["clean labels", "20 % drawn anew", "40 % drawn anew"])
def test_ps_kd_was_found_to_calibrate(setting):
    gains = found("ps-kd")["settings"][setting]["paired"]["PS-KD, alpha 0.8"]
    assert gains["nll"]["ci95"][1] < -0.05
    assert gains["ece"]["ci95"][1] < -3
    assert gains["error"]["ci95"][1] < 1


def test_ps_kd_was_found_to_need_augmentation():
    settings = found("ps-kd")["settings"]
    without = settings["20 %, without augmentation"]["paired"]["PS-KD, alpha 0.8"]["ece"]
    augmented = settings["20 % drawn anew"]["paired"]["PS-KD, alpha 0.8"]["ece"]
    assert without["difference"] > -1
    assert augmented["ci95"][1] < without["ci95"][0]


def test_nso_was_found_not_to_help_ps_kd():
    together = found("ps-kd")["nso_over_ps_kd"]
    assert together["error"]["ci95"][0] < 0 < together["error"]["ci95"][1]
    assert together["ece"]["ci95"][0] > 0
