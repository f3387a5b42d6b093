"""Runs on the digits, small enough for a second each."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flatminima.errors import InputError
from flatminima.training import loop
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune, resume

SMALL = {"epochs": 3, "measure": False, "pretrain": False}
NOISY_CNN = {**SMALL, "model": "cnn", "augment": "standard", "train_size": 60}


def recipe(**values):
    return Recipe.from_flat({**SMALL, **values})


def weights(run, name="last"):
    return load_file(run / "checkpoints" / name / "model.safetensors")


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_time(records):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


@pytest.mark.parametrize("method", ["plain", "nso", "nso-one-pass", "wp-sgd", "sam"])
def test_a_run_leaves_an_open_directory(tmp_path, method):
    results = finetune(recipe(perturb=method, measure=True, probes=3, draws=3), tmp_path / "a")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {
        "recipe.yaml",
        "environment.json",
        "data.json",
        "metrics.jsonl",
        "predictions.json",
        "results.json",
        "checkpoints",
    }
    assert json.loads((tmp_path / "a/results.json").read_text())["metrics"] == results["metrics"]
    steps = [record for record in lines(tmp_path / "a") if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 22))
    cost = {"nso": 2, "sam": 2}.get(method, 1)
    assert results["metrics"]["gradients"] == pytest.approx(21 * cost)
    assert results["metrics"]["gradients_per_step"] == pytest.approx(cost)
    assert results["metrics"]["hessian_trace"] != 0


@pytest.mark.parametrize("method", ["plain", "nso", "nso-one-pass", "sam"])
def test_killed_and_resumed_equals_never_stopped(tmp_path, monkeypatch, method):
    # Dropout, BatchNorm, augmentation, momentum, a schedule, checkpoints in mid-epoch.
    values = {**NOISY_CNN, "perturb": method, "save_every": 2, "batch_size": 16, "epochs": 4}
    finetune(Recipe.from_flat(values), tmp_path / "whole")

    class Killed(BaseException):
        pass

    step = loop._timed_step

    def dies(run, state, *rest):
        if state.step == 7:
            raise Killed
        step(run, state, *rest)

    monkeypatch.setattr(loop, "_timed_step", dies)
    with pytest.raises(Killed):
        finetune(Recipe.from_flat(values), tmp_path / "cut")
    monkeypatch.undo()
    torch.manual_seed(12345)
    resume(tmp_path / "cut")
    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert without_time(lines(tmp_path / "whole")) == without_time(lines(tmp_path / "cut"))


def started(out, *flags):
    command = [sys.executable, "-m", "flatminima", "finetune", "--out", str(out)]
    command += ["--no-measure", "--no-pretrain", "--epochs", "2000", *flags]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def wait_for(path: Path, process):
    limit = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    out = tmp_path / "run"
    process = started(out)
    wait_for(out / "checkpoints" / "previous", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"flatminima finetune --resume {out}" in errors
    assert "Traceback" not in errors
    stopped_at = json.loads((out / "checkpoints/last/state.json").read_text())["progress"]["step"]
    assert lines(out)[-1]["step"] == stopped_at


def test_kill_9_leaves_a_whole_checkpoint(tmp_path):
    from flatminima.training import checkpoint

    out = tmp_path / "run"
    process = started(out)
    wait_for(out / "checkpoints" / "previous", process)
    process.kill()
    process.communicate(timeout=30)
    found = checkpoint.find(out / "checkpoints")
    assert found.state["step"] > 0
    assert found.load_optimizer()["optimizer"]["perturb"]["method"] == "plain"


def test_micro_batches_equal_the_large_batch(tmp_path):
    # The last batch of the epoch is smaller, and 7 does not divide 32.
    for method in ("nso", "nso-one-pass", "sam"):
        whole, cut = tmp_path / f"{method}-whole", tmp_path / f"{method}-cut"
        finetune(recipe(perturb=method), whole)
        finetune(recipe(perturb=method, micro_batch_size=7), cut)
        for a, b in zip(weights(whole).values(), weights(cut).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_equal_gradients_halves_the_epochs_of_a_two_gradient_method(tmp_path):
    gradients = {
        method: finetune(recipe(perturb=method, equal="gradients", epochs=4), tmp_path / method)[
            "metrics"
        ]["gradients"]
        for method in ("plain", "nso", "nso-one-pass", "sam")
    }
    assert set(gradients.values()) == {28}


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(loop.NonFinite, match=r"at step \d+ the loss is .* --on-nan skip"):
        finetune(recipe(lr=1e6, save_every=1, epochs=30), tmp_path / "a")
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / "a").values())


def test_or_such_steps_are_skipped_when_told_to(tmp_path, monkeypatch):
    gather = loop.gather_gradient

    def spoil(run, state, *rest):
        loss = gather(run, state, *rest)
        if state.step == 5:
            run.parameters[0].grad.fill_(torch.nan)
        return loss

    monkeypatch.setattr(loop, "gather_gradient", spoil)
    results = finetune(recipe(on_nan="skip", perturb="nso"), tmp_path / "a")
    assert results["skipped_steps"] == 1
    assert [record["step"] for record in lines(tmp_path / "a") if record.get("skipped")] == [6]
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / "a").values())


def test_best_and_early_stopping(tmp_path):
    values = {"validation_fraction": 0.3, "keep": "best", "early_stopping": 2, "epochs": 60}
    results = finetune(recipe(**values), tmp_path / "a")
    accuracies = [r["validation_accuracy"] for r in lines(tmp_path / "a") if "loss" not in r]
    assert results["stopped_early"]
    assert len(accuracies) < 60
    assert max(accuracies) == accuracies[-3] > max(accuracies[-2:]) - 1e-12
    best = json.loads((tmp_path / "a/checkpoints/best/state.json").read_text())["progress"]
    assert best["best_score"] == max(accuracies)
    assert not (tmp_path / "a/checkpoints/best/optimizer.pt").exists()


def test_choosing_by_validation_needs_validation_samples(tmp_path):
    with pytest.raises(InputError, match="--validation-fraction"):
        finetune(recipe(keep="best"), tmp_path / "a")


def test_clipping_bounds_the_step_and_logs_the_norm_before(tmp_path):
    values = {"optimizer": "sgd", "momentum": 0.0, "lr": 1.0, "lr_schedule": "constant"}
    finetune(recipe(**values, epochs=1, max_grad_norm=1e-3), tmp_path / "a")
    finetune(recipe(**values, epochs=1, max_grad_norm=1e-3, seed=0), tmp_path / "b")
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))
    norms = [record["grad_norm"] for record in lines(tmp_path / "a") if "loss" in record]
    assert min(norms) > 0.1
    start = finetune(recipe(**values, epochs=1, max_grad_norm=1e-9), tmp_path / "c")
    assert start["steps"] == 7
    moved = [
        (a - b).norm()
        for a, b in zip(
            weights(tmp_path / "a").values(), weights(tmp_path / "c").values(), strict=True
        )
    ]
    assert torch.stack(moved).norm() <= 7 * 1e-3 + 1e-6


def test_bf16_autocast_trains(tmp_path):
    results = finetune(recipe(perturb="nso", precision="bf16", epochs=20), tmp_path / "a")
    assert results["metrics"]["test_accuracy"] > 0.5


def test_fp16_without_a_gpu_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="fp16 needs a GPU: use bf16"):
        finetune(recipe(precision="fp16"), tmp_path / "a")


def test_the_learning_rate_warms_up_and_falls(tmp_path):
    finetune(recipe(lr=1.0, warmup=0.2, lr_schedule="linear", epochs=3), tmp_path / "a")
    rates = [record["lr"] for record in lines(tmp_path / "a") if "loss" in record]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1 / 17)


def test_an_exponential_sigma_ends_at_sigma(tmp_path):
    finetune(recipe(perturb="nso", strength_schedule="exponential"), tmp_path / "a")
    state = torch.load(tmp_path / "a/checkpoints/last/optimizer.pt", weights_only=True)
    assert state["optimizer"]["perturb"]["schedule"]["name"] == "exponential"
    assert state["optimizer"]["perturb"]["schedule"]["start"] == pytest.approx(1e-4)


def test_the_trace_along_a_run_on_request(tmp_path):
    seen = {}
    for out, values in {
        "a": {"perturb": "nso", "live_trace": True, "live_trace_every": 1},
        "b": {"perturb": "nso"},
        "c": {"perturb": "sam", "live_trace": True},
    }.items():
        seen[out] = []
        finetune(recipe(**values), tmp_path / out, progress=lambda *x, o=out: seen[o].append(x))
    metered, plain, sam = ([r for r in lines(tmp_path / x) if "loss" in r] for x in "abc")
    beside = [x[3] for x in seen["a"] if x[0] == "training"]
    assert beside[-1].startswith("trace ")
    assert len(beside) == len(metered)
    assert all(len(x) == 3 for x in [*seen["b"], *seen["c"]])
    assert metered[0]["live_trace_stderr"] is None
    assert all(r["live_trace"] > 2 * r["live_trace_stderr"] > 0 for r in metered[10:])
    assert not any("live_trace" in r for r in [*plain, *sam])
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("method", ["nso:running_statistics=clean", "nso:clean_weight=0.2"])
@pytest.mark.parametrize("micro_batch_size", [None, 7])
def test_where_a_pass_runs_at_home_the_losses_tell_the_curvature_too(
    tmp_path, method, micro_batch_size
):
    values = {"sigma": 0.02, "epochs": 9, "live_trace": True, "live_trace_every": 1}
    finetune(recipe(perturb=method, micro_batch_size=micro_batch_size, **values), tmp_path / "a")
    last = [r for r in lines(tmp_path / "a") if "loss" in r][-1]
    found, other = last["live_smoothed_curvature"], last["live_trace"]
    errors = last["live_smoothed_curvature_stderr"], last["live_trace_stderr"]
    assert abs(found - other) < 3 * max(errors)
    assert found > 3 * max(errors) > 0


def test_the_trace_along_a_run_goes_on_when_resumed(tmp_path, monkeypatch):
    metered = recipe(perturb="nso-one-pass", live_trace=True, live_trace_every=3)
    finetune(metered, tmp_path / "whole")
    step = loop._timed_step

    def dies(run, state, *rest):
        if state.step == 10:
            raise KeyboardInterrupt
        step(run, state, *rest)

    monkeypatch.setattr(loop, "_timed_step", dies)
    with pytest.raises(KeyboardInterrupt):
        finetune(metered, tmp_path / "cut")
    monkeypatch.undo()
    resume(tmp_path / "cut")
    assert without_time(lines(tmp_path / "whole")) == without_time(lines(tmp_path / "cut"))


def test_tensorboard_on_request(tmp_path):
    pytest.importorskip("tensorboard")
    finetune(recipe(tensorboard=True), tmp_path / "a")
    assert list((tmp_path / "a" / "tensorboard").glob("events.*"))


def test_another_run_is_not_overwritten(tmp_path):
    finetune(recipe(), tmp_path / "a")
    before = (tmp_path / "a/results.json").read_bytes()
    with pytest.raises(InputError, match="holds another run"):
        finetune(recipe(seed=1), tmp_path / "a")
    assert (tmp_path / "a/results.json").read_bytes() == before


def test_resuming_a_finished_run_says_so(tmp_path):
    finetune(recipe(), tmp_path / "a")
    said = []
    resume(tmp_path / "a", say=said.append)
    assert said == [f"{tmp_path / 'a'} is finished already"]


def test_resuming_nothing(tmp_path):
    with pytest.raises(InputError, match="no run in"):
        resume(tmp_path)


def test_a_truncated_checkpoint_falls_back_and_still_ends_the_same(tmp_path):
    finetune(recipe(perturb="nso"), tmp_path / "a")
    finetune(recipe(perturb="nso"), tmp_path / "b")
    (tmp_path / "b/results.json").unlink()
    path = tmp_path / "b/checkpoints/last/model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    said = []
    resume(tmp_path / "b", say=said.append)
    assert "truncated or changed" in said[0]
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_options_a_method_does_not_have_are_refused(tmp_path):
    with pytest.raises(InputError, match="'sam' has no option --num-perturbations"):
        finetune(recipe(perturb="sam", num_perturbations=2), tmp_path / "a")


def test_pretraining_is_cached_and_the_cache_may_be_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("FLATMINIMA_CACHE", str(tmp_path / "cache"))
    values = {"pretrain": True, "epochs": 1, "model": "cnn"}
    finetune(recipe(**values), tmp_path / "a")
    (cached,) = (tmp_path / "cache" / "pretrained").iterdir()
    made = cached.stat().st_mtime_ns
    finetune(recipe(**values), tmp_path / "b")
    assert cached.stat().st_mtime_ns == made
    cached.write_bytes(b"not a network")
    finetune(recipe(**values), tmp_path / "c")
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("schedule", ["constant", "linear", "exponential"])
def test_equal_gradients_whatever_the_schedule_of_sigma(tmp_path, schedule):
    values = {"perturb": "nso", "equal": "gradients", "epochs": 4, "strength_schedule": schedule}
    results = finetune(recipe(**values), tmp_path / "a")
    assert results["steps"] == 14
    # A linear sigma is 0 in the first epoch, whose steps then cost one gradient.
    assert results["metrics"]["gradients"] == (21 if schedule == "linear" else 28)
    state = torch.load(tmp_path / "a/checkpoints/last/optimizer.pt", weights_only=True)
    if schedule != "constant":
        assert state["optimizer"]["perturb"]["schedule"]["total"] == 14


@pytest.mark.parametrize(
    "values",
    [
        {"perturb": "nsso"},
        {"keep": "best"},
        {"perturb": "nso", "noise": "gauss"},
        {"perturb": "sam:eta=1"},
        {"data": "digitz"},
        {"model": "mlpp"},
    ],
)
def test_bad_input_does_not_take_the_directory(tmp_path, values):
    with pytest.raises(InputError):
        finetune(recipe(**values), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_run_that_blew_up_goes_on_with_a_lower_learning_rate(tmp_path):
    with pytest.raises(loop.NonFinite, match="--resume"):
        finetune(recipe(lr=1e20, epochs=2), tmp_path / "a")
    results = resume(tmp_path / "a", changes={"lr": 0.05}, say=lambda text: None)
    assert results["steps"] == 14
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / "a").values())
    rates = [record["lr"] for record in lines(tmp_path / "a") if "loss" in record]
    assert rates[0] == pytest.approx(0.05)
    assert "lr: 0.05" in (tmp_path / "a/recipe.yaml").read_text()


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    step = loop._timed_step

    def ruin(run, state, *rest):
        step(run, state, *rest)
        if state.step == 14:
            run.parameters[0].data.fill_(torch.inf)

    monkeypatch.setattr(loop, "_timed_step", ruin)
    with pytest.raises(loop.NonFinite, match="after step 14 weights are not finite"):
        finetune(recipe(), tmp_path / "a")
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / "a").values())


def test_skipping_a_step_leaves_the_batchnorm_statistics_too(tmp_path):
    values = {**NOISY_CNN, "perturb": "nso:sigma=1e25", "on_nan": "skip", "epochs": 1}
    finetune(Recipe.from_flat(values), tmp_path / "a")
    assert all(torch.isfinite(v.float()).all() for v in weights(tmp_path / "a").values())


def test_a_run_killed_in_its_first_save_starts_over(tmp_path):
    finetune(recipe(), tmp_path / "a")
    finetune(recipe(), tmp_path / "b")
    (tmp_path / "b/results.json").unlink()
    for name in ("last", "previous"):
        (tmp_path / "b/checkpoints" / name).rename(tmp_path / "b/checkpoints" / f".{name}.99")
    resume(tmp_path / "b", say=lambda text: None)
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))
    names = sorted(path.name for path in (tmp_path / "b/checkpoints").iterdir())
    assert "last" in names
    assert ".last.99" not in names


def test_a_damaged_checkpoint_never_becomes_the_one_to_fall_back_on(tmp_path):
    finetune(recipe(), tmp_path / "a")
    (tmp_path / "a/results.json").unlink()
    path = tmp_path / "a/checkpoints/last/model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    resume(tmp_path / "a", say=lambda text: None)
    from flatminima.training import checkpoint

    for name in ("last", "previous"):
        checkpoint.read(tmp_path / "a/checkpoints" / name)
    assert (tmp_path / "a/checkpoints/damaged").is_dir()


def test_a_damaged_best_checkpoint_is_said_and_the_last_one_taken(tmp_path, monkeypatch):
    values = {"validation_fraction": 0.3, "keep": "best", "epochs": 2}
    said = []
    train = loop.train

    def and_damage(run, *rest):
        state = train(run, *rest)
        (tmp_path / "a/checkpoints/best/model.safetensors").write_bytes(b"")
        return state

    monkeypatch.setattr(loop, "train", and_damage)
    finetune(recipe(**values), tmp_path / "a", say=said.append)
    assert "best" in said[0]
    assert "using" in said[0]


def test_data_that_changed_are_refused_on_resume_wherever_it_is_from(tmp_path, monkeypatch):
    rows = [f"{i % 7},{i % 5},{i % 2}" for i in range(60)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["a,b,label", *rows]))
    monkeypatch.chdir(tmp_path)
    values = {"data": "table.csv", "model": "mlp"}
    finetune(recipe(**values), tmp_path / "a")
    (tmp_path / "a/results.json").unlink()
    monkeypatch.chdir("/")
    resume(tmp_path / "a", say=lambda text: None)
    (tmp_path / "a/results.json").unlink()
    table.write_text("\n".join(["a,b,label", *rows[:50]]))
    with pytest.raises(InputError, match=r"the data of .* changed since the run began"):
        resume(tmp_path / "a")


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLATMINIMA_CACHE", str(tmp_path / "file" / "cache"))
    assert finetune(recipe(pretrain=True, epochs=1), tmp_path / "a")["steps"] == 7


def test_measuring_along_the_way_changes_nothing_of_the_run(tmp_path):
    settings = {"epochs": 4, "pretrain": False, "measure": False, "perturb": "nso", "model": "cnn"}
    few = {"probes": 4, "draws": 4}
    weights = []
    for name, extra in (("without", {}), ("with", {"measure_every": 2})):
        finetune(
            Recipe.from_flat({**settings, **few, **extra}), tmp_path / name, say=lambda text: None
        )
        weights.append((tmp_path / name / "checkpoints/last/model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    lines = (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()
    measured = [json.loads(line) for line in lines if "hessian_trace" in line]
    assert [record["epoch"] for record in measured] == [2, 4]
    for name in ("test_loss", "test_accuracy", "perturbation_gap", "top_eigenvalue"):
        assert all(math.isfinite(record[name]) for record in measured)
