"""What a run keeps besides its last weights."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from flatminima.errors import InputError
from flatminima.training import loop, run
from flatminima.training.measuring import measure_target, open_target
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune, resume

SMALL = {"epochs": 8, "measure": False, "pretrain": False, "train_size": 64}
CNN = {**SMALL, "model": "cnn"}


def weights(run, name):
    return load_file(run / "checkpoints" / name / "model.safetensors")


def run_keeping(monkeypatch, out, **values):
    """A run, and its weights after each step."""
    seen = []
    step = loop._timed_step

    def watched(run, state, *rest):
        step(run, state, *rest)
        seen.append({k: v.detach().clone() for k, v in run.model.named_parameters()})

    monkeypatch.setattr(loop, "_timed_step", watched)
    finetune(Recipe.from_flat({**CNN, **values}), out)
    monkeypatch.undo()
    return seen


def test_swa_is_the_mean_over_the_ends_of_epochs(tmp_path, monkeypatch):
    seen = run_keeping(monkeypatch, tmp_path / "a", keep="swa", average_from=0.5, perturb="nso")
    assert len(seen) == 16  # two steps an epoch
    ends = [seen[step - 1] for step in (10, 12, 14, 16)]
    kept = weights(tmp_path / "a", "averaged")
    for name in ends[0]:
        mean = torch.stack([end[name] for end in ends]).mean(0)
        torch.testing.assert_close(kept[name], mean, rtol=1e-5, atol=1e-6)


def test_ema_follows_each_step(tmp_path, monkeypatch):
    seen = run_keeping(monkeypatch, tmp_path / "a", keep="ema", average_from=0.5, ema_decay=0.8)
    kept = weights(tmp_path / "a", "averaged")
    for name, mean in seen[8].items():
        for later in seen[9:]:
            mean = 0.8 * mean + 0.2 * later[name]
        torch.testing.assert_close(kept[name], mean, rtol=1e-5, atol=1e-6)


def ends_of_epochs(monkeypatch, out, **values):
    """A run that averages, its model at the ends of epochs, and its reparametrization."""
    seen, kept = [], []
    step, assemble = loop._timed_step, run.assemble

    def watched(of, state, *rest):
        step(of, state, *rest)
        if state.step % of.per_epoch == 0:
            seen.append(copy.deepcopy(of.model))

    def noted(*given):
        kept.append(assemble(*given))
        return kept[-1]

    monkeypatch.setattr(loop, "_timed_step", watched)
    monkeypatch.setattr(run, "assemble", noted)
    finetune(Recipe.from_flat({**SMALL, "epochs": 3, "average_from": 0.0, **values}), out)
    monkeypatch.undo()
    return seen, kept[0].reparam


@pytest.mark.parametrize("keep", ["swa", "ema"])
@pytest.mark.parametrize("asked", ["lora(rank=2)", "weight-compander(a=1; relative=true)"])
@pytest.mark.filterwarnings("ignore:.*were clipped")
def test_of_a_reparametrized_model_the_weights_it_makes_are_averaged(
    tmp_path, monkeypatch, asked, keep
):
    place = tmp_path / "a"
    values = {"reparam": asked, "keep": keep, "ema_decay": 0.5, "lr": 0.5, "batch_size": 64}
    ends, free = ends_of_epochs(monkeypatch, place, **values)
    for end in ends:
        free.bake(end)
    shares = [1 / 3] * 3 if keep == "swa" else [0.25, 0.25, 0.5]
    found, averaged = weights(place, "baked"), weights(place, "averaged")
    for name, weight in found.items():
        mean = sum(s * end.state_dict()[name] for s, end in zip(shares, ends, strict=True))
        torch.testing.assert_close(weight, mean, rtol=1e-5, atol=1e-6)
        assert torch.equal(weight, averaged[name])
    opened = open_target(str(place), {}, say=lambda text: None).prepared.built.model
    assert all(torch.equal(found[name], w) for name, w in opened.state_dict().items())


def test_of_masks_the_scores_are_averaged(tmp_path, monkeypatch):
    place = tmp_path / "a"
    values = {"reparam": "r-amt", "keep": "swa", "optimizer": "adam", "lr": 4e-3}
    ends, _ = ends_of_epochs(monkeypatch, place, **values, pretrain=True)
    found, start = weights(place, "baked"), ends[0].state_dict()
    masks = [name for name in start if name.endswith("0.scores")]
    for name in masks:
        layer = name.removesuffix(".parametrizations.weight.0.scores")
        kept = torch.stack([end.state_dict()[name] for end in ends]).mean(0) > 0.005
        original = start[f"{layer}.parametrizations.weight.original"]
        assert torch.equal(found[f"{layer}.weight"], original * kept)
        assert not kept.all()
    assert len(masks) == 3


@pytest.mark.parametrize("keep", ["swa", "ema"])
def test_batchnorm_statistics_are_those_of_the_averaged_weights(tmp_path, keep):
    finetune(Recipe.from_flat({**CNN, "keep": keep}), tmp_path / "a")
    kept, last = weights(tmp_path / "a", "averaged"), weights(tmp_path / "a", "last")
    means = [name for name in kept if name.endswith("running_mean")]
    assert means
    for name in means:
        assert not torch.equal(kept[name], last[name])
    counts = [int(kept[n]) for n in kept if n.endswith("num_batches_tracked")]
    assert set(counts) == {2}  # one pass over the training set


def test_the_learning_rate_of_swa_is_reached_in_five_epochs_and_held(tmp_path):
    values = {"keep": "swa", "average_from": 0.5, "epochs": 20, "lr": 0.1, "swa_lr": 0.02}
    finetune(Recipe.from_flat({**SMALL, **values}), tmp_path / "a")
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if "lr" in line]
    assert rates[20] == pytest.approx(0.05, rel=1e-6)  # half of the cosine
    assert rates[25] == pytest.approx((0.05 + 0.02) / 2)
    assert rates[30:] == pytest.approx([0.02] * 10)


@pytest.mark.parametrize("keep", ["swa", "ema"])
def test_a_run_resumed_while_it_averages_equals_one_never_stopped(tmp_path, monkeypatch, keep):
    values = Recipe.from_flat({**CNN, "keep": keep, "average_from": 0.5, "save_every": 1})
    finetune(values, tmp_path / "whole")

    class Killed(BaseException):
        pass

    step = loop._timed_step

    def dies(run, state, *rest):
        if state.step == 13:
            raise Killed
        step(run, state, *rest)

    monkeypatch.setattr(loop, "_timed_step", dies)
    with pytest.raises(Killed):
        finetune(values, tmp_path / "cut")
    monkeypatch.undo()
    resume(tmp_path / "cut")
    whole, cut = weights(tmp_path / "whole", "averaged"), weights(tmp_path / "cut", "averaged")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_measuring_a_run_measures_what_it_kept(tmp_path):
    finetune(Recipe.from_flat({**SMALL, "keep": "swa"}), tmp_path / "a")
    fast = {"probes": 3, "draws": 3}
    by_run, _ = measure_target(str(tmp_path / "a"), fast)
    kept, _ = measure_target(str(tmp_path / "a/checkpoints/averaged"), fast)
    last, _ = measure_target(str(tmp_path / "a/checkpoints/last"), fast)
    assert by_run.loss == kept.loss != last.loss


def test_checkpoints_may_be_left_out_of_what_remains(tmp_path):
    finetune(Recipe.from_flat({**SMALL, "keep_checkpoints": False}), tmp_path / "a")
    assert (tmp_path / "a/results.json").exists()
    assert not (tmp_path / "a/checkpoints").exists()
    with pytest.raises(InputError, match="no checkpoint in"):
        measure_target(str(tmp_path / "a"), {})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"average_from": 1.5}, "--average-from"),
        ({"ema_decay": -0.1}, "--ema-decay"),
        ({"swa_lr": -1}, "--swa-lr"),
        ({"keep": "swag"}, "did you mean 'swa'"),
    ],
)
def test_bad_settings(values, words):
    with pytest.raises(InputError, match=words):
        Recipe.from_flat(values)
