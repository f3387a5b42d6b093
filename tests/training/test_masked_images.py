"""Pretraining on masked images, from the command line to the ViT that is fine-tuned."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flatminima.cli import main
from flatminima.errors import InputError
from flatminima.models.hard_patches import DECODER_KEYS, MaskedViT
from flatminima.training import loop, models, prepared
from flatminima.training.data import DataSpec, encode, load
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune, resume
from flatminima.training.tasks import MaskedImages

transformers = pytest.importorskip("transformers")

TINY = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 2,
}


@pytest.fixture
def tiny(tmp_path):
    """A small ViT's config in a file."""
    (tmp_path / "vit.json").write_text(json.dumps(TINY))
    return f"config:{tmp_path / 'vit.json'}"


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def pretrain(path, model, **values):
    recipe = {"task": "masked-images", "model": model, "epochs": 2, "train_size": 60}
    flat = {**recipe, "measure": False, **values}
    return finetune(Recipe.from_flat(flat), path, say=lambda text: None)


def test_a_checkpoint_is_a_vit_that_finetune_takes(tiny, tmp_path, capsys):
    pytest.importorskip("matplotlib").use("svg")
    out, after = tmp_path / "p", tmp_path / "f"
    quick = ["--train-size", "60", "--epochs", "1"]
    code, printed, errors = run(
        capsys, "pretrain", "--data", "digits", "--model", tiny, *quick, "--out", out
    )
    assert (code, errors) == (0, "")
    assert "test_mask_hardness" in printed
    assert (out / "masks.png").stat().st_size > 1000
    last = out / "checkpoints/last"
    assert f"--model {last}" in printed
    saved = load_file(last / "model.safetensors")
    alone = transformers.ViTModel.from_pretrained(last, add_pooling_layer=False)
    for name, weight in alone.state_dict().items():
        assert torch.equal(weight, saved[f"vit.{name}"]), name
    recipe = Recipe.from_flat({"model": str(last), "train_size": 60, "label_noise": 0.0})
    built = prepared.prepare(recipe).built
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        states = [v(images).last_hidden_state for v in (alone, built.model.vit)]
    assert torch.equal(*states)
    code, printed, errors = run(
        capsys, "finetune", "--model", last, *quick, "--no-measure", "--out", after
    )
    assert code == 0, errors
    assert "test_accuracy" in printed


def test_decoders_left_in_the_file_are_no_warning_and_other_keys_are(tiny, tmp_path, caplog):
    pretrain(tmp_path / "p", tiny, epochs=1)
    checkpoint = tmp_path / "p/checkpoints/last"
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_warning()
    try:
        caplog.clear()
        for task in ("classification", "masked-images"):
            prepared.prepare(Recipe.from_flat({"task": task, "model": str(checkpoint)}))
        quiet = caplog.text
        caplog.clear()
        weights = load_file(checkpoint / "model.safetensors")
        weights["stranger.weight"] = torch.zeros(1)
        save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
        prepared.prepare(Recipe.from_flat({"model": str(checkpoint)}))
        loud = caplog.text
    finally:
        logging.set_verbosity(before)
    assert "UNEXPECTED" not in quiet
    assert "classifier" in quiet, "a new head is told of as ever"
    assert "stranger.weight" in loud
    assert "reconstructor" not in loud


def test_the_keys_of_decoders_are_those_beside_the_vit(tiny):
    found = transformers.ViTModel(transformers.ViTConfig(**TINY), add_pooling_layer=False)
    for name in MaskedViT(found).state_dict():
        known = any(re.search(pattern, name) for pattern in DECODER_KEYS)
        assert known != name.startswith("vit.")


def test_the_vit_of_the_house_is_for_both(tmp_path):
    digits = load(DataSpec(task="masked-images"), seed=0)
    assert digits.task == "masked-images"
    assert digits.report["label_noise"]["changed"] == 0
    assert models.default_model(digits) == "vit-tiny"
    built = models.build("vit-tiny", digits)
    assert isinstance(built.model, MaskedViT)
    assert (built.model.size, built.model.patch_count) == (16, 16)
    larger = load(DataSpec(task="masked-images", image_size=24), seed=0)
    assert models.build("vit-tiny", larger).model.patch_count == 36
    batch = encode(digits.test, digits, built.encoding).__getitems__([0, 1])
    assert batch["inputs"].shape == (2, 3, 16, 16)
    classes = models.build("vit-tiny", load(DataSpec(), seed=0))
    assert classes.model(batch["inputs"]).logits.shape == (2, 10)


def test_killed_and_resumed_equals_never_stopped(tiny, tmp_path, monkeypatch):
    values = {"perturb": "nso", "sigma": 0.01, "objective": "hpm(score=folds)", "save_every": 1}
    pretrain(tmp_path / "whole", tiny, **values)
    step = loop._timed_step

    class Killed(BaseException):
        pass

    def dies(run, state, *rest):
        if state.step == 3:
            raise Killed
        step(run, state, *rest)

    monkeypatch.setattr(loop, "_timed_step", dies)
    with pytest.raises(Killed):
        pretrain(tmp_path / "cut", tiny, **values)
    monkeypatch.undo()
    torch.manual_seed(12345)
    resume(tmp_path / "cut", say=lambda text: None)
    whole, cut = (
        load_file(tmp_path / name / "checkpoints/last/model.safetensors")
        for name in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    teachers = [
        torch.load(tmp_path / name / "checkpoints/last/optimizer.pt", weights_only=True)[
            "objective"
        ]
        for name in ("whole", "cut")
    ]
    assert all(torch.equal(teachers[0][name], teachers[1][name]) for name in teachers[0])
    assert teachers[0]["steps"] == 4


def test_a_score_of_the_same_model_is_the_same_and_as_a_loop_has_it(tiny):
    data = load(DataSpec(task="masked-images"), seed=0)
    built = models.build(tiny, data)
    part = encode(data.test, data, built.encoding)
    batches = [part.__getitems__(list(range(20))), part.__getitems__(list(range(20, 30)))]
    task, cpu = MaskedImages(), torch.device("cpu")
    found = task.score(built.model, batches, cpu)
    assert found == task.score(built.model, batches, cpu)
    assert set(found) == set(task.metrics)
    assert built.model.training
    images = batches[0]["inputs"]
    with torch.no_grad():
        loss = task.loss(built.model.eval(), batches[0]).item()
        generator = torch.Generator().manual_seed(0)
        mask = torch.zeros(20, 16, dtype=torch.bool)
        mask.scatter_(1, torch.rand(20, 16, generator=generator).topk(12, 1).indices, True)
        out = built.model(images, mask)
    expected = [
        ((out.reconstruction[i, j] - out.patches[i, j]) ** 2).mean()
        for i in range(20)
        for j in range(16)
        if mask[i, j]
    ]
    assert loss == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_curvature_of_the_masked_loss_is_measured(tiny, tmp_path):
    quick = {"probes": 2, "draws": 2, "measure_samples": 8, "epochs": 1}
    found = pretrain(tmp_path / "a", tiny, measure=True, **quick)
    assert found["curvature"] is not None
    assert np.isfinite(found["metrics"]["hessian_trace"])


@pytest.fixture
def pictures(tmp_path):
    """Images side by side and below, without classes."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(20):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        image.fromarray(pixels).save(folder / ("more" if i % 2 else ".") / f"{i}.png")
    return folder


def test_images_need_no_classes(pictures, tiny, tmp_path):
    data = load(DataSpec(data=str(pictures), task="masked-images"), seed=0)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [14, 2, 4]
    (pictures / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken.png \(not an image\)"):
        load(DataSpec(data=str(pictures), task="masked-images"), seed=0)
    skipping = {"data": str(pictures), "on_bad_file": "skip", "train_size": None}
    found = pretrain(tmp_path / "a", tiny, **skipping)
    assert found["metrics"]["test_loss"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "diabetes"], "holds vectors: give images"),
        (["--data", "pydocs"], "holds texts: give images"),
        (["--model", "mlp"], "'mlp' has no patches to mask: take vit-tiny"),
        (["--model", "bert-small"], "bert"),
        (["--objective", "elr"], "elr is a loss of classification"),
        (["--objective", "hpm(ratio=1.5)"], "ratio is 1.5"),
        (["--objective", "hpm(ratio=0.99)"], "of 16 patches 16 would be masked"),
        (
            ["--model", "vit-tiny", "--image-size", "18"],
            "18 pixels cannot be cut into",
        ),
        (["--label-noise", "0.1"], "--label-noise draws classes anew"),
    ],
)
def test_what_cannot_be_pretrained_is_refused_in_a_line(arguments, words, tmp_path, capsys):
    code, _, errors = run(capsys, "pretrain", *arguments, "--epochs", "1", "--out", tmp_path / "a")
    assert code == 2, errors
    assert words in errors
    assert errors.count("\n") == 1


def test_a_vit_is_not_given_images_of_another_size(tiny, tmp_path, capsys):
    code, _, errors = run(
        capsys, "finetune", "--model", tiny, "--image-size", "16", "--out", tmp_path / "a"
    )
    assert code == 2
    assert "takes images of 8 pixels: leave out --image-size 16" in errors


def test_mining_is_no_loss_of_classes(tmp_path, capsys):
    code, _, errors = run(capsys, "finetune", "--objective", "hpm", "--out", tmp_path / "a")
    assert code == 2
    assert "hpm is a loss of masked-images" in errors
