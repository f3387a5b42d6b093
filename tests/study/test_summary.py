import json

import pytest

from flatminima.errors import InputError
from flatminima.study import mean_ci, paired, summarize


def results(**metrics):
    return {"metrics": metrics, "other": "things"}


def two_methods():
    return {
        "plain": {s: results(test_accuracy=0.8 + 0.01 * s, test_loss=0.5) for s in range(4)},
        "nso": {s: results(test_accuracy=0.82 + 0.011 * s, test_loss=0.4) for s in range(4)},
    }


def test_means_and_pairs_are_the_statistics_of_the_values():
    summary = summarize("digits", [0, 1, 2, 3], two_methods())
    plain = [0.8 + 0.01 * s for s in range(4)]
    nso = [0.82 + 0.011 * s for s in range(4)]
    assert summary["task"] == "digits"
    assert summary["reference"] == "plain"
    assert list(summary["methods"]) == ["plain", "nso"]
    entry = summary["methods"]["nso"]["test_accuracy"]
    expected = mean_ci(nso)
    assert entry == {
        "mean": expected.mean,
        "ci95": list(expected.interval),
        "values": nso,
        "samples": 4,
    }
    difference = paired(dict(enumerate(nso)), dict(enumerate(plain)))
    pair = summary["paired"]["nso"]["test_accuracy"]
    assert pair["difference"] == difference.difference
    assert pair["ci95"] == list(difference.t_interval)
    assert pair["bootstrap_ci95"] == list(difference.interval)
    assert pair["p_value"] == difference.p_value
    assert "plain" not in summary["paired"]
    json.dumps(summary, allow_nan=False)


def test_a_missing_run_is_null_and_out_of_pairs():
    runs = two_methods()
    del runs["plain"][1], runs["nso"][2]
    failed = [{"method": "nso", "seed": 2, "error": "RuntimeError: no"}]
    summary = summarize("digits", [0, 1, 2, 3], runs, failed)
    assert summary["methods"]["nso"]["test_accuracy"]["values"][2] is None
    assert summary["methods"]["plain"]["test_accuracy"]["values"][1] is None
    assert summary["methods"]["plain"]["test_accuracy"]["samples"] == 3
    assert summary["paired"]["nso"]["test_accuracy"]["samples"] == 2
    assert summary["failed"] == failed


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_diverged_run_is_null(value):
    runs = two_methods()
    runs["nso"][3]["metrics"]["test_loss"] = value
    entry = summarize("digits", [0, 1, 2, 3], runs)["methods"]["nso"]["test_loss"]
    assert entry["values"] == [0.4, 0.4, 0.4, None]
    assert entry["mean"] == pytest.approx(0.4)


def test_values_are_in_the_order_of_the_seeds():
    entry = summarize("digits", [3, 0, 1, 2], two_methods())["methods"]["plain"]["test_accuracy"]
    assert entry["values"] == pytest.approx([0.83, 0.8, 0.81, 0.82])


def test_every_numeric_metric_is_taken_the_known_ones_first():
    run = results(zeta=1, gradients=10, name="x", flag=True, test_accuracy=0.5)
    summary = summarize("digits", [7], {"plain": {7: run}})
    assert list(summary["methods"]["plain"]) == ["test_accuracy", "gradients", "zeta"]
    assert summary["methods"]["plain"]["zeta"]["ci95"] is None
    assert summary["paired"] == {}


def test_a_method_that_always_failed_or_diverged_has_no_mean():
    runs = {"plain": {0: results(test_loss=float("nan"))}, "nso": {}, "sam": two_methods()["nso"]}
    summary = summarize("digits", [0, 1, 2, 3], runs)
    empty = {"mean": None, "ci95": None, "values": [None] * 4, "samples": 0}
    assert summary["methods"]["plain"] == {"test_loss": empty}
    assert summary["methods"]["nso"] == {}
    assert summary["paired"] == {"nso": {}, "sam": {}}


def test_what_cannot_be_summarized_is_refused():
    with pytest.raises(InputError, match="at least one"):
        summarize("digits", [0], {})
    with pytest.raises(InputError, match="at least one"):
        summarize("digits", [], two_methods())
    with pytest.raises(InputError, match="distinct"):
        summarize("digits", [0, 0, 1, 2, 3], two_methods())
    with pytest.raises(InputError, match="seed 3"):
        summarize("digits", [0, 1, 2], two_methods())
    with pytest.raises(InputError, match="metrics"):
        summarize("digits", [0], {"plain": {0: {}}})
