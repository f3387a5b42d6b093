"""Regression as a task of a run: its score, its objectives, its models, its numbers everywhere."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from flatminima import ConR
from flatminima.errors import InputError
from flatminima.training import models
from flatminima.training.data import DataSpec, load
from flatminima.training.data.numbers import Scale
from flatminima.training.minimized import objective
from flatminima.training.prepared import prepare
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune, resume
from flatminima.training.tasks import Regression, Shots, task_of

QUICK = {"data": "diabetes", "epochs": 2, "measure": False}
SILENT = {"say": lambda text: None}


def recipe(**changes):
    return Recipe.from_flat({**QUICK, **changes})


class Predicts(nn.Module):
    """Gives the numbers that it is asked with."""

    def forward(self, x):
        return x


def asked(predictions, targets):
    """A batch for `Predicts`."""
    return {"inputs": torch.tensor(predictions), "targets": torch.tensor(targets)}


def test_scores_are_in_the_unit_of_the_labels():
    labels = np.array([10.0, 20.0, 30.0, 60.0])
    scale = Scale(mean=30.0, deviation=20.0)
    off = np.array([1.0, -2.0, 4.0, 8.0])
    batches = [asked((labels + off - 30) / 20, (labels - 30) / 20)]
    found = Regression(scale).score(Predicts(), batches, torch.device("cpu"))
    assert found["mae"] == pytest.approx(15 / 4)
    assert found["gmean"] == pytest.approx(64**0.25)
    assert found["loss"] == pytest.approx(np.square(off / 20).mean())
    assert tuple(found) == Regression(scale).metrics == ("mae", "loss", "gmean")


def test_an_error_of_0_leaves_the_geometric_mean_finite():
    batches = [asked([0.0, 0.0], [0.0, 1.0])]
    found = Regression().score(Predicts(), batches, torch.device("cpu"))
    assert 0 < found["gmean"] < 1e-5


def test_shot_groups_are_those_of_the_literature():
    labels = np.concatenate(
        [np.full(n, age) for age, n in ((20, 101), (30, 100), (40, 20), (50, 19))]
    )
    shots = Shots.of(labels, width=1.0, few=20, many=100)
    labels = np.array([20, 20.9, 21, 30, 40, 50, 99, -5])
    groups = ["many", "many", "few", "medium", "medium", "few", "few", "few"]
    assert shots.group(labels).tolist() == groups
    assert shots.present == ("many", "medium", "few")


def test_a_bin_is_a_hundredth_of_the_range_by_default_and_survives_rounding():
    assert Shots.of(np.array([0.0, 250.0]), None, 20, 100).width == 2.5
    tenths = (np.arange(1, 9) / 10).astype(np.float32)
    shots = Shots.of(np.repeat(tenths, 30), 0.1, 20, 100)
    assert set(shots.counts.values()) == {30}


def test_errors_by_group_are_means_over_the_group():
    labels = np.concatenate([np.zeros(30), np.ones(5)])
    task = Regression(Scale(), Shots.of(labels, 1.0, 20, 100))
    assert task.metrics == (
        "mae",
        "loss",
        "gmean",
        "mae_medium",
        "mae_few",
        "gmean_medium",
        "gmean_few",
    )
    batches = [asked([1.0, 3.0], [0.0, 0.0]), asked([6.0], [1.0])]
    found = task.score(Predicts(), batches, torch.device("cpu"))
    assert (found["mae_medium"], found["mae_few"]) == (2.0, 5.0)
    assert found["gmean_medium"] == pytest.approx(3**0.5)
    only = task.score(Predicts(), batches[:1], torch.device("cpu"))
    assert math.isnan(only["mae_few"])


def test_labels_that_all_occur_as_often_have_no_groups():
    assert Shots.of(np.arange(10.0), 1.0, 20, 100).present == ()


def test_a_run_on_numbers_is_scored_and_measured(tmp_path):
    values = {"epochs": 30, "measure": True, "probes": 4, "draws": 4, "lr": 0.01}
    values |= {"label_bin": 20, "few_shot": 15, "many_shot": 30}
    found = finetune(recipe(**values), tmp_path / "a", **SILENT)["metrics"]
    data = load(DataSpec("diabetes"), 0)
    labels = data.test.targets * data.scale.deviation + data.scale.mean
    by_mean = np.abs(labels - data.scale.mean).mean()
    assert 30 < found["test_mae"] < 0.9 * by_mean
    assert found["test_loss"] < 1
    assert found["test_gmean"] < found["test_mae"]
    groups = [load_group for load_group in found if load_group.startswith("test_mae_")]
    assert set(groups) == {"test_mae_many", "test_mae_medium", "test_mae_few"}
    assert math.isfinite(found["hessian_trace"])
    assert not (tmp_path / "a/predictions.json").exists()


def test_the_best_weights_are_those_of_the_smallest_error(tmp_path):
    finetune(recipe(epochs=8, keep="best", lr=0.2), tmp_path / "a", **SILENT)
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    errors = {r["step"]: r["validation_mae"] for r in lines if "validation_mae" in r}
    state = json.loads((tmp_path / "a/checkpoints/best/state.json").read_text())
    assert errors[state["progress"]["step"]] == min(errors.values())


def test_conr_sees_its_window_in_the_unit_of_the_labels():
    asked = recipe(objective="conr(window=10;beta=4;push=0.02)")
    prepared = prepare(asked)
    found = objective(prepared.recipe, prepared.data)
    deviation = prepared.data.scale.deviation
    assert isinstance(found, ConR)
    assert deviation > 70
    assert found.contrast.window == pytest.approx(10 / deviation)
    assert found.contrast.push == pytest.approx(0.02 * deviation)
    assert found.beta == pytest.approx(4 / deviation)


@pytest.mark.parametrize("perturb", ["plain", "nso", "sam"])
def test_conr_combines_with_the_methods_of_the_slot(tmp_path, perturb):
    asked = recipe(objective="conr(window=10;beta=4;loss=mse)", perturb=perturb)
    asked = asked.but(reparam="distance-penalty(weight=0.01)")
    found = finetune(asked, tmp_path / "a", **SILENT)
    assert math.isfinite(found["metrics"]["test_mae"])


def test_a_run_with_conr_continues_as_if_never_stopped(tmp_path):
    import shutil

    settings = {"objective": "conr(window=10;beta=4)", "perturb": "nso", "save_every": 5}
    for name in ("whole", "cut"):
        finetune(recipe(**settings), tmp_path / name, **SILENT)
    (tmp_path / "cut/results.json").unlink()
    shutil.rmtree(tmp_path / "cut/checkpoints/last")
    torch.manual_seed(123)
    resume(tmp_path / "cut", **SILENT)
    whole, cut = (
        (tmp_path / run / "checkpoints/last/model.safetensors").read_bytes()
        for run in ("whole", "cut")
    )
    assert whole == cut


@pytest.fixture
def shades(tmp_path):
    """A table of images and how bright they are."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    rows = ["image,label"]
    for n in range(40):
        bright = float(rng.uniform(0, 200))
        pixels = rng.integers(0, 50, (16, 16, 3)) + bright
        image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{n}.png")
        rows.append(f"{n}.png,{bright / 200:.4f}")
    (tmp_path / "shades.csv").write_text("\n".join(rows))
    return str(tmp_path / "shades.csv")


def test_images_have_the_views_of_their_augmentation(tmp_path, shades):
    pytest.importorskip("kornia")
    values = {"data": shades, "task": "regression", "image_size": 16, "model": "cnn"}
    asked = recipe(**values, objective="conr(window=0.05;beta=0.1)", batch_size=8)
    found = finetune(asked, tmp_path / "run", **SILENT)
    assert math.isfinite(found["metrics"]["test_mae"])


def test_images_for_a_perceptron_are_vectors_and_jittered(tmp_path, shades):
    values = {"data": shades, "task": "regression", "image_size": 8, "model": "mlp"}
    asked = recipe(**values, objective="conr(window=0.05)", lr=0.001)
    assert math.isfinite(finetune(asked, tmp_path / "run", **SILENT)["metrics"]["test_mae"])


TINY = {
    "model_type": "bert",
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


@pytest.fixture
def lengths(tmp_path):
    """A table of texts and a number for each; a transformer's config beside it."""
    pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    words = ["one", "two", "three", "four"]
    chosen = rng.integers(0, 4, (60, 5))
    rows = [f"{' '.join(words[k] for k in row)},{row.sum() + 0.5}" for row in chosen]
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(rows))
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    values = {"data": str(tmp_path / "texts.csv"), "task": "regression", "max_length": 16}
    return {**values, "model": f"config:{tmp_path / 'config.json'}"}


def test_a_transformer_predicts_one_number(tmp_path, lengths):
    import transformers

    found = finetune(recipe(**lengths), tmp_path / "a", **SILENT)
    assert math.isfinite(found["metrics"]["test_mae"])
    folder = tmp_path / "a/checkpoints/last"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    data = json.loads((tmp_path / "a/data.json").read_text())
    assert model.config.label_deviation == data["labels_standardized_by"]["deviation"]
    # It is a model for the next run of numbers, and not for one of classes.
    again = recipe(**{**lengths, "model": str(folder)}, lr=0.0)
    scored = finetune(again, tmp_path / "b", **SILENT)["metrics"]
    assert scored["test_mae"] == pytest.approx(found["metrics"]["test_mae"], rel=1e-6)


def test_a_head_for_classes_is_no_head_for_numbers(tmp_path, lengths):
    folder = str(tmp_path / "a")
    classes = tmp_path / "classes.csv"
    classes.write_text("text,label\n" + "\n".join(f"one two {n},{'xyz'[n % 3]}" for n in range(30)))
    of_classes = {"data": str(classes), "model": lengths["model"], "max_length": 16}
    finetune(recipe(**of_classes, epochs=1), tmp_path / "a", **SILENT)
    asked = {**lengths, "model": folder + "/checkpoints/last"}
    with pytest.raises(InputError, match=r"3 classes, but texts is a regression, .*--new-head"):
        prepare(recipe(**asked))
    assert prepare(recipe(**asked, new_head=True)).built.model.config.num_labels == 1


def test_text_has_no_views(lengths):
    with pytest.raises(InputError, match=r"--objective conr changes .* holds texts: .*squared-err"):
        prepare(recipe(**lengths, objective="conr(window=1)"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "mixup"}, "a loss of classification, and diabetes is a task of regression"),
        ({"data": "digits", "objective": "conr(window=1)"}, "a loss of regression, and digits"),
        ({"objective": "conr"}, "'conr' needs window"),
        ({"objective": "conr(windw=1)"}, "did you mean 'window'"),
        ({"objective": "conr(window=1;views=crop)"}, "give a function"),
        ({"model": "cnn"}, "takes images"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(changes, words):
    with pytest.raises(InputError, match=words):
        prepare(recipe(**changes))


def test_a_layer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="unknown layer 'haed'"):
        finetune(recipe(objective="conr(window=1;layer=haed)"), tmp_path / "a", **SILENT)


def test_default_model_and_outputs_of_numbers():
    data = load(DataSpec("diabetes"), 0)
    assert models.default_model(data) == "mlp"
    assert models.build("mlp", data).model[-1].out_features == 1
    assert isinstance(task_of(data), Regression)
