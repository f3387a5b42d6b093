"""What a run predicted is kept, and the wrong samples can be looked at."""

import base64
import io

import numpy as np
import pytest
import torch

from flatminima.training.data.examples import DataSet, Examples
from flatminima.training.data.spec import DataSpec
from flatminima.training.predictions import EXAMPLES, Predictions


def data_set(inputs, targets, kind):
    empty = Examples([], np.zeros(0, dtype=np.int64))
    test = Examples(inputs, np.array(targets))
    names = ("a", "b", "c")
    return DataSet("d", kind, names, empty, empty, test, None, empty.targets, {}, DataSpec())


def predicted(data, classes, confidence=2.0):
    found = Predictions(data)
    logits = confidence * torch.nn.functional.one_hot(torch.tensor(classes), 3).double()
    for part in logits.split(2):
        found.saw(part)
    return found.to_dict()


def test_classes_and_confidences_are_those_of_the_logits():
    found = predicted(data_set(["x", "y", "z"], [0, 1, 2], "text"), [0, 2, 2])
    assert found["label"] == [0, 1, 2]
    assert found["predicted"] == [0, 2, 2]
    expected = np.exp(2) / (np.exp(2) + 2)
    assert found["confidence"] == pytest.approx([expected] * 3, abs=1e-4)
    assert found["examples"] == {found["id"][1]: {"text": "y"}}


def test_a_sample_has_the_same_id_in_another_split():
    first = predicted(data_set(["x", "y"], [0, 0], "text"), [0, 0])
    second = predicted(data_set(["y", "w"], [0, 0], "text"), [0, 0])
    assert first["id"][1] == second["id"][0]
    assert len({*first["id"], *second["id"]}) == 3


def test_images_become_pictures():
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.zeros((1, 1, 4, 6), dtype=np.float32)
    pixels[0, 0, 1, 2] = 1
    found = predicted(data_set(pixels, [0], "image"), [1])
    png = base64.b64decode(found["examples"][found["id"][0]]["png"])
    image = np.asarray(pillow.open(io.BytesIO(png)))
    assert image.shape == (4, 6)
    assert image[1, 2] == 255
    assert image.sum() == 255


def test_colour_images_are_made_smaller():
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.ones((1, 3, 200, 100), dtype=np.float32)
    found = predicted(data_set(pixels, [0], "image"), [1])
    png = base64.b64decode(found["examples"][found["id"][0]]["png"])
    assert pillow.open(io.BytesIO(png)).size == (32, 64)


def test_files_are_read(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    pillow.new("RGB", (10, 10), "red").save(tmp_path / "a.png")
    found = predicted(data_set([tmp_path / "a.png"], [0], "image"), [1])
    assert found["examples"][found["id"][0]]["png"]


def test_rows_pairs_and_long_texts_are_shown_in_short():
    row = predicted(data_set(np.arange(40, dtype=np.float32)[None], [0], "vector"), [1])
    assert row["examples"][row["id"][0]]["text"].startswith("0, 1, 2")
    pair = predicted(data_set([("one", "two")], [0], "text"), [1])
    assert pair["examples"][pair["id"][0]] == {"text": "one\ntwo"}
    long = predicted(data_set(["x" * 5000], [0], "text"), [1])
    assert len(long["examples"][long["id"][0]]["text"]) == 1000


def test_only_the_most_confident_mistakes_are_kept_to_look_at():
    texts = [f"text {i}" for i in range(EXAMPLES + 10)]
    data = data_set(texts, [0] * len(texts), "text")
    found = Predictions(data)
    strength = torch.arange(len(texts), dtype=torch.float64)[:, None] / 10
    found.saw(strength * torch.tensor([[0.0, 1.0, 0.0]]))
    kept = found.to_dict()
    # Of the first, the logits are all equal and class 0 comes first.
    assert set(kept["examples"]) == set(kept["id"][-EXAMPLES:])
