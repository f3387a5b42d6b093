"""The list of all metrics, by which recipes are checked."""

import json
from pathlib import Path

import pytest

from flatminima.study.summary import METRICS
from flatminima.training.metrics import metric_names

RESULTS = sorted((Path(__file__).parents[2] / "docs" / "results").glob("experiment-*.json"))
KEPT = [file for file in RESULTS if not file.stem.endswith("-environment")]


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.stem)
def test_every_metric_of_the_kept_experiments_is_known(file):
    found = json.loads(file.read_text())
    summaries = [found.get("summary", {"methods": {}})]
    summaries += [point["summary"] for point in found.get("points", [])]
    names = {name for each in summaries for of in each["methods"].values() for name in of}
    names |= {name for of in found.get("along", {}).values() for name in of if name != "epoch"}
    assert names
    assert names <= set(metric_names())


def test_every_metric_that_comes_first_in_a_summary_is_known():
    assert set(METRICS) <= set(metric_names())
