from dataclasses import fields

import pytest
import torch

from flatminima.errors import InputError
from flatminima.training.checks import for_methods
from flatminima.training.methods import perturbed, specialize
from flatminima.training.recipe import Recipe, dump, option_types, parse_method, read
from flatminima.training.specs import SECTIONS


def test_no_two_sections_share_a_field_name():
    names = [f.name for section in SECTIONS.values() for f in fields(section)]
    assert len(names) == len(set(names))


def test_every_field_says_what_it_is():
    for section in SECTIONS.values():
        for f in fields(section):
            assert f.metadata["help"], f.name


def test_a_recipe_survives_its_file(tmp_path):
    recipe = Recipe.from_flat({"perturb": "nso", "sigma": 0.02, "epochs": 3, "label_noise": 0.1})
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert Recipe.from_flat(read(tmp_path / "recipe.yaml")) == recipe


def test_words_become_numbers():
    # YAML reads 1e-4 as a word.
    recipe = Recipe.from_flat({"lr": "1e-4", "epochs": "3", "pretrain": "no", "sigma": None})
    assert (recipe.optimizer.lr, recipe.loop.epochs, recipe.model.pretrain) == (1e-4, 3, False)


def test_late_defaults_fill_only_what_was_left_open():
    recipe = Recipe.from_flat({"sigma": 0.3}).resolved("builtin", True)
    assert (recipe.perturb.sigma, recipe.loop.epochs, recipe.optimizer.lr) == (0.3, 60, 0.05)
    assert Recipe().resolved("transformers", False).optimizer.lr == 5e-5
    assert None not in [
        recipe.flat()[name] for name in ("rho", "optimizer", "probes", "draws", "measure_sigma")
    ]


def test_a_method_with_options():
    name, options = parse_method("nso:sigma=0.2:num_perturbations=3:noise=laplace:vectors=false")
    assert name == "nso"
    assert options == {"sigma": 0.2, "num_perturbations": 3, "noise": "laplace", "vectors": False}
    assert parse_method("plain") == ("plain", {})


def test_memory_and_noise_are_options_of_a_recipe():
    def optimizer(method):
        recipe = Recipe.from_flat({"perturb": method}).resolved("builtin", True)
        return perturbed(torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))]), recipe)

    found = optimizer("nso:memory=replay:noise=table")
    assert (found.memory, found.noise.name) == ("replay", "table")
    assert optimizer("nso-one-pass").memory == "exact"
    with pytest.raises(InputError, match="memory"):
        optimizer("nso:memory=none")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sigm": 1}, "did you mean 'sigma'"),
        ({"sigma": -1}, "--sigma is -1.0"),
        ({"sigma": "nan"}, "--sigma is nan"),
        ({"sigma": "inf"}, "--sigma is inf"),
        ({"sigma": "wide"}, "--sigma is 'wide': give a number"),
        ({"epochs": 2.5}, "--epochs is 2.5: give a whole number"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"num_perturbations": 0}, "--num-perturbations is 0"),
        ({"clean_weight": 1.5}, r"--clean-weight is 1.5: it must be finite and in \[0, 1\]"),
        ({"optimizer": "adm"}, "did you mean 'adam'"),
        ({"precision": "fp8"}, "did you mean 'fp32'|known are bf16, fp16, fp32"),
        ({"pretrain": "perhaps"}, "--pretrain is 'perhaps': give true or false"),
        ({"batch_size": None}, "--batch-size needs a value"),
        ({"label_noise": 1.2}, "label_noise is 1.2"),
    ],
)
def test_bad_values_are_named_with_their_flag(values, words):
    with pytest.raises(InputError, match=words):
        Recipe.from_flat(values)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("nso:sigmo=1", "did you mean 'sigma'"),
        ("nso:fast", "write options as name:option=value"),
        ("nso:sigma=wide", "sigma must be a number, not 'wide'"),
        ("looksam:k=0", "k must be at least 1"),
        ("nos", "did you mean 'nso'"),
    ],
)
def test_bad_methods_are_found_before_anything_runs(method, words):
    with pytest.raises(InputError, match=words):
        for_methods(Recipe(), [method])


@pytest.mark.parametrize(
    ("content", "words"), [("- a\n- b\n", "must be a mapping"), ("a: [1,\n", "not valid YAML")]
)
def test_bad_recipe_files(tmp_path, content, words):
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(InputError, match=words):
        read(tmp_path / "r.yaml")
    with pytest.raises(InputError, match="cannot read the recipe"):
        read(tmp_path / "missing.yaml")


def test_every_field_can_be_asked_for_by_name():
    assert set(option_types()) == set(Recipe().flat())


def test_settings_after_a_method_are_the_recipes_for_it_alone():
    method = "nso:sigma=0.2:lr=0.3:keep=swa:augment=standard:vectors=false"
    recipe = specialize(Recipe.from_flat({"perturb": method}))
    assert recipe.perturb.perturb == "nso:sigma=0.2:vectors=false"
    assert (recipe.optimizer.lr, recipe.loop.keep) == (0.3, "swa")
    assert recipe.data.augment == "standard"
    assert specialize(recipe) == recipe


def test_each_method_of_a_study_is_checked_with_its_own_settings():
    methods = ["plain", "plain:keep=swa", "bsam:lr=0.3", "nso:weight_decay=0.1"]
    assert list(for_methods(Recipe(), methods)) == methods
    for bad, words in {
        "plain:keep=best": "digits has no validation samples",
        "plain:seed=3": "unknown option of 'plain' 'seed'",
        "nso:lr=fast": "--lr is 'fast'",
        "bsam:optimizer=sgd": "SGD does not keep",
        "nso:sigma=0.1:sigma=0.2": "sets sigma twice",
        "nso:average_fron=0.5": "did you mean 'average_from'",
        "sam:signs=split": r"NSO\(signs='split'\)",
    }.items():
        with pytest.raises(InputError, match=words):
            for_methods(Recipe(), ["plain", bad])


def test_a_method_that_would_augment_what_is_no_image_is_refused_beforehand(tmp_path):
    table = tmp_path / "numbers.csv"
    table.write_text("x,y,label\n" + "".join(f"{i},{-i},{i % 2}\n" for i in range(40)))
    recipe = Recipe.from_flat({"data": str(table), "label_column": "label", "model": "mlp"})
    with pytest.raises(InputError, match="augment 'standard' changes images, and numbers holds"):
        for_methods(recipe, ["plain", "plain:augment=standard"])
