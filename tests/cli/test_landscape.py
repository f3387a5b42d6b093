"""`flatminima landscape` as a user has it."""

import json

import numpy as np
import pytest

from flatminima.cli import main
from flatminima.landscape import Landscape

RUN = ["--epochs", "2", "--no-pretrain", "--no-measure"]
FEW = ["--points", "5"]


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    for name, extra in (("a", []), ("b", ["--seed", "1"]), ("c", ["--model", "cnn"])):
        assert main(["finetune", *RUN, *extra, "--out", str(home / name)]) == 0
    return home


def read(path):
    return Landscape.from_dict(json.loads(path.read_text()))


def test_a_run_gets_its_numbers_and_a_picture(runs, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "a.png"
    code, printed, errors = run(capsys, "landscape", runs / "a", *FEW, "--plot", picture)
    assert code == 0
    assert "5 x 5 points, centre" in printed
    assert f"written to {runs / 'a/landscape.json'}" in errors
    assert picture.stat().st_size > 5000
    run(capsys, "measure", runs / "a", "--probes", "3")
    found = read(runs / "a/landscape.json")
    measured = json.loads((runs / "a/measure.json").read_text())
    assert found.loss[2, 2] == pytest.approx(measured["loss"], rel=1e-5)
    assert found.samples == measured["samples"]
    assert (found.axes[0].normalization, found.axes[0].biases) == ("filter", "ignore")


def test_several_runs_share_directions_and_a_file(runs, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "both.json", tmp_path / "both.svg"
    targets = [runs / "a", runs / "b"]
    code, *_ = run(capsys, "landscape", *targets, *FEW, "--out", out, "--plot", picture)
    assert code == 0
    both = json.loads(out.read_text())["landscapes"]
    names = [[axis["name"] for axis in one["axes"]] for one in both.values()]
    assert names == [["random, seed 0", "random, seed 1"]] * 2
    assert picture.stat().st_size > 5000


@pytest.mark.parametrize("kind", ["eigen", "extremes", "gradient", "optimizer", "trajectory"])
def test_each_kind_of_direction_is_centred_on_the_run(runs, capsys, kind):
    code, printed, _ = run(capsys, "landscape", runs / "a", *FEW, "--directions", kind)
    assert code == 0
    found = read(runs / f"a/landscape-{kind}.json")
    run(capsys, "landscape", runs / "a", *FEW)
    plain = read(runs / "a/landscape.json")
    assert found.loss[found.zero] == pytest.approx(plain.loss[2, 2], rel=1e-6)
    words = {"eigen": "eigenvector of", "extremes": "eigenvector of -", "trajectory": "principal"}
    assert words.get(kind, {"optimizer": "momentum"}.get(kind, kind)) in printed
    if kind == "trajectory":
        assert len(found.path) == 3, "where it began, and two checkpoints"
        assert np.allclose(found.path[-1], 0, atol=1e-5)


def test_between_two_runs_the_ends_are_theirs(runs, capsys):
    ends = []
    for name in "ab":
        run(capsys, "landscape", runs / name, *FEW, "--dims", "1")
        ends.append(read(runs / name / "landscape-1d.json"))
    targets = [runs / "a", runs / "b"]
    code, *_ = run(capsys, "landscape", *targets, "--directions", "between")
    assert code == 0
    found = read(runs / "a/landscape-between.json")
    assert found.at(0) == pytest.approx(ends[0].at(0), rel=1e-6)
    # The samples and their noisy labels are the first run's, so only the first end's loss is the
    # same number as in the run's own slice.
    assert found.corners == tuple(map(str, targets))
    assert np.isfinite(found.at(1))


def test_a_budget_says_the_cost_and_the_same_command_goes_on(runs, capsys):
    (runs / "b/landscape.json").unlink(missing_ok=True)
    many = ["landscape", runs / "b", "--points", "151"]
    code, printed, errors = run(capsys, *many, "--max-seconds", "0.3")
    assert code == 0
    assert "more than max_seconds = 0.3" in errors
    assert "the same command goes on with it" in errors
    assert "points evaluated (max_seconds)" in printed
    assert not (runs / "b/landscape.json").exists()
    part = read(runs / "b/landscape-partial.json")
    before = int(part.evaluated.sum())
    run(capsys, *many, "--max-seconds", "0.3")
    more = read(runs / "b/landscape-partial.json")
    assert int(more.evaluated.sum()) > before
    assert np.array_equal(more.loss[part.evaluated], part.loss[part.evaluated])
    code, _, errors = run(capsys, "landscape", runs / "b", *FEW)
    assert code == 0
    assert "not continued: it has other points or another radius" in errors
    assert not (runs / "b/landscape-partial.json").exists()
    assert read(runs / "b/landscape.json").stopped == "done"


def test_bad_input_is_one_line(runs, capsys, tmp_path):
    main(["finetune", *RUN, "--no-keep-checkpoints", "--out", str(tmp_path / "bare")])
    capsys.readouterr()
    a, b, c = (runs / name for name in "abc")
    for arguments, words in (
        (["nowhere"], "is no run directory"),
        ([tmp_path / "bare"], "no checkpoint in"),
        ([a, c, "--directions", "between"], "is of another architecture than the model"),
        ([a, "--directions", "between"], "goes through 2 or 3 different runs"),
        ([a, a], "is named twice"),
        ([a, "--directions", "randon"], "did you mean 'random'"),
        ([a, "--normalization", "filters"], "did you mean 'filter'"),
        ([a, "--batchnorm", "train"], "unknown way of BatchNorm"),
        ([a, "--points", "1"], "points is 1"),
        ([a, "--radius", "-1"], "radius is -1.0"),
        ([a, "--dims", "3"], "dims is 3"),
        ([a, "--directions", "trajectory", "--dims", "1"], "leave dims at 2"),
        ([a, "--max-seconds", "0"], "max_seconds is 0.0"),
        ([a, "--plot", "a.bmp"], "--plot is a.bmp"),
    ):
        code, printed, errors = run(capsys, "landscape", *arguments)
        assert (code, printed) == (2, ""), arguments
        assert words in errors
        assert len(errors.strip().splitlines()) == 1
    assert b.exists()
