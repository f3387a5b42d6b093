"""`flatminima tune-sigma` as a user has it."""

import json

import pytest
import yaml

from flatminima.cli import flags, main

QUICK = ["--epochs", "1", "--no-pretrain", "--no-measure", "--train-size", "100", "--lr", "0.2"]


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_sweep_ends_with_a_command_that_runs(tmp_path, capsys):
    out = tmp_path / "t"
    sweep = ["tune-sigma", "--perturb", "nso:interval=2", "--values", "0.1,0.2", "--seeds", "1"]
    code, printed, errors = run(capsys, *sweep, *QUICK, "--workers", "1", "--out", out)
    assert (code, errors) == (0, "")
    assert "0 (plain)" in printed
    assert "●" in printed
    best = json.loads((out / "tune.json").read_text())["best"]
    command = printed.split("next: flatminima ")[1].split()
    if best:
        assert f"--perturb nso:interval=2 --sigma {best:g}" in " ".join(command)
    code, printed, errors = run(capsys, *command)
    assert (code, errors) == (0, "")
    assert "test_accuracy" in printed


def test_the_next_command_says_what_the_recipe_said():
    file = "data: digits\nepochs: 1\npretrain: no\nmeasure: yes\nlr: 1e-2\nmodel: null\n"
    said = yaml.safe_load(file)
    words = "--data digits --epochs 1 --no-pretrain --measure --lr 0.01"
    assert flags.words(said) == words.split()


def test_the_start_value_alone(tmp_path, capsys):
    arguments = ["tune-sigma", "--no-measure", "--start-only", "--out", tmp_path / "t"]
    code, printed, errors = run(capsys, *arguments)
    assert (code, errors) == (0, "")
    assert printed.startswith("sigma 0.")
    assert "of it; 5 draws" in printed
    # The same again; and where there is none.
    assert run(capsys, *arguments)[1] == printed
    code, _, errors = run(capsys, *arguments, "--lr", "1e9", "--out", tmp_path / "u")
    assert code == 2
    assert "no start value: " in errors
    assert len(errors.strip().splitlines()) == 1


BAD = [
    (["--perturb", "nos"], "did you mean 'nso'"),
    (["--perturb", "plain"], "'plain' has nothing to tune"),
    (["--perturb", "nso,sam"], "name one method"),
    (["--perturb", "sam", "--start-only"], "a start value is of sigma"),
    (["--values", "a,b"], "--values is 'a,b': give numbers"),
    (["--values", ","], "--values names no value"),
    (["--values", "-1"], "--values has -1"),
    (["--seeds", "0"], "--seeds is 0"),
    (["--seeds", "few"], "--seeds is 'few'"),
    (["--workers", "0"], "--workers is 0"),
    (["--validation-fraction", "0"], "leaves no samples to choose by"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, words):
    code, printed, errors = run(capsys, "tune-sigma", *arguments, "--out", tmp_path / "t")
    assert (code, printed) == (2, "")
    assert words in errors
    assert len(errors.strip().splitlines()) == 1


def test_the_tuned_strength_is_no_flag(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["tune-sigma", "--sigma", "0.1", "--out", str(tmp_path / "t")])
    assert stopped.value.code == 2
