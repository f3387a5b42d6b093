"""The command line as a user has it: one process, its output and its exit code."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flatminima.cli import main

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
RUN = ["--epochs", "2", "--no-pretrain", "--probes", "3", "--draws", "3"]


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options
    )


def test_finetune_measure_and_resume(tmp_path, capsys):
    out = tmp_path / "a"
    code, printed, errors = run(
        capsys, "finetune", "--perturb", "nso", "--sigma", "0.1", *RUN, "--out", out
    )
    assert (code, errors) == (0, "")
    assert "test_accuracy" in printed
    assert f"run directory: {out}" in printed
    code, printed, _ = run(capsys, "measure", out, "--probes", "4")
    assert code == 0
    assert "Hessian trace" in printed
    assert json.loads((out / "measure.json").read_text())["trace"]["samples"] == 4
    code, printed, _ = run(capsys, "measure", out / "checkpoints/previous", "--out", tmp_path / "m")
    assert code == 0
    assert (tmp_path / "m").is_file()
    code, printed, errors = run(capsys, "finetune", "--resume", out)
    assert code == 0
    assert "finished already" in errors


def test_measuring_a_run_gives_its_own_numbers_again(tmp_path, capsys):
    out = tmp_path / "a"
    run(capsys, "finetune", *RUN, "--out", out)
    run(capsys, "measure", out)
    at_the_end = json.loads((out / "results.json").read_text())["curvature"]
    again = json.loads((out / "measure.json").read_text())
    assert again["trace"]["value"] == pytest.approx(at_the_end["trace"]["value"], rel=1e-5)
    assert again["loss"] == pytest.approx(at_the_end["loss"], rel=1e-6)


def test_a_self_tuned_run_says_what_it_found_and_is_measured_as_an_ordinary_model(tmp_path, capsys):
    out = tmp_path / "a"
    tune = ["--perturb", "nso", "--tune", "sigma,weight_decay", "--validation-fraction", "0.3"]
    code, printed, _ = run(capsys, "finetune", *tune, *RUN, "--out", out)
    assert code == 0
    assert "tuned sigma" in printed
    assert "tuned weight_decay" in printed
    results = json.loads((out / "results.json").read_text())
    for where in (out, out / "checkpoints/last"):
        run(capsys, "measure", where, "--out", tmp_path / "m.json")
        again = json.loads((tmp_path / "m.json").read_text())
        assert again["loss"] == pytest.approx(results["curvature"]["loss"], rel=1e-5)
        (tmp_path / "m.json").unlink()


def test_measuring_to_an_error_within_a_budget_with_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "a", tmp_path / "flatness.png"
    run(capsys, "finetune", *RUN, "--no-measure", "--out", out)
    asked = ["--rel-error", "0.1", "--eigenvalues", "3", "--density", "--params", "1.*"]
    asked += ["--sigmas", "0.05,0.1"]
    code, printed, errors = run(capsys, "measure", out, *asked, "--plot", plot)
    assert (code, errors) == (0, "")
    report = json.loads((out / "measure-params.json").read_text())
    assert report["trace"]["stopped"] == "rel_error"
    assert report["trace"]["stderr"] <= 0.1 * abs(report["trace"]["value"])
    assert len(report["top_eigenvalue"]["values"]) == 3
    assert [p["sigma"] for p in report["noise_stability"]["points"]] == [0.05, 0.1]
    assert report["density"] is not None
    assert list(report["trace"]["blocks"]) == ["1.weight", "1.bias"]
    assert "negative/positive mass" in printed
    assert plot.stat().st_size > 5000
    code, printed, _ = run(capsys, "measure", out, "--probes", "5000", "--max-gradients", "100")
    assert code == 0
    assert "stopped early: budget" in printed


def test_ctrl_c_while_measuring_keeps_what_there_is(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "a"
    run(capsys, "finetune", *RUN, "--no-measure", "--out", out)
    run(capsys, "measure", out)
    whole = (out / "measure.json").read_text()
    module = sys.modules["flatminima.measure.curvature"]
    monkeypatch.setattr(module, "top_eigenvalues", interrupted)
    code, printed, _ = run(capsys, "measure", out)
    assert code == 130
    assert "stopped early: interrupted" in printed
    assert (out / "measure.json").read_text() == whole
    partial = json.loads((out / "measure-partial.json").read_text())
    assert partial["trace"]["value"] == json.loads(whole)["trace"]["value"]
    assert partial["top_eigenvalue"] is None


def test_compare(tmp_path, capsys):
    arguments = ["compare", "--perturb", "plain,nso:sigma=0.2,sam", "--seeds", "2", *RUN]
    code, printed, errors = run(capsys, *arguments, "--out", tmp_path / "b")
    assert (code, errors) == (0, "")
    assert "nso:sigma=0.2" in printed
    results = json.loads((tmp_path / "b/results.json").read_text())
    assert results["seeds"] == [0, 1]
    assert list(results["methods"]) == ["plain", "nso:sigma=0.2", "sam"]
    needed = {"test_accuracy", "test_loss", "hessian_trace", "top_eigenvalue", "perturbation_gap"}
    for metrics in results["methods"].values():
        assert needed | {"gradients", "seconds_per_step", "peak_bytes"} <= set(metrics)
        assert {"mean", "ci95", "values"} <= set(metrics["test_accuracy"])
    assert set(results["paired"]) == {"nso:sigma=0.2", "sam"}
    assert (tmp_path / "b/table.md").read_text().startswith("| method")
    # Again: nothing is run, and the same comes out.
    made = (tmp_path / "b/plain/seed-0/results.json").stat().st_mtime_ns
    assert run(capsys, *arguments, "--out", tmp_path / "b")[1] == printed
    assert (tmp_path / "b/plain/seed-0/results.json").stat().st_mtime_ns == made


def test_a_failed_run_is_reported_and_the_others_finish(tmp_path, capsys):
    arguments = ["compare", "--perturb", "plain,nso:sigma=1e9", "--seeds", "2", *RUN]
    code, _, errors = run(capsys, *arguments, "--out", tmp_path / "b")
    assert code == 1
    assert "failed: nso:sigma=1e9, seed 0" in errors
    results = json.loads((tmp_path / "b/results.json").read_text())
    assert [f["method"] for f in results["failed"]] == ["nso:sigma=1e9"] * 2
    assert None not in results["methods"]["plain"]["test_accuracy"]["values"]


def test_a_recipe_file_and_flags_over_it(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("perturb: nso\nsigma: 0.2\nepochs: 1\npretrain: no\nmeasure: off\nlr: 1e-3\n")
    code, _, errors = run(
        capsys, "finetune", "--recipe", recipe, "--sigma", "0.3", "--out", tmp_path / "a"
    )
    assert (code, errors) == (0, "")
    written = (tmp_path / "a/recipe.yaml").read_text()
    assert "sigma: 0.3" in written
    assert "lr: 0.001" in written
    assert "epochs: 1" in written


def test_a_study_in_a_recipe_file(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("perturb: [plain, nso]\nseeds: 2\nepochs: 1\npretrain: no\nmeasure: no\n")
    code, _, errors = run(capsys, "compare", "--recipe", recipe, "--out", tmp_path / "b")
    assert (code, errors) == (0, "")
    assert (tmp_path / "b/nso/seed-1/results.json").is_file()


def test_methods(capsys):
    code, printed, _ = run(capsys, "methods")
    assert code == 0
    assert {"nso", "plain", "sam", "wp-sgd"} <= set(printed.split())
    code, printed, _ = run(capsys, "methods", "nso")
    assert "arXiv 2306.08553" in printed


@pytest.mark.parametrize("command", ["finetune", "compare", "tune-sigma", "measure", "methods"])
def test_help_shows_defaults_and_an_example_without_torch(command):
    show = "import sys; from flatminima.cli import main\n"
    show += f"try: main(['{command}', '--help'])\n"
    show += "except SystemExit: pass\n"
    show += "heavy = {'torch', 'transformers', 'sklearn', 'pandas', 'accelerate'}\n"
    show += "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    done = python("-c", show)
    assert done.returncode == 0, done.stderr
    assert f"example:\n  flatminima {command}" in done.stdout
    assert command == "methods" or "default: " in done.stdout


def test_python_m_is_the_command():
    done = python("-m", "flatminima", "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("flatminima ")


BAD = [
    (["finetune", "--perturb", "nsoo"], "unknown method 'nsoo': did you mean 'nso'"),
    (["finetune", "--perturb", "nso", "--noise", "gauss"], "unknown noise distribution 'gauss'"),
    (["finetune", "--perturb", "nso", "--noise", "cauchy"], "no variance"),
    (["finetune", "--perturb", "nso", "--sigma", "-1"], "--sigma is -1.0"),
    (["finetune", "--perturb", "nso", "--sigma", "nan"], "--sigma is nan"),
    (["finetune", "--perturb", "nso", "--sigma", "inf"], "--sigma is inf"),
    (["finetune", "--perturb", "nso", "--num-perturbations", "0"], "--num-perturbations is 0"),
    (["finetune", "--data", "digit"], "did you mean 'digits'"),
    (["finetune", "--data", "./nowhere.csv"], "nowhere.csv"),
    (["finetune", "--model", "mlpp"], "did you mean 'mlp'"),
    (["finetune", "--recipe", "nowhere.yaml"], "cannot read the recipe nowhere.yaml"),
    (["finetune", "--lr", "fast"], "--lr is 'fast': give a number"),
    (["finetune", "--lr", "1e9", "--no-pretrain"], "at step"),
    (["compare", "--perturb", "plain,nos"], "did you mean 'nso'"),
    (["compare", "--perturb", ""], "names no method"),
    (["compare", "--perturb", "plain,nso:noise=lapalce"], "did you mean 'laplace'"),
    (["compare", "--data", "digitz"], "did you mean 'digits'"),
    (["compare", "--keep", "best"], "--validation-fraction"),
    (["finetune", "--seed", "1e30"], "--seed is"),
    (["finetune", "--lr", "1e39"], "--lr is"),
    (["finetune", "--max-grad-norm", "0"], "--max-grad-norm is 0.0"),
    (["finetune", "--model", "./nomodel", "--data", "pydocs"], "no such model folder"),
    (["finetune", "--recipe", str(DEMO)], "'seeds' is for `flatminima compare`"),
    (["compare", "--perturb", "plain,plain"], "names a method twice"),
    (["compare", "--seeds", "0"], "--seeds is 0"),
    (["compare", "--seeds", "few"], "--seeds is 'few'"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, words):
    code, printed, errors = run(capsys, *arguments, "--out", tmp_path / "a")
    assert code == 2
    assert printed == ""
    assert words in errors
    assert len(errors.strip().splitlines()) == 1
    assert "Traceback" not in errors


def test_an_unknown_flag_exits_with_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", "--sigmaa", "1", "--out", str(tmp_path / "a")])
    assert stopped.value.code == 2


def test_resume_takes_no_other_settings(tmp_path, capsys):
    code, _, errors = run(capsys, "finetune", "--resume", tmp_path, "--sigma", "1")
    assert code == 2
    assert "leave out --sigma" in errors


@pytest.mark.parametrize("target", ["nowhere", "."])
def test_measuring_what_is_no_run(tmp_path, capsys, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    code, _, errors = run(capsys, "measure", target)
    assert code == 2
    assert "is no run directory" in errors


def test_measuring_a_run_whose_checkpoints_are_damaged(tmp_path, capsys):
    out = tmp_path / "a"
    run(capsys, "finetune", *RUN, "--out", out)
    path = out / "checkpoints/last/model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    code, _, errors = run(capsys, "measure", out)
    assert code == 0
    assert "truncated or changed" in errors
    assert "using" in errors
    previous = out / "checkpoints/previous/model.safetensors"
    previous.unlink()
    code, _, errors = run(capsys, "measure", out)
    assert code == 2
    assert "missing" in errors


def test_measuring_a_model_from_elsewhere_needs_data(tmp_path, capsys):
    code, _, errors = run(capsys, "measure", "someone/model")
    assert code == 2
    assert "--data" in errors


def test_a_study_in_a_directory_of_another_study(tmp_path, capsys):
    arguments = ["compare", "--perturb", "plain", "--seeds", "1", *RUN, "--no-measure"]
    run(capsys, *arguments, "--out", tmp_path / "b")
    code, _, errors = run(capsys, *arguments, "--lr", "0.01", "--out", tmp_path / "b")
    assert code == 2
    assert str(tmp_path / "b") in errors


def test_runs_and_studies_do_not_overwrite_each_other(tmp_path, capsys):
    run(capsys, "finetune", *RUN, "--no-measure", "--out", tmp_path / "run")
    study = ["compare", "--perturb", "plain,nso", "--seeds", "2", *RUN, "--no-measure"]
    run(capsys, *study, "--out", tmp_path / "study")
    kept = {
        path: path.read_bytes()
        for path in (tmp_path / "run/results.json", tmp_path / "study/results.json")
    }
    for arguments, words in (
        ([*study, "--out", tmp_path / "run"], "holds a run"),
        (["finetune", *RUN, "--out", tmp_path / "study"], "holds a study"),
        ([*study[:2], "nso", *study[3:], "--out", tmp_path / "study"], "that has plain too"),
        ([*study[:4], "1", *study[5:], "--out", tmp_path / "study"], "that has seed 1 too"),
        ([*study, "--lr", "0.2", "--out", tmp_path / "study"], "with another lr"),
    ):
        code, _, errors = run(capsys, *arguments)
        assert code == 2
        assert words in errors
    assert all(path.read_bytes() == content for path, content in kept.items())
    more = [*study[:2], "plain,nso,sam", *study[3:], "--out", tmp_path / "study"]
    assert run(capsys, *more)[0] == 0


def test_an_option_for_all_is_left_out_where_a_method_lacks_it(tmp_path, capsys):
    arguments = ["--noise", "laplace", "--seeds", "1", *RUN, "--no-measure"]
    code, _, errors = run(
        capsys, "compare", "--perturb", "plain,nso", *arguments, "--out", tmp_path / "a"
    )
    assert (code, errors) == (0, "")
    assert "noise: laplace" in (tmp_path / "a/nso/seed-0/recipe.yaml").read_text()
    code, _, errors = run(
        capsys, "compare", "--perturb", "plain,sam", *arguments, "--out", tmp_path / "b"
    )
    assert code == 2
    assert "--noise is an option that none of plain, sam has" in errors
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory(tmp_path, capsys):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    code, _, errors = run(capsys, "finetune", *RUN, "--out", tmp_path / "a")
    tmp_path.chmod(stat.S_IRWXU)
    assert code == 2
    assert "cannot write" in errors


def test_an_out_below_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _, errors = run(capsys, "finetune", *RUN, "--out", tmp_path / "file" / "a")
    assert code == 2
    assert "cannot write" in errors
    assert len(errors.strip().splitlines()) == 1
