"""Objectives in recipes: what is asked for is what is minimized."""

import json
import math

import pytest
import torch

from flatminima.errors import InputError
from flatminima.objectives import LabelSmoothing, Mixup
from flatminima.study.compare import compare
from flatminima.training.brackets import parse_brackets
from flatminima.training.checks import for_methods
from flatminima.training.minimized import objective
from flatminima.training.prepared import prepare
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune

QUICK = {"epochs": 2, "pretrain": False, "measure": False}


def recipe(**changes):
    return Recipe.from_flat({**QUICK, **changes})


def made(asked):
    prepared = prepare(recipe(objective=asked))
    return objective(prepared.recipe, prepared.data)


def test_options_stand_in_brackets():
    assert parse_brackets("mixup") == ("mixup", {})
    assert parse_brackets("mixup(alpha=0.4)") == ("mixup", {"alpha": 0.4})
    assert parse_brackets("x(a=1; b=word)") == ("x", {"a": 1, "b": "word"})
    found = made("label-smoothing(alpha=0.4)")
    assert isinstance(found, LabelSmoothing)
    assert found.alpha == 0.4
    assert isinstance(made("mixup"), Mixup)


def test_a_run_minimizes_its_objective(tmp_path):
    silent = {"say": lambda text: None}
    finetune(recipe(objective="label-smoothing(alpha=1)", epochs=30), tmp_path / "a", **silent)
    last = json.loads((tmp_path / "a/metrics.jsonl").read_text().splitlines()[-2])
    # All weight on the uniform target: the loss goes to log K, whatever the labels are.
    assert last["loss"] == pytest.approx(math.log(10), abs=0.1)


def test_a_run_with_mixup_continues_as_if_never_stopped(tmp_path):
    from flatminima.training.run import resume

    silent = {"say": lambda text: None}
    settings = {"objective": "mixup", "perturb": "nso", "save_every": 3}
    finetune(recipe(**settings), tmp_path / "whole", **silent)
    finetune(recipe(**settings), tmp_path / "cut", **silent)
    for name in ("results.json", "predictions.json"):
        (tmp_path / "cut" / name).unlink()
    torch.manual_seed(123)
    import shutil

    shutil.rmtree(tmp_path / "cut/checkpoints/last")
    resume(tmp_path / "cut", **silent)
    weights = [
        (tmp_path / run / "checkpoints/last/model.safetensors").read_bytes()
        for run in ("whole", "cut")
    ]
    assert weights[0] == weights[1]


def test_one_method_of_a_comparison_may_have_its_own(tmp_path):
    methods = ["plain", "plain:objective=label-smoothing(alpha=0.5)", "nso:objective=mixup"]
    found = compare(recipe(), methods, 1, tmp_path / "study", workers=1)
    accuracies = [found["methods"][m]["test_accuracy"]["mean"] for m in methods]
    assert len(set(accuracies)) == 3


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("label-smothing", "did you mean 'label-smoothing'"),
        ("label-smoothing(alpha)", "name\\(option=value\\)"),
        ("label-smoothing(alpha=0.4", "name\\(option=value\\)"),
        ("label-smoothing(alpha=4)", "alpha is 4"),
        ("gradient-norm", "needs weight"),
        ("backward-correction(noise=0.9)", "at 0.9 a label among 10 classes says nothing"),
        ("elr+", "is no objective of a run"),
        ("elr,mixup", "is 2 names, and one objective is taken: give one"),
        ("elr(lam=3),mixup", "write one name, and its options"),
        ("elr(lam=3),mixup(alpha=1)", "write one name, and its options"),
    ],
)
def test_mistakes_are_named_before_the_model_is_built(asked, words):
    with pytest.raises(InputError, match=words):
        made(asked)


def test_mixing_is_refused_for_text():
    with pytest.raises(InputError, match="holds texts"):
        prepare(recipe(data="pydocs", train_size=40, objective="mixup"))


def test_cutmix_is_refused_for_tables(tmp_path):
    rows = "\n".join(f"{i},{i % 7},{'ab'[i % 2]}" for i in range(60))
    (tmp_path / "t.csv").write_text(f"x,y,label\n{rows}\n")
    with pytest.raises(InputError, match="holds vectors"):
        prepare(recipe(data=str(tmp_path / "t.csv"), objective="cutmix"))


@pytest.mark.parametrize("name", ["cutmix", "cutmix(alpha=0.5)"])
def test_cutmix_is_refused_for_a_network_that_is_given_vectors(name):
    with pytest.raises(InputError, match="given them as vectors: say --model cnn, or take mixup"):
        prepare(recipe(objective=name))
    with pytest.raises(InputError, match="say --model cnn"):
        for_methods(recipe(), ["plain", f"nso:objective={name}"])
    assert prepare(recipe(objective=name, model="cnn")).built.model is not None


def test_a_constrained_run_ends_within_its_radius_and_continues_as_if_never_stopped(tmp_path):
    import shutil

    from safetensors.torch import load_file

    from flatminima.training.run import resume

    silent = {"say": lambda text: None}
    settings = {"reparam": "distance-constraint(radius=0.1)", "save_every": 3, "lr": 0.5}
    for name in ("whole", "cut"):
        finetune(recipe(**settings), tmp_path / name, **silent)
    for name in ("results.json", "predictions.json"):
        (tmp_path / "cut" / name).unlink()
    shutil.rmtree(tmp_path / "cut/checkpoints/last")
    resume(tmp_path / "cut", **silent)
    whole, cut = (
        load_file(tmp_path / run / "checkpoints/last/model.safetensors") for run in ("whole", "cut")
    )
    start = prepare(recipe(**settings)).built.model.state_dict()
    for name, weight in whole.items():
        assert torch.equal(weight, cut[name])
        if weight.dim() > 1:
            assert 0.09 < (weight - start[name]).norm() < 0.1001


def test_a_penalized_run_stays_nearer(tmp_path):
    from safetensors.torch import load_file

    distances = []
    for number, asked in enumerate(("none", "distance-penalty(weight=0.5)")):
        place = tmp_path / str(number)
        finetune(recipe(reparam=asked, epochs=5), place, say=lambda text: None)
        end = load_file(place / "checkpoints/last/model.safetensors")
        start = prepare(recipe()).built.model.state_dict()
        gaps = [(end[n] - start[n]).norm() for n in end if end[n].dim() > 1]
        distances.append(torch.stack(gaps).sum())
    assert distances[1] < 0.7 * distances[0]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("distance-penalti(weight=1)", "did you mean 'distance-penalty'"),
        ("lora,r-amt", "is 2 names, and one reparametrization is taken"),
        ("lora(rank=2),r-amt", "write one name, and its options"),
    ],
)
def test_a_reparametrization_that_cannot_be_is_named(asked, words):
    with pytest.raises(InputError, match=words):
        prepare(recipe(reparam=asked))


def test_masks_held_to_classes_are_refused_for_numbers_before_the_run(tmp_path):
    masked = recipe(data="diabetes", objective="conr(window=20)", reparam="r-amt", model="mlp")
    with pytest.raises(InputError, match=r"r-amt\(strength=0\)"):
        finetune(masked, tmp_path / "a", say=lambda text: None)
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match=r"r-amt\(strength=0\)"):
        compare(masked, ["plain", "nso"], 2, tmp_path / "b", workers=1)
    assert not (tmp_path / "b").exists()
    prepared = prepare(masked.but(reparam="r-amt(strength=0)"))
    objective(prepared.recipe, prepared.data)
