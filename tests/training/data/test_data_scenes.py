"""The rendered scenes: what is drawn is what is said, and what is held out is held out."""

import numpy as np
import pytest

from flatminima.errors import InputError
from flatminima.training.data import DataSpec, load
from flatminima.training.data.examples import Captioned
from flatminima.training.data.scenes import CLASSES, COLOURS, PLACES, SHAPES, novel_classes


def place_of(image):
    """Row and column of the ninth of a picture that its shape is in, from pixels alone."""
    odd = np.abs(image - np.median(image, axis=(1, 2), keepdims=True)).sum(axis=0) > 0.5
    rows, columns = np.nonzero(odd)
    return tuple(int(np.clip(np.round((np.median(x) - 7.5) / 8), 0, 2)) for x in (rows, columns))


def test_captions_say_where_the_shape_is():
    test = load(DataSpec("scenes(images=2)"), 0).test.inputs
    said = [
        next(
            (r, c)
            for r, c in sorted(np.ndindex(3, 3), key=lambda x: -len(PLACES[x[0]][x[1]]))
            if text.endswith(PLACES[r][c])
        )
        for text in test.texts
    ]
    found = [place_of(image) for image in test.images]
    agree = [s == f for s, f in zip(said, found, strict=True)]
    assert np.mean(agree) > 0.9


def test_captions_say_the_colour():
    test = load(DataSpec("scenes(images=2)"), 1).test
    paints = np.array(list(COLOURS.values()))
    right = []
    for image, text in zip(test.inputs.images, test.inputs.texts, strict=True):
        if not text.startswith("a large"):
            continue
        off = np.abs(image - np.median(image, axis=(1, 2), keepdims=True)).sum(axis=0)
        shade = image[:, off > np.quantile(off, 0.97)].mean(axis=1)
        nearest = np.argmin(np.square(paints - shade).sum(axis=1))
        right.append(text.split()[2] == list(COLOURS)[nearest])
    assert np.mean(right) > 0.9


@pytest.mark.parametrize("objects", [1, 2])
def test_novel_combinations_are_in_no_training_caption(objects):
    data = load(DataSpec(f"scenes(images=400;objects={objects})"), 0)
    novel = [CLASSES[c] for c in data.novel]
    assert len(novel) == 12
    assert not any(name in text for name in novel for text in data.train.inputs.texts)
    assert all(any(name in text for text in data.test.inputs.texts) for name in novel)
    assert set(data.train.targets) == set(range(36)) - set(data.novel)


@pytest.mark.parametrize("count", range(6))
def test_every_shape_and_colour_is_held_out_as_often(count):
    pairs = [CLASSES[c].split() for c in novel_classes(count)]
    for names, part in ((COLOURS, 0), (SHAPES, 1)):
        assert [sum(pair[part] == name for pair in pairs) for name in names] == [count] * 6


def test_a_seed_gives_the_same_scenes_and_another_seed_others():
    one, same, other = (load(DataSpec("scenes(images=20)"), seed) for seed in (0, 0, 1))
    assert np.array_equal(one.train.inputs.images, same.train.inputs.images)
    assert one.train.inputs.texts == same.train.inputs.texts
    assert one.report["fingerprint"] == same.report["fingerprint"] != other.report["fingerprint"]


def test_scene_classes_have_their_shots_and_something_to_pretrain_on():
    data = load(DataSpec("scene-classes(shots=3;source=50)"), 0)
    counts = np.bincount(data.train.targets, minlength=36)
    assert set(counts[list(data.novel)]) == {0}
    assert set(np.delete(counts, list(data.novel))) == {3}
    assert isinstance(data.source.inputs, Captioned)
    assert len(data.source) == 50
    # Pretraining knows all classes; an outline covers less of a picture than what is filled.
    assert len(set(load(DataSpec("scene-classes(source=900)"), 0).source.targets)) == 36
    filled = load(DataSpec("scene-classes(shots=3;source=50;style=filled)"), 0)
    assert filled.train.inputs.std() > data.train.inputs.std()


def test_pairs_number_equal_images_and_texts_alike():
    images = np.zeros((4, 1, 2, 2), dtype=np.float32)
    images[2] = 1
    found = Captioned(images, ["a", "b", "a", "a"]).pairs()
    assert found.tolist() == [[0, 0], [0, 1], [1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("scenes(image=3)", "option of scenes 'image': did you mean 'images'"),
        ("scenes(objects=3)", "objects is 3: give a whole number from 1 to 2"),
        ("scenes(novel=6)", "novel is 6"),
        ("scene-classes(shots=0)", "shots is 0"),
        ("scene-classes(style=dotted)", "style of scene-classes 'dotted'"),
        ("scenes(images=0.5)", "images is 0.5"),
    ],
)
def test_options_that_cannot_be(data, words):
    with pytest.raises(InputError, match=words):
        load(DataSpec(data), 0)


def test_label_noise_is_no_matter_of_captions():
    with pytest.raises(InputError, match="scenes is a task of contrastive"):
        load(DataSpec("scenes(images=20)", label_noise=0.2), 0)


def test_a_task_that_the_data_are_not_for():
    with pytest.raises(InputError, match="--task contrastive does not fit digits"):
        load(DataSpec("digits", task="contrastive"), 0)
