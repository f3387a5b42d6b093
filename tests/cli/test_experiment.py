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
    "a loss of classes for numbers": ("epochs: 10", "task: regression", 12, "loss of classific"),
    "a metric to show": ("[test_loss]", "[test_los]", 3, "'test_loss'"),
    "a misspelt average": ("nso:interval=2", "plain:keep=swaa", 11, "'swa'"),
    "a misspelt augmentation": ("nso:interval=2", "plain:augment=standrad", 11, "'standard'"),
    "a strength in words": ("nso:interval=2", "nso:sigma=abc", 11, "must be a number"),
    "images' model for texts": ("google-bert/bert-base-uncased", "cnn", 7, "bert-small, minilm"),
    "a misspelt model": ("google-bert/bert-base-uncased", "bert-smal", 7, "'bert-small'"),
    "a list for a model": ("google-bert/bert-base-uncased", "[mlp, cnn]", 7, "give one value"),
    "null for a number": ("epochs: 10", "batch_size: null", 21, "needs a value"),
    "a key both set and varied": ("lr: 1.0e-5", "label_noise: 0.1", 18, "set in line 20"),
    "a value to vary twice": ("[0.0, 0.2]", "[0.2, 0.2]", 18, "given twice"),
    "a strength of no method": ("  - sam\n", "", 15, "--rho is not what"),
    "a constraint without its radius": ("(radius=0.5)", "", 13, "needs radius"),
}


SHORT = {
    "a loss of classes for matrices": (
        "data: matrix-sensing\nobjective: mixup",
        2,
        "take squared-error",
    ),
    "steps of another schedule": ("data: digits\nlr_step: 5", 2, "--lr-schedule step"),
    "a rate of no average": ("swa_lr: 0.01\nperturb: [plain, plain:keep=ema]", 1, "--keep swa"),
    "how to tune nothing": ("data: digits\ntuner: sweep", 2, "--tune, which nothing"),
    "how often to look at no trace": ("live_trace_every: 2\ndata: digits", 1, "--live-trace"),
    "a radius below 0": ("perturb:\n- plain:reparam=distance-constraint(radius=-1)", 2, "above 0"),
    "a rank in words": ("data: digits\nreparam: lora(rank=low)", 2, "whole number"),
    "a misspelt word of an option": (
        "reparam: distance-constraint(radius=1;norm=row)",
        1,
        "'rows'",
    ),
    "a column of built-in data": ("data: pydocs\nlabel_column: label", 2, "is built in"),
    "folders of built-in data": ("data: digits\ndomain_folders: true", 2, "is built in"),
    "columns left for the small data": ("text_column: text\ndata: pydocs", 1, "is built in"),
    "misspelt data": ("data: digts", 1, "'digits'"),
    "misspelt data with options": ("data: scens(images=9)", 1, "'scenes'"),
    "an option of data that take none": ("data: glyphs(n=3)", 1, "takes no options"),
    "a misspelt option of data": ("data: scenes(image=100)", 1, "'images'"),
    "a word for an option of data": ("data: arithmetic(train=many)", 1, "whole number"),
    "an option of data twice": ("data: two-bits(flip=0.1;flip=0.2)", 1, "twice"),
    "an option of cosines": ("data: cosines(term=3)", 1, "'terms'"),
    "an option of matrices": ("data: matrix-sensing(rnk=3)", 1, "'rank'"),
    "open brackets": ("data: scenes(images=9", 1, "write options as"),
    "a list of data": ("data: [digits]", 1, "give one value"),
    "no data": ("data: null", 1, "needs a value"),
    "a classifier of captions": ("data: scenes\nmodel: cnn", 2, "clip-small"),
    "a network of vectors for texts": ("data: pydocs\nmodel: mlp", 2, "bert-small"),
    "a text model for images": ("data: glyphs\nmodel: bert-small", 2, "mlp, cnn, vit-tiny"),
    "any transformer for vectors": ("data: diabetes\nmodel: owner/name", 2, "take mlp"),
    "a classifier of rationales": ("data: arithmetic\nmodel: minilm", 2, "gpt2-tiny"),
    "an image model for texts of a hub": (
        "data: a/b\ntext_column: t\nmodel: vit-tiny",
        3,
        "bert-small",
    ),
    "a text model for images of a hub": ("data: a/b\nimage_column: i\nmodel: minilm", 3, "cnn"),
    "a short model name": ("model: ccn\ndata: digits", 1, "'cnn'"),
    "a prompted model": (
        "data: scene-classes\nmodel: prompts:clip-smal",
        2,
        "'prompts:clip-small'",
    ),
    "no folder of a model": ("data: digits\nmodel: ./nowhere", 2, "no such model folder"),
    "no config of a model": ("data: digits\nmodel: config:nowhere.json", 2, "cannot read"),
    "the best by nothing": ("data: digits\nkeep: best", 2, "no validation samples"),
    "none set aside": ("data: pydocs\nvalidation_fraction: 0\nkeep: best", 3, "no validation"),
    "none of a table": ("data: a.csv\nkeep: best\nvalidation_fraction: 0", 2, "no validation"),
    "none of every class": ("data: a/b\nper_class: 3/0/3\nkeep: best", 3, "no validation"),
    "stopping by nothing": ("data: digits\nearly_stopping: 3", 2, "no validation samples"),
    "one method's best by nothing": ("data: digits\nperturb: nso:keep=best", 2, "no validation"),
    "tuning by nothing": ("data: digits\ntune: weight_decay", 2, "no validation samples"),
    "a misspelt knob": ("data: pydocs\ntune: weight_deca", 2, "'weight_decay'"),
    "a misspelt metric along runs": (
        "data: digits\nabout:\n  along:\n  - test_loss\n  - hesian_trace",
        5,
        "'hessian_trace'",
    ),
    "another task than the data's": ("data: digits\ntask: regression", 2, "classification"),
    "a loss of another task": ("data: diabetes\nobjective: cross-entropy", 2, "squared-error"),
    "noise on numbers": ("data: diabetes\nlabel_noise: 0.1", 2, "draws classes anew"),
    "augmented vectors": ("data: two-bits\naugment: standard", 2, "holds vectors"),
    "mixed texts": ("data: pydocs\nobjective: mixup", 2, "mixes the numbers"),
    "misspelt data to vary": ("vary:\n  data: [digits, glyps]", 2, "'glyphs'"),
    "a misspelt model to vary": ("data: digits\nvary:\n  model:\n  - ccn", 4, "'cnn'"),
    "nothing to vary": ("data: digits\nvary: {}", 2, "must hold a mapping"),
    "an empty list to vary": ("data: digits\nvary:\n  lr: []", 3, "give a list"),
    "a nested list to vary": ("data: digits\nvary:\n  lr: [[0.1]]", 3, "give a number"),
    "words for seeds": ("data: digits\nseeds: five", 2, "give a whole number"),
    "a number for methods": ("data: digits\nperturb: 7", 2, "list of methods"),
    "no methods": ("data: digits\nperturb: []", 2, "names no method"),
    "an option that no method has": ("perturb: sam\nnum_perturbations: 2", 2, "none of sam"),
    "a misspelt option": ("perturb:\n- plain\n- nso:sigm=0.1", 3, "'sigma'"),
    "a misspelt adapter's option": ("perturb:\n- plain:reparam=lora(rnak=2)", 2, "'rank'"),
    "a tab": ("data: digits\nsmall:\n\tlr: 3", 3, "by spaces"),
    "two documents": ("data: digits\n---\ndata: glyphs", 2, "another document"),
    "a quote left open": ("data: 'digits", 2, "quoted scalar in line 1"),
    "a mapping that holds itself": ("data: digits\nabout: &a\n  title: *a", 2, "holds itself"),
}

NO_MAPPING = {
    "nothing": (b"", "is empty"),
    "comments alone": (b"# data: digits\n", "is empty"),
    "a list": (b"- data: digits\n", "must be a mapping"),
    "a word": (b"digits\n", "must be a mapping"),
    "a number for a key": (b"1: 2\n", "must be a mapping"),
    "lists without end": (b"data: " + b"[" * 5000, "nested too deeply"),
    "another encoding": (b"data: \xff\n", "UTF-8"),
    "a character that is none": (b"data: \0\n", "not valid YAML"),
}

OF_SMALL = {
    "varied in full, set when small": ("vary:\n  lr: [0.2]\nsmall:\n  lr: 0.1", 3, "line 5"),
    "set in full, varied when small": ("lr: 0.1\nsmall:\n  vary:\n    lr: [0.2]", 5, "line 2"),
    "both when small": ("small:\n  lr: 0.1\n  vary:\n    lr: [0.2]", 5, "line 3"),
    "data when small": ("small:\n  data: glyps", 3, "'glyphs'"),
    "a model when small": ("model: mlp\nsmall:\n  data: pydocs", 2, "bert-small"),
    "validation when small": (
        "validation_fraction: 0\nkeep: best\nsmall:\n  data: digits",
        3,
        "no validation",
    ),
}

TAKEN = {
    "a rate of one method's average": "swa_lr: 0.01\nperturb: [plain, plain:keep=swa]",
    "steps of a schedule that is varied": "lr_step: 5\nvary:\n  lr_schedule: [cosine, step]",
    "what says what is so anyway": "lr_step: 10\naverage_from: 0.75\ntuner: stn",
    "adapters of layers that are not here": "data: digits\nreparam: lora(rank=4;targets=query)",
    "columns of a table": "data: a.csv\ntext_column: text\nlabel_column: label",
    "data of a hub": "data: owner/digts",
    "data of a hub by a bare name": "data: imdb",
    "a table that is not here": "data: digts.csv",
    "a hub's language model": "data: arithmetic\nmodel: t5-small",
    "a hub's text model": "data: pydocs\nmodel: bert-base-uncased",
    "a hub's model for data of a hub": "data: owner/name\nmodel: owner/other",
    "a validation set of its own": "data: glyphs\nkeep: best\nvalidation_fraction: 0",
    "what a hub may bring": "data: owner/name\nkeep: best\nvalidation_fraction: 0",
    "prompts of few classes": "data: scene-classes(novel=0)\nmodel: prompts:clip-small",
    "a network for few classes": "data: scene-classes(novel=0)\nmodel: cnn",
    "all metrics": "data: digits\nabout:\n  shows: [test_accuracy_novel, test_mae_few, peak_bytes]",
    "unset when small": "data: digits\nlr: null\nvary:\n  lr: [0.1]",
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


@pytest.mark.parametrize(("text", "line", "words"), SHORT.values(), ids=SHORT)
def test_a_name_or_a_value_that_cannot_be_is_refused_too(
    tmp_path, nothing_is_read, text, line, words
):
    file = write(tmp_path, text + "\n")
    with pytest.raises(InputError) as refused:
        parse(file, small=False)
    assert str(refused.value).startswith(f"{file}, line {line}: ")
    assert words in str(refused.value)


@pytest.mark.parametrize(("content", "words"), NO_MAPPING.values(), ids=NO_MAPPING)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content, words):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=words):
        parse(file, small=False)


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(InputError, match="cannot read the recipe"):
        parse(tmp_path, small=False)


@pytest.mark.parametrize(("text", "line", "words"), OF_SMALL.values(), ids=OF_SMALL)
def test_keys_that_conflict_with_those_of_small_are_refused(
    tmp_path, nothing_is_read, text, line, words
):
    file = write(tmp_path, f"data: glyphs\n{text}\n")
    assert parse(file, small=False)
    with pytest.raises(InputError) as refused:
        parse(file, small=True)
    assert str(refused.value).startswith(f"{file}, line {line}: ")
    assert words in str(refused.value)


@pytest.mark.parametrize("text", TAKEN.values(), ids=TAKEN)
def test_what_may_be_is_taken(tmp_path, nothing_is_read, text):
    assert parse(write(tmp_path, text + "\n"), small=False)


def test_nothing_is_said_of_the_layers_that_values_are_tried_on(tmp_path, nothing_is_read, recwarn):
    parse(write(tmp_path, "data: digits\nreparam: weight-compander(a=0.001)"), small=False)
    assert not recwarn.list
