"""Labels that are numbers: read, refused, split, standardized."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flatminima.errors import InputError
from flatminima.training.data import DataSpec, load
from flatminima.training.data.numbers import Scale
from flatminima.training.data.splits import cut, subsample


def written(path: Path, labels: list[object]) -> DataSpec:
    rows = "\n".join(f"{n},{n % 7},{label}" for n, label in enumerate(labels))
    path.write_text(f"a,b,label\n{rows}\n")
    return DataSpec(str(path), task="regression")


def test_a_table_with_numbers_for_labels_is_a_regression(tmp_path: Path) -> None:
    labels = np.round(np.random.default_rng(0).normal(50, 20, 100), 3)
    data = load(written(tmp_path / "ages.csv", labels.tolist()), 0)
    assert (data.task, data.classes, data.outputs) == ("regression", (), 1)
    assert data.train.targets.dtype == np.float32
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [72, 8, 20]
    back = np.concatenate([p.targets * data.scale.deviation + data.scale.mean for p in parts])
    assert np.sort(back) == pytest.approx(np.sort(labels), abs=1e-4)
    assert data.train.targets.mean() == pytest.approx(0, abs=1e-6)
    assert data.train.targets.std() == pytest.approx(1, abs=1e-6)
    assert data.clean_targets == pytest.approx(
        data.train.targets * data.scale.deviation + data.scale.mean, abs=1e-4
    )


def test_the_report_has_labels_in_their_own_unit(tmp_path: Path) -> None:
    data = load(written(tmp_path / "t.csv", [10 * n for n in range(40)]), 0)
    told = json.loads(json.dumps(data.report))
    assert told["train"]["targets"]["max"] <= 390
    assert told["train"]["targets"]["max"] > 300
    assert told["labels_standardized_by"]["deviation"] == data.scale.deviation > 100


def test_whole_numbers_are_numbers_if_the_user_says_so(tmp_path: Path) -> None:
    spec = written(tmp_path / "grades.csv", [n % 5 for n in range(60)])
    assert load(DataSpec(spec.data), 0).classes == ("0", "1", "2", "3", "4")
    assert load(spec, 0).classes == ()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_other_tables_are_read_alike(tmp_path: Path, suffix: str) -> None:
    import pandas as pd

    frame = pd.DataFrame({"text": [f"t{n}" for n in range(30)], "score": np.arange(30) / 7})
    path = tmp_path / f"t{suffix}"
    if suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    data = load(DataSpec(str(path), task="regression", label_column="score"), 0)
    assert data.kind == "text"
    assert data.clean_targets.max() <= 29 / 7 + 1e-6


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0.5, "good"], r"row 2 of t.csv is 'good', which is no number: .*leave --task regression"),
        ([0.5, ""], r"row 2 of t.csv is missing: fill it in"),
        ([0.5, "inf"], r"row 2 of t.csv is inf, no finite number"),
        ([0.5, "1e60"], r"row 2 of t.csv is 1e\+60, no finite number in single"),
        ([0.5, "nan", "x"], r"row 2 of t.csv is nan, no finite number"),
        ([True, False], r"row 1 of t.csv is True, which is no number"),
        ([3, 3, 3], r"all labels of t.csv are 3: there is nothing to learn"),
        ([3], r"all labels of t.csv are 3"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(
    tmp_path: Path, labels: list[object], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load(written(tmp_path / "t.csv", labels), 0)
    assert "\n" not in str(caught.value)


def test_continuous_labels_given_to_a_classifier_name_the_mend(tmp_path: Path) -> None:
    spec = written(tmp_path / "t.csv", [0.5, 1.25, 3.5])
    with pytest.raises(InputError, match=r"0.5, which is not a class: .*say --task regression"):
        load(DataSpec(spec.data), 0)


def test_whole_numbers_too_many_for_classes_name_the_mend(tmp_path: Path) -> None:
    spec = written(tmp_path / "t.csv", list(range(30)))
    with pytest.raises(InputError, match=r"class '0' has too few .*say --task regression"):
        load(DataSpec(spec.data), 0)


def test_classes_of_a_source_are_no_numbers(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    table = datasets.Dataset.from_dict({"text": ["a", "b"] * 9, "label": [0, 1] * 9}, features)
    table.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputError, match="are the classes no, yes, not numbers"):
        load(DataSpec(str(tmp_path / "saved"), task="regression"), 0)


def test_numbers_of_a_saved_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"text": [f"t{n}" for n in range(40)], "label": [n / 8 for n in range(40)]}
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "saved"))
    data = load(DataSpec(str(tmp_path / "saved"), task="regression"), 0)
    assert data.clean_targets.max() <= 39 / 8
    with pytest.raises(InputError, match="--task regression"):
        load(DataSpec(str(tmp_path / "saved")), 0)


def test_images_of_a_table_may_have_numbers_for_labels(tmp_path: Path, photos: Path) -> None:
    rows = [f"photos/{name}/{n}.png,{n / 4}" for name in ("cat", "dog") for n in range(10)]
    (tmp_path / "t.csv").write_text("image,label\n" + "\n".join(rows))
    data = load(DataSpec(str(tmp_path / "t.csv"), task="regression"), 0)
    assert (data.kind, data.task) == ("image", "regression")


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_a_task_that_the_data_are_not_for_is_refused(name: str, photos: Path) -> None:
    data = str(photos) if name == "photos" else name
    with pytest.raises(InputError, match=f"--task regression does not fit {name}, whose labels"):
        load(DataSpec(data, task="regression"), 0)


def test_classes_cannot_be_had_of_a_regression() -> None:
    with pytest.raises(InputError, match="--task classification does not fit diabetes"):
        load(DataSpec("diabetes", task="classification"), 0)


def test_label_noise_is_for_classes() -> None:
    with pytest.raises(InputError, match="--label-noise draws classes anew"):
        load(DataSpec("diabetes", label_noise=0.1), 0)


def test_diabetes_is_as_its_description_says() -> None:
    data = load(DataSpec("diabetes"), 0)
    assert (data.task, data.kind) == ("regression", "vector")
    assert len(data.train) + len(data.validation) + len(data.test) == 442
    assert np.asarray(data.train.inputs).shape[1] == 10
    assert data.clean_targets.min() >= 25
    assert data.clean_targets.max() <= 346
    again = load(DataSpec("diabetes"), 0)
    assert data.report["fingerprint"] == again.report["fingerprint"]


@pytest.mark.parametrize("size", [1, 3, 7, 20, 49])
def test_a_choice_of_numbers_has_their_distribution(size: int) -> None:
    labels = np.sort(np.random.default_rng(1).exponential(10, 50)).astype(np.float32)
    rest, part = cut(labels, size / 50, (), np.random.default_rng(0))
    assert len(part) == size
    assert np.array_equal(np.sort(np.concatenate([rest, part])), np.arange(50))
    if 7 <= size <= 20:
        # Ranks are spread evenly: each of `groups` runs of labels has its share.
        groups = min(10, size)
        held = np.bincount(part * groups // 50, minlength=groups)
        assert held.max() - held.min() <= 1
    chosen = subsample(labels, size, (), np.random.default_rng(0))
    assert len(chosen) == len(set(chosen.tolist())) == size


def test_the_smallest_splits_of_numbers() -> None:
    labels = np.array([1.0, 2.0], dtype=np.float32)
    rest, part = cut(labels, 0.2, (), np.random.default_rng(0))
    assert (len(rest), len(part)) == (1, 1)
    with pytest.raises(InputError, match="too few to be split"):
        cut(labels[:1], 0.2, (), np.random.default_rng(0))
    with pytest.raises(InputError, match="train_size is 3, but there are only 2"):
        subsample(labels, 3, (), np.random.default_rng(0))


def test_a_scale_and_back() -> None:
    labels = np.array([1e6, 1e6 + 1, 1e6 + 2], dtype=np.float32)
    scale = Scale.of(labels)
    assert scale.standardized(labels) == pytest.approx(np.array([-1, 0, 1]) * 1.5**0.5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"task": "ranking"}, "unknown value of --task 'ranking'"),
        ({"label_bin": 0.0}, "label_bin is 0.0"),
        ({"few_shot": -1}, "few_shot is -1"),
        ({"few_shot": 30, "many_shot": 20}, "many_shot is 20: give a whole number of at least 30"),
    ],
)
def test_bad_settings_are_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DataSpec(**values)  # type: ignore[arg-type]
