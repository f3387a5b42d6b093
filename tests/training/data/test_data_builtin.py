from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from flatminima.errors import InputError
from flatminima.training.data import SOURCES, DataSet, DataSpec, load, pydocs
from flatminima.training.data.builtin import builtin

SEEN: list[tuple[str, int, int]] = []


@pytest.fixture(scope="module")
def docs() -> DataSet:
    SEEN.clear()
    return load(DataSpec("pydocs"), 0, progress=lambda *state: SEEN.append(state))


def test_digits_is_the_transfer_task() -> None:
    from sklearn.datasets import load_digits

    task = load(DataSpec(), seed=3)
    assert task.kind == "image"
    assert task.classes == tuple("0123456789")
    assert task.source is not None
    sizes = [len(part) for part in (task.source, task.train, task.validation, task.test)]
    assert sizes == [800, 200, 0, 797]
    images = np.asarray(task.train.inputs)
    assert images.shape == (200, 1, 8, 8)
    assert images.dtype == np.float32
    assert task.train.targets.dtype == np.int64
    original = (load_digits().images / 16.0).astype(np.float32)
    assert images.max() == 1.0
    turned_back = np.rot90(np.asarray(task.source.inputs), k=-1, axes=(2, 3))
    used = sorted(x.tobytes() for x in (*turned_back, *images, *np.asarray(task.test.inputs)))
    assert used == sorted(image.tobytes() for image in original)


def test_digits_noise_is_in_training_only_and_reported_as_measured() -> None:
    noisy, clean = load(DataSpec(), 0), load(DataSpec(label_noise=0.0), 0)
    assert np.array_equal(noisy.clean_targets, clean.train.targets)
    assert np.array_equal(noisy.test.targets, clean.test.targets)
    assert noisy.source is not None
    assert clean.source is not None
    assert np.array_equal(noisy.source.targets, clean.source.targets)
    changed = int((noisy.train.targets != noisy.clean_targets).sum())
    assert noisy.report["label_noise"] == {
        "requested": 0.2,
        "redrawn": 40,
        "changed": changed,
        "true_rate": changed / 200,
    }
    assert 0 < changed <= 40
    assert clean.report["label_noise"]["changed"] == 0


def test_a_seed_gives_the_same_data_and_another_seed_other_data() -> None:
    one, same, other = (load(DataSpec(), seed) for seed in (1, 1, 2))
    assert np.array_equal(one.train.inputs, same.train.inputs)
    assert np.array_equal(one.train.targets, same.train.targets)
    assert not np.array_equal(one.train.inputs, other.train.inputs)


def test_digits_with_validation_and_a_smaller_training_set() -> None:
    task = load(DataSpec(validation_fraction=0.25, train_size=100), 0)
    assert (len(task.train), len(task.validation), len(task.test)) == (100, 50, 797)
    assert task.report["label_noise"]["redrawn"] == 20
    with pytest.raises(InputError, match="train_size is 500, but there are only 200"):
        load(DataSpec(train_size=500), 0)


def test_the_test_set_does_not_depend_on_the_other_choices(docs: DataSet) -> None:
    other = load(DataSpec("pydocs", train_size=50, label_noise=0.5, validation_fraction=0.3), 0)
    assert list(other.test.inputs) == list(docs.test.inputs)


def test_pydocs_is_a_real_task_of_the_promised_size(docs: DataSet) -> None:
    assert docs.kind == "text"
    assert 8 <= len(docs.classes) <= 12
    parts = (docs.train, docs.validation, docs.test)
    texts = [text for part in parts for text in part.inputs]
    assert 1000 <= len(texts) <= 4000
    assert len(set(texts)) == len(texts)
    assert max(docs.report["train"]["per_class"].values()) <= pydocs.MOST_PER_CLASS
    for part in parts:
        assert set(part.targets) == set(range(len(docs.classes)))
    assert docs.report["details"]["python"]
    assert SEEN[-1][0] == "reading docstrings"
    assert SEEN[-1][1] == SEEN[-1][2] == len(SEEN)


def test_pydocs_does_not_say_the_answer(docs: DataSet) -> None:
    names = re.compile("|".join(docs.classes), re.IGNORECASE)
    assert not [text for text in docs.train.inputs if names.search(str(text))]
    assert any(pydocs.MASK in str(text) for text in docs.train.inputs)


def test_pydocs_can_be_learned_but_not_perfectly(docs: DataSet) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.naive_bayes import ComplementNB

    words = TfidfVectorizer()
    model = ComplementNB()
    model.fit(words.fit_transform(docs.train.inputs), docs.train.targets)
    accuracy = model.score(words.transform(docs.test.inputs), docs.test.targets)
    assert 0.5 < accuracy < 0.95


def test_pydocs_masks_packages_inside_identifiers_and_modules_as_words() -> None:
    mask = pydocs._mask(["email", "xml"], {"email": {"__init__", "header"}, "xml": {"_sax"}})
    masked = mask.sub("MODULE", "EmailMessage has headers; xmlrpc, SAX and saxophone, __init__")
    assert masked == "MODULEMessage has MODULE; MODULErpc, MODULE and saxophone, __init__"


def test_pydocs_drops_near_copies_and_short_texts() -> None:
    text = "Return the first of the items that the given function accepts as valid"
    kept = pydocs._distinct(
        {"a": [text, text.replace("valid", "good"), "Too short to keep"], "b": [text]},
        re.compile("zzz"),
    )
    assert kept == {"a": [text], "b": []}


@pytest.mark.parametrize(
    "name",
    [
        "arithmetic(train=4;validation=2;test=2;source=0)",
        "cosines",
        "diabetes",
        "digits",
        "glyphs",
        "matrix-sensing(d=4;rank=1;measurements=8)",
        "pydocs",
        "rotated-digits",
        "scene-classes(shots=1;source=2)",
        "scene-classes(shots=1;source=2;novel=0)",
        "scenes(images=4)",
        "two-bits",
    ],
)
def test_what_is_known_of_data_beforehand_is_so(name: str) -> None:
    said = builtin(name)
    assert said is not None
    raw = said.load(DataSpec(name), 0, lambda *state: None)
    assert (said.kind, said.task) == (raw.kind, raw.task)
    if said.validation is None:
        assert len(raw.splits["validation"])
    else:
        assert "validation" not in raw.splits
        assert said.validation == raw.validation_fraction


def test_pydocs_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydocs.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(InputError, match="pydocs needs the sources of the standard library"):
        load(DataSpec("pydocs"), 0)


def test_the_report_is_json_and_counts_everything(docs: DataSet) -> None:
    for task in (docs, load(DataSpec(), 0)):
        report = json.loads(json.dumps(task.report))
        for name, part in (("train", task.train), ("validation", task.validation)):
            assert report[name]["count"] == len(part)
            assert sum(report[name]["per_class"].values()) == len(part)
        assert report["seed"] == 0


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown data set 'digts': did you mean 'digits'\? .*"):
        load(DataSpec("digts"), 0)
    assert {"diabetes", "digits", "glyphs", "pydocs"} <= set(SOURCES)


@pytest.mark.parametrize(
    "name", ["./nothing", "/no/such/place", "nothing.csv", "~/nothing", "a/b/c", "nothing/"]
)
def test_a_path_where_nothing_is(name: str) -> None:
    with pytest.raises(InputError, match=r"there is no file or folder .*: check the path"):
        load(DataSpec(name), 0)


def test_augmentation_of_what_is_no_image(reviews: Path) -> None:
    with pytest.raises(InputError, match=r"images, and reviews holds texts: .*--augment none"):
        load(DataSpec(str(reviews), augment="standard"), 0)


def test_a_wrong_seed_is_said_at_once() -> None:
    with pytest.raises(InputError, match="seed is -1"):
        load(DataSpec(), -1)
