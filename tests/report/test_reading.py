"""Results files are read as far as they can be, and what is missing is said."""

import json
import shutil

import pytest

from flatminima.errors import InputError
from flatminima.report import html, read
from report.conftest import write_run, write_study


def test_a_study_is_read_with_its_methods_in_order(study):
    found = read([study])
    assert found.methods == ["plain", "nso", "sam"]
    assert found.reference == "plain"
    assert found.seeds == [0, 1, 2, 3, 4]
    assert len(found.all_runs()) == 15
    assert found.values["test_accuracy"]["nso"][1] == pytest.approx(0.813)
    assert found.notes == []


def test_methods_with_options_are_found_in_their_folders(tmp_path):
    found = read([write_study(tmp_path, {"plain": 0.5, "nso:sigma=0.2": 0.6}, seeds=2)])
    assert len(found.runs["nso:sigma=0.2"]) == 2


def test_runs_are_compared_by_their_method(tmp_path):
    for method in ("plain", "nso"):
        write_run(tmp_path / method, method, 0, 0.5)
    found = read([tmp_path / "plain", tmp_path / "nso"])
    assert found.methods == ["plain", "nso"]


def test_runs_of_one_method_and_seed_are_told_apart_by_their_folders(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, "nso", 0, 0.5)
    found = read([tmp_path / "a", tmp_path / "b"])
    assert found.methods == [f"nso ({tmp_path / 'a'})", f"nso ({tmp_path / 'b'})"]


def test_a_summary_alone_makes_a_report_with_a_note(tmp_path):
    entry = {"mean": 0.6, "ci95": None, "values": [0.5, 0.7], "samples": 2}
    summary = {
        "task": "animals",
        "seeds": [0, 1],
        "reference": "plain",
        "methods": {"plain": {"test_accuracy": entry}, "nso": {"test_accuracy": entry}},
        "paired": {},
        "failed": [],
    }
    file = tmp_path / "results.json"
    file.write_text(json.dumps(summary))
    found = read([file])
    assert found.values["test_accuracy"]["plain"] == {0: 0.5, 1: 0.7}
    assert "alone" in found.notes[0]
    assert "No gain over plain" in html(found) or "No method is better" in html(found)


@pytest.mark.parametrize(
    "name",
    [
        "environment.json",
        "data.json",
        "metrics.jsonl",
        "predictions.json",
        "measure.json",
        "bound.json",
        "landscape.json",
    ],
)
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"a": null}', "\x00\xff"])
def test_a_damaged_file_is_left_out_and_the_page_is_made(study, name, content):
    damaged = study / "nso" / "seed-0" / name
    damaged.write_text(content)
    found = read([study])
    assert len(found.all_runs()) == 15
    whole = content == "" and name == "metrics.jsonl"
    if not whole and content != '{"a": null}':
        assert any(str(damaged) in note for note in found.notes)
        assert name in html(found)
    else:
        html(found)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"metrics": 3}'])
def test_a_run_with_damaged_results_is_left_out_and_named(study, content):
    (study / "nso" / "seed-3" / "results.json").write_text(content)
    found = read([study])
    assert 3 not in found.runs["nso"]
    assert any("nso, seed 3" in note for note in found.notes)
    html(found)


def test_values_that_are_no_finite_numbers_are_left_out(study):
    file = study / "sam" / "seed-0" / "results.json"
    results = json.loads(file.read_text())
    results["metrics"] = {"test_accuracy": None, "test_loss": "NaN", "hessian_trace": True}
    file.write_text(json.dumps(results))
    found = read([study])
    assert 0 not in found.values["test_accuracy"]["sam"]
    assert 0 not in found.values["hessian_trace"]["sam"]
    html(found)


def test_a_study_without_its_study_file_content_is_read_from_its_folders(study):
    (study / "study.json").write_text("{")
    found = read([study])
    assert set(found.methods) == {"plain", "nso", "sam"}
    assert any("study.json" in note for note in found.notes)


def test_an_unfinished_study_names_the_runs_that_are_missing(study):
    shutil.rmtree(study / "sam" / "seed-4")
    assert any("sam, seed 4" in note for note in read([study]).notes)


def test_what_is_no_study_and_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no study and no run"):
        read([tmp_path])
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match="no results of a study"):
        read([tmp_path / "results.json"])
    with pytest.raises(InputError, match="nothing to report"):
        read([tmp_path])


def test_a_study_among_runs_is_refused(study, tmp_path):
    write_run(tmp_path / "run", "nso", 0, 0.5)
    (study / "results.json").write_text("{}")
    with pytest.raises(InputError, match="is a study"):
        read([study, tmp_path / "run"])
