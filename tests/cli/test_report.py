"""`flatminima report` as a user has it."""

import json

import pytest

from flatminima.cli import main

RUN = ["--epochs", "2", "--no-pretrain", "--no-measure"]


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "a"
    assert main(["finetune", *RUN, "--perturb", "nso", "--live-trace", "--out", str(home)]) == 0
    return home


def test_a_study_ends_with_its_report(capsys, tmp_path):
    out = tmp_path / "study"
    methods = ["--perturb", "plain,nso", "--seeds", "2", "--workers", "1"]
    code, printed, _ = run(capsys, "compare", *methods, *RUN, "--out", out)
    assert code == 0
    assert f"report: {out / 'report.html'}" in printed
    page = (out / "report.html").read_text()
    for words in ("Learning curves", "Most often wrong", "What nso"):
        assert words in page


def test_a_run_has_a_report_of_all_that_was_measured(trained, capsys):
    settings = ["--density", "--sigmas", "0.05,0.1", "--bound", "--probes", "5", "--draws", "5"]
    assert run(capsys, "measure", trained, *settings)[0] == 0
    assert run(capsys, "landscape", trained, "--points", "5")[0] == 0
    code, printed, errors = run(capsys, "report", trained)
    assert (code, errors) == (0, "")
    assert printed == f"report: {trained / 'report.html'}\n"
    page = (trained / "report.html").read_text()
    for words in ("PAC-Bayes bound", "Density of the", "surface", "Trace of the smoothed loss"):
        assert words in page


def test_a_bound_is_that_of_the_distance_from_the_start(trained, capsys):
    run(capsys, "measure", trained, "--bound", "--probes", "3", "--draws", "3")
    found = json.loads((trained / "bound.json").read_text())
    assert found["from_initialization"]
    assert found["samples"] == 200
    assert 0 < found["distance"] < 10
    terms = found["terms"]
    parts = ("loss_term", "noise_term", "distance_term", "confidence_term")
    assert terms["value"] == pytest.approx(sum(terms[part] for part in parts))


def test_several_runs_need_no_study(trained, capsys, tmp_path, monkeypatch):
    other = tmp_path / "b"
    assert main(["finetune", *RUN, "--out", str(other)]) == 0
    monkeypatch.chdir(tmp_path)
    code, printed, _ = run(capsys, "report", trained, other)
    assert code == 0
    assert "report: report.html" in printed
    assert (tmp_path / "report.html").is_file()


def test_damage_is_said_and_the_report_is_made(trained, capsys, tmp_path):
    (trained / "metrics.jsonl").open("a").write("{broken\n")
    code, _, errors = run(capsys, "report", trained, "--out", tmp_path / "r.html")
    assert code == 0
    assert "1 damaged lines" in errors


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["nowhere"], "is no study and no run"),
        (["RUN", "--out", "TMP"], "a directory"),
        (["RUN", "--out", "TMP/file/x.html"], "cannot write"),
    ],
)
def test_what_cannot_work_is_refused(trained, capsys, tmp_path, targets, words):
    (tmp_path / "file").write_text("")
    given = [t.replace("RUN", str(trained)).replace("TMP", str(tmp_path)) for t in targets]
    code, _, errors = run(capsys, "report", *given)
    assert code == 2
    assert words in errors


def test_a_part_of_the_parameters_or_of_what_was_asked_does_not_replace_the_whole(trained, capsys):
    few = ["--probes", "4", "--draws", "3"]
    assert run(capsys, "measure", trained, *few)[0] == 0
    whole = (trained / "measure.json").read_text()
    code, printed, _ = run(capsys, "measure", trained, *few, "--params", "*bias")
    assert code == 0
    assert f"written to {trained / 'measure-params.json'}" in printed
    assert json.loads((trained / "measure-params.json").read_text())["selection"] == "*bias"
    budget = ["--max-gradients", "60", "--eigenvalues", "20", "--probes", "90"]
    code, printed, _ = run(capsys, "measure", trained, *budget)
    assert code == 0
    assert f"written to {trained / 'measure-partial.json'}" in printed
    assert (trained / "measure.json").read_text() == whole


def test_a_bound_of_some_parameters_is_refused(trained, capsys):
    code, _, errors = run(capsys, "measure", trained, "--bound", "--params", "*bias")
    assert code == 2
    assert "leave --params or --bound out" in errors


def test_a_list_of_numbers_with_a_hole_is_named(trained, capsys):
    with pytest.raises(SystemExit):
        run(capsys, "measure", trained, "--sigmas", "0.1,,2")
    assert "give them as 0.01,0.1" in capsys.readouterr().err
