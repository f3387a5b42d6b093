"""Images and texts: how they are scored, and runs on them from end to end."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.measure import Hessian
from flatminima.objectives import Contrastive
from flatminima.training import models
from flatminima.training.data import DataSpec, load
from flatminima.training.data.encode import encode
from flatminima.training.loader import loader
from flatminima.training.minimized import check_gathering
from flatminima.training.prepared import prepare
from flatminima.training.prompting import ELSEWHERE, PromptClassifier, Prompts
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune, resume
from flatminima.training.tasks import BaseToNovel, ImagesAndTexts
from flatminima.training.tasks.base_to_novel import by_novelty
from flatminima.training.tasks.contrastive import recalls

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")

TINY = {
    "model_type": "clip",
    "projection_dim": 8,
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 200,
        "max_position_embeddings": 16,
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    },
}
QUICK = {"epochs": 1, "probes": 2, "draws": 2, "measure_samples": 16, "lr": 1e-3}
QUICK |= {"data": "scenes(images=48)", "batch_size": 16}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "clip.json"
    path.write_text(json.dumps(TINY))
    return f"config:{path}"


def slow_recall(similar, fits, k):
    """The part of the rows that find what fits among the first k, the others first at ties."""
    hits = 0
    for row, fit in zip(similar.tolist(), fits.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda j: (-row[j], fit[j]))
        hits += any(fit[j] for j in order[:k])
    return hits / len(similar)


@pytest.mark.parametrize("seed", range(5))
def test_recalls_are_those_of_sorting(seed):
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(n, 3, generator=generator) for n in (17, 13)]
    # Rounded, so that some similarities are equal.
    images, texts = (x.round() for x in features)
    pairs = torch.stack(
        [torch.randint(n, (40,), generator=generator) for n in (len(images), len(texts))], dim=1
    )
    kept = [pairs[:, i].unique() for i in (0, 1)]
    fits = torch.zeros(len(images), len(texts), dtype=torch.bool)
    fits[pairs[:, 0], pairs[:, 1]] = True
    fits = fits[kept[0]][:, kept[1]]
    similar = images[kept[0]] @ texts[kept[1]].T
    found = recalls(images[pairs[:, 0]], texts[pairs[:, 1]], pairs)
    for k in (1, 5, 10):
        assert found[f"image_to_text_at_{k}"] == pytest.approx(slow_recall(similar, fits, k))
        assert found[f"text_to_image_at_{k}"] == pytest.approx(slow_recall(similar.T, fits.T, k))


def test_a_caption_of_several_images_is_one_text_that_fits_each():
    features = torch.eye(4)
    pairs = torch.tensor([[0, 0], [1, 1], [2, 0], [3, 3]])
    found = recalls(features, features[[0, 1, 0, 3]], pairs)
    # Image 2 is as similar to all texts, and finds its own at no better than chance.
    assert found["image_to_text_at_1"] == 3 / 4
    assert found["text_to_image_at_1"] == 1.0


def test_features_that_tell_nothing_find_nothing():
    same = torch.ones(50, 2)
    pairs = torch.arange(50)[:, None].expand(50, 2)
    assert set(recalls(same, same, pairs).values()) == {0.0}


def test_accuracies_of_base_and_novel_classes():
    right = torch.tensor([True, True, False, True, False])
    labels, novel = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([False, False, True])
    found = by_novelty(right, labels, novel)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert (found["accuracy_base"], found["accuracy_novel"]) == pytest.approx((2 / 3, 1 / 2))
    assert found["accuracy_harmonic"] == pytest.approx(4 / 7)
    assert list(by_novelty(right[:2], labels[:2], novel)) == ["accuracy"]


class Knows(nn.Module):
    """Features that say what a scene's caption says, for images and texts alike."""

    def __init__(self, data, words):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self.words = words
        texts = data.test.inputs.texts
        self.of_image = {
            im.tobytes(): t for im, t in zip(data.test.inputs.images, texts, strict=True)
        }

    def vectors(self, texts):
        return torch.tensor(
            [[float(word in text.split()) for word in self.words] for text in texts]
        )

    def forward(self, pixel_values, input_ids, attention_mask):
        texts = [self.of_image[image.numpy().tobytes()] for image in pixel_values]
        return SimpleNamespace(
            image_embeds=self.vectors(texts), text_embeds=self.vectors(self.read(input_ids))
        )

    def get_text_features(self, input_ids, attention_mask):
        return self.vectors(self.read(input_ids))

    def read(self, ids):
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_a_model_that_knows_colours_and_shapes_is_right_zero_shot_on_novel_ones():
    data = load(DataSpec("scenes(images=60)"), 0)
    words = ["red", "green", "blue", "yellow", "purple", "white"]
    words += ["circle", "square", "triangle", "diamond", "cross", "bar"]
    encoding = models.build("clip-small", data).encoding
    plain = type(encoding)(tokenizer=encoding.tokenizer)
    model = Knows(data, words)
    model.tokenizer = encoding.tokenizer
    task = ImagesAndTexts().read_by(data, plain)
    score = task.score(model, loader(encode(data.test, data, plain), 100), CPU)
    assert score["accuracy_base"] == score["accuracy_novel"] == score["accuracy_harmonic"] == 1.0
    assert 0 < score["recall"] < 1  # it knows neither place nor size
    knows_shapes = Knows(data, words[6:])
    knows_shapes.tokenizer = encoding.tokenizer
    shapes = task.score(knows_shapes, loader(encode(data.test, data, plain), 100), CPU)
    assert shapes["accuracy"] == pytest.approx(1 / 6, abs=0.01)


def test_a_run_scores_measures_and_leaves_a_folder_of_transformers(tmp_path, tiny):
    values = {**QUICK, "model": tiny, "perturb": "nso"}
    results = finetune(Recipe.from_flat(values), tmp_path / "run")
    metrics = results["metrics"]
    assert {"test_recall", "test_text_to_image_at_10", "test_accuracy_novel"} <= set(metrics)
    assert np.isfinite(list(metrics.values())).all()
    assert results["curvature"]["samples"] == 16
    folder = tmp_path / "run/checkpoints/last"
    model = transformers.CLIPModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(["a red circle"], return_tensors="pt", return_token_type_ids=False)
    pixels = torch.zeros(1, 3, 16, 16)
    assert model(**tokens, pixel_values=pixels).logits_per_image.shape == (1, 1)
    # And a model for the next run, which scores the same before it has learned more.
    again = {**QUICK, "model": str(folder), "lr": 0.0, "measure": False}
    results = finetune(Recipe.from_flat(again), tmp_path / "next")
    assert results["metrics"]["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)


def test_a_run_resumes_bit_for_bit(tmp_path, tiny):
    values = {**QUICK, "epochs": 2, "model": tiny, "measure": False, "perturb": "sam"}
    finetune(Recipe.from_flat(values), tmp_path / "a")
    finetune(Recipe.from_flat(values), tmp_path / "b")
    (tmp_path / "b/results.json").unlink()
    (tmp_path / "b/checkpoints/last/optimizer.pt").unlink()
    resume(tmp_path / "b", say=lambda text: None)
    a, b = (tmp_path / r / "checkpoints/last/model.safetensors" for r in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()


def test_a_clip_model_has_second_derivatives(tiny):
    data = load(DataSpec("scenes(images=12)"), 0)
    torch.manual_seed(0)
    built = models.build(tiny, data)
    model = built.model.double().eval()
    (batch,) = loader(encode(data.train, data, built.encoding), 12)
    batch["inputs"]["pixel_values"] = batch["inputs"]["pixel_values"].double()
    loss, params = Contrastive(gather=False), list(model.parameters())
    operator = Hessian(model, loss, [batch])
    direction = torch.randn(operator.shape[0], 1, dtype=torch.float64)
    direction /= direction.norm()

    def gradient(step):
        moved, start = [], 0
        for p in params:
            part = direction[start : start + p.numel(), 0].view_as(p)
            moved.append(p.detach() + step * part)
            start += p.numel()
        saved = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, m in zip(params, moved, strict=True):
                p.copy_(m)
        found = torch.autograd.grad(loss(model, batch), params, allow_unused=True)
        with torch.no_grad():
            for p, s in zip(params, saved, strict=True):
                p.copy_(s)
        flat = [torch.zeros_like(p) if g is None else g for g, p in zip(found, params, strict=True)]
        return torch.cat([g.flatten() for g in flat])

    wanted = (gradient(1e-5) - gradient(-1e-5)) / 2e-5
    torch.testing.assert_close(operator.matmat(direction)[:, 0], wanted, rtol=1e-5, atol=1e-7)


class Given(nn.Module):
    """Logits that are given, as CLIP gives them."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, pixel_values, input_ids, attention_mask):
        return SimpleNamespace(logits_per_image=self.logits)


def test_classes_are_compared_among_their_own():
    tokens = dict.fromkeys(("input_ids", "attention_mask"), torch.zeros(3, 1, dtype=torch.int64))
    prompts = Prompts(tokens, torch.tensor([False, True, True]))
    model = PromptClassifier(Given(torch.arange(6.0).view(2, 3)), prompts)
    assert model(torch.zeros(2)).tolist() == [[0, 1, 2], [3, 4, 5]]
    found = model(torch.zeros(2), torch.tensor([False, True]))
    assert found.tolist() == [[0, ELSEWHERE, ELSEWHERE], [ELSEWHERE, 4, 5]]


def test_tuning_on_base_classes_leaves_novel_prompts_out_of_the_loss(tmp_path):
    values = {"data": "scene-classes(shots=1;source=40)", "pretrain": False}
    prepared = prepare(Recipe.from_flat(values))
    data, built = prepared.data, prepared.built
    batch = next(iter(loader(encode(data.train, data, built.encoding), 8)))
    assert not batch["inputs"]["novel"].any()
    base = [c for c in range(36) if c not in data.novel]
    model = built.model.eval()
    whole = model(batch["inputs"]["pixel_values"])
    wanted = torch.tensor([base.index(int(c)) for c in batch["targets"]])
    wanted = nn.functional.cross_entropy(whole[:, base], wanted)
    torch.testing.assert_close(prepared.task.loss(model, batch), wanted)
    assert isinstance(prepared.task, BaseToNovel)


def test_few_shot_tuning_of_adapters_by_a_recipe(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("FLATMINIMA_CACHE", str(tmp_path / "cache"))
    values = {"data": "scene-classes(shots=1;source=200)", "model": f"prompts:{tiny}"}
    values |= {"perturb": "glad", "rho": 0.1, "reparam": "lora(rank=2;head=false)"}
    values |= {"epochs": 2, "measure": False, "lr": 1e-3}
    first = finetune(Recipe.from_flat(values), tmp_path / "a")["metrics"]
    assert {"test_accuracy_base", "test_accuracy_novel", "test_accuracy_harmonic"} <= set(first)
    (cached,) = (tmp_path / "cache/pretrained").glob("*.safetensors")
    # Pretraining comes from the cache now, and gives the same.
    cached_at = cached.stat().st_mtime_ns
    again = finetune(Recipe.from_flat(values), tmp_path / "b")["metrics"]
    assert cached.stat().st_mtime_ns == cached_at
    assert again["test_loss"] == first["test_loss"]


def test_any_folder_of_images_has_prompts(tmp_path, tiny):
    pil = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for label in ("dark_wood", "light_wood"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 200, (20, 24, 3)).astype(np.uint8)
            pil.fromarray(pixels).save(tmp_path / "photos" / label / f"{i}.png")
    finetune(Recipe.from_flat({**QUICK, "model": tiny, "measure": False}), tmp_path / "clip")
    data = load(DataSpec(str(tmp_path / "photos")), 0)
    built = models.build(f"prompts:{tmp_path / 'clip/checkpoints/last'}", data)
    read = built.encoding.tokenizer.batch_decode(built.model.input_ids, skip_special_tokens=True)
    assert len(read) == 2
    (batch, *_) = loader(encode(data.train, data, built.encoding), 4)
    assert built.model(batch["inputs"]).shape == (4, 2)
    with pytest.raises(InputError, match="no texts to pretrain it on"):
        models.build("prompts:clip-small", data)


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        ("clip-small", "digits", "use prompts:clip-small"),
        ("cnn", "scene-classes(source=9)", "use prompts:clip-small"),
        ("prompts:clip-small", "pydocs", "prompts are texts for classes of images"),
        ("nothing/there", "scenes(images=9)", "cannot load the model 'nothing/there'"),
        ("./nowhere", "scenes(images=9)", "no such model folder"),
    ],
)
def test_models_that_do_not_fit(model, data, words):
    with pytest.raises(InputError, match=words):
        models.build(model, load(DataSpec(data), 0))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"objective": "cross-entropy"}, "cross-entropy is a loss of classification"),
        ({"objective": "contrastive(gather=2)"}, "gather is 2"),
        ({"data": "digits", "objective": "contrastive"}, "is a loss of contrastive"),
        ({"data": "scene-classes", "objective": "contrastive"}, "is a loss of contrastive"),
    ],
)
def test_objectives_that_do_not_fit(values, words):
    with pytest.raises(InputError, match=words):
        prepare(Recipe.from_flat({**QUICK, **values}))


def test_processes_that_would_wait_for_each_other_are_refused():
    recipe = Recipe.from_flat({**QUICK, "micro_batch_size": 4})
    with pytest.raises(InputError, match=r"or say --objective 'contrastive\(gather=false\)'"):
        check_gathering(Contrastive(), recipe, processes=2)
    check_gathering(Contrastive(), recipe, processes=1)
    check_gathering(Contrastive(gather=False), recipe, processes=2)
