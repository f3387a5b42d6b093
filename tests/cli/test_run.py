"""`flatminima run` as a user has it, and every recipe that comes with the library."""

from pathlib import Path

import pytest

from flatminima.cli import main
from flatminima.cli.experiment import parse
from flatminima.training.checks import for_methods

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "paper").glob("*.yaml"))

QUICK = """
data: digits
pretrain: false
measure: false
epochs: 1
perturb: plain,nso
seeds: 2
vary:
  train_size: [20, 40]
small:
  seeds: 1
  vary:
    train_size: [20]
about:
  title: A test
"""


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(QUICK)
    return file


# The recipes of image sets that are downloaded differ by data and strengths alone.
ALIKE = [
    file for file in RECIPES if file.stem.startswith("images-") and "needs:" in file.read_text()
]


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_of_the_paper_can_run_as_far_as_can_be_told(file, small):
    asked = parse(file, small=small)
    assert asked.seeds >= (1 if small else 5)
    assert {"title", "purpose", "paper"} <= set(asked.about)
    if "needs" in asked.about and not small:
        return  # Its data are not here: that was what can be told without them.
    if file in ALIKE[1:]:
        return
    for_methods(asked.recipe, asked.methods)
    for name, values in (asked.grid or {}).items():
        for value in values:
            for_methods(asked.recipe.but(**{name: value}), asked.methods)


@pytest.mark.experiments
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_small_version_runs(file, capsys, tmp_path):
    code, printed, _ = run(capsys, "run", file, "--small", "--out", tmp_path / "out")
    assert code == 0
    assert f"experiment directory: {tmp_path / 'out'}" in printed


def test_the_small_version_runs_what_it_says(recipe, capsys, tmp_path):
    out = tmp_path / "out"
    code, printed, _ = run(capsys, "run", recipe, "--small", "--out", out, "--workers", "1")
    assert code == 0
    assert "train_size 20" in printed
    assert (out / "train_size=20" / "report.html").is_file()
    assert not (out / "train_size=40").exists()
    assert len(list((out / "train_size=20" / "nso").iterdir())) == 1


def test_without_anything_to_vary_it_is_a_comparison(capsys, tmp_path):
    file = tmp_path / "plain.yaml"
    file.write_text("data: digits\npretrain: false\nmeasure: false\nepochs: 1\nperturb: plain\n")
    code, _, _ = run(capsys, "run", file, "--out", tmp_path / "out", "--workers", "1")
    assert code == 0
    assert (tmp_path / "out" / "results.json").is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("epochs:", "epoch:"), "line 5: unknown recipe key 'epoch'"),
        (("vary:\n  train_size: [20, 40]", "vary: 3"), "'vary' must hold"),
        (("train_size: [20, 40]", "train_siz: [20]"), "did you mean 'train_size'"),
        (("small:\n  seeds: 1", "small:\n  sedes: 1"), "line 11: unknown recipe key 'sedes'"),
        (("epochs: 1", "epochs: many"), "--epochs is 'many'"),
        (("perturb: plain,nso", "perturb: plain,nsu"), "did you mean"),
        (("seeds: 2", "seeds: two"), "--seeds is 'two'"),
        # Met with the data alone.
        (("epochs: 1", "epochs: 1\ntest_domain: x"), "line 6: --test-domain x leaves a domain out"),
    ],
)
def test_mistakes_are_named_before_anything_runs(recipe, capsys, tmp_path, change, words):
    recipe.write_text(recipe.read_text().replace(*change))
    code, _, errors = run(capsys, "run", recipe, "--out", tmp_path / "out")
    assert code == 2
    assert words in errors
    assert not (tmp_path / "out").exists()


def test_a_recipe_without_a_small_version_says_so(recipe, capsys, tmp_path):
    recipe.write_text(recipe.read_text().split("small:")[0])
    code, _, errors = run(capsys, "run", recipe, "--small", "--out", tmp_path / "out")
    assert code == 2
    assert "leave --small out" in errors
