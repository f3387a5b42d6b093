"""A recipe that cannot be meant is refused with its line, before any data are read."""

import importlib

import pytest

from flatminima.cli.experiment import parse
from flatminima.errors import InputError

# Of a hub, so that whatever reads data would go out for them.
WHOLE = """\
about:
  title: A test
  shows: [test_loss]
data: nyu-mll/glue:mrpc
text_column: sentence1,sentence2
label_column: label
model: google-bert/bert-base-uncased
perturb:
  - plain
  - sam
  - nso:interval=2
  - plain:objective=label-smoothing(alpha=0.2)
  - plain:reparam=distance-constraint(radius=0.5)
seeds: 5
sigma: 0.01
rho: 0.05
vary:
  label_noise: [0.0, 0.2]
optimizer: adamw
lr: 1.0e-5
epochs: 10
small:
  data: pydocs
  text_column: null
  label_column: null
  epochs: 1
  vary:
    label_noise: [0.2]
"""

MISTAKES = {
    "a key of the top level": ("epochs: 10", "epoch: 10", 21, "'epochs'"),
    "a key of about": ("  title: A", "  titel: A", 2, "'title'"),
    "a key of small": ("  epochs: 1\n", "  epoch: 1\n", 26, "'epochs'"),
    "an experiment inside small": ("  data: pydocs", "  smal: 1", 23, "unknown recipe key"),
    "a field to vary": ("label_noise: [0.0", "label_nois: [0.0", 18, "'label_noise'"),
    "a method": ("  - sam", "  - sma", 10, "'sam'"),
    "a method's option": ("nso:interval=2", "nso:intervall=2", 11, "'interval'"),
    "a setting of a method": ("nso:interval=2", "nso:kep=swa", 11, "'keep'"),
    "an objective": ("=label-smoothing(", "=label-smothing(", 12, "'label-smoothing'"),
    "an objective's option": ("(alpha=0.2)", "(alpa=0.2)", 12, "'alpha'"),
    "a reparametrization": ("=distance-const", "=distanse-const", 13, "'distance-constraint'"),
    "its option": ("(radius=", "(radus=", 13, "'radius'"),
    "an objective for all": ("epochs: 10", "objective: cross-entrop", 21, "'cross-entropy'"),
    "a word among a field's": ("optimizer: adamw", "optimizer: adamm", 19, "'adam'"),
    "words for a number": ("lr: 1.0e-5", "lr: fast", 20, "give a number"),
    "half an epoch": ("epochs: 10", "epochs: 1.5", 21, "give a whole number"),
    "a number out of range": ("rho: 0.05", "rho: -1", 16, "at least 0"),
    "a fraction out of range": ("epochs: 10", "label_noise: 2", 21, "at most 1"),
    "words for a list of metrics": ("[test_loss]", "test_loss", 3, "a list of metrics"),
    "a number for a title": ("title: A test", "title: 3", 2, "give words"),
    "a mapping for a method": ("  - sam", "  - sam: 0.1", 10, "without spaces"),
    "a value of a method's setting": ("nso:interval=2", "nso:lr=fast", 11, "give a number"),
    "a value to vary": ("[0.0, 0.2]", "[0.0, much]", 18, "give a number"),
    "no list to vary": ("[0.0, 0.2]", "0.2", 18, "give a list"),
    "no seeds": ("seeds: 5", "seeds: 0", 14, "at least 1"),
    "half a seed": ("seeds: 5", "seeds: 1.5", 14, "give a whole number"),
    "a key twice": ("epochs: 10", "lr: 0.1", 21, "first in line 20"),
    "a method twice": ("  - nso:interval=2", "  - sam", 11, "twice"),
    "a seed to vary": ("label_noise: [0.0, 0.2]", "seed: [0, 1]", 18, "vary another field"),
    "AMSGrad of SGD": ("optimizer: adamw", "optimizer: sgd\namsgrad: true", 20, "--amsgrad"),
    "cutmix of texts": ("=label-smoothing(alpha=0.2)", "=cutmix", 12, "mixes the numbers"),
    "mixup of texts for all": ("epochs: 10", "objective: mixup", 21, "mixes the numbers"),
    "augmented texts": ("epochs: 10", "augment: standard", 21, "changes images"),
    "classes redrawn for numbers": ("epochs: 10", "task: regression", 18, "draws classes anew"),
    "a strength of no method": ("  - sam\n", "", 15, "--rho is not what"),
    "a constraint without its radius": ("(radius=0.5)", "", 13, "needs radius"),
}


@pytest.fixture
def nothing_is_read(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("data were read")

    # By its full name: the package has a function that is called like this module.
    loading = importlib.import_module("flatminima.training.data.load")
    monkeypatch.setattr(loading, "find_source", refuse)


def write(folder, text):
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("small", [False, True])
def test_the_recipe_itself_is_taken_without_reading_data(tmp_path, nothing_is_read, small):
    asked = parse(write(tmp_path, WHOLE), small=small)
    assert asked.recipe.loop.epochs == (1 if small else 10)
    assert asked.grid == {"label_noise": [0.2] if small else [0.0, 0.2]}
    assert len(asked.methods) == 5


@pytest.mark.parametrize(("right", "wrong", "line", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_refused_with_its_line(tmp_path, nothing_is_read, right, wrong, line, words):
    assert right in WHOLE
    file = write(tmp_path, WHOLE.replace(right, wrong, 1))
    with pytest.raises(InputError) as refused:
        parse(file, small=False)
    assert str(refused.value).startswith(f"{file}, line {line}: ")
    assert words in str(refused.value)


def test_a_mistake_of_the_small_version_has_its_own_line(tmp_path, nothing_is_read):
    file = write(tmp_path, WHOLE.replace("  epochs: 1\n", "  epochs: many\n"))
    assert parse(file, small=False)
    with pytest.raises(InputError, match=r"line 26: --epochs is 'many'"):
        parse(file, small=True)
