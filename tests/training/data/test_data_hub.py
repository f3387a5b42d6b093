from __future__ import annotations

from pathlib import Path

import pytest

from flatminima.errors import InputError
from flatminima.training.data import DataSpec, load

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def texts(count: int, names: list[str] | None = None, label: int | None = None) -> object:
    columns = {
        "sentence": [f"text {n}" for n in range(count)],
        "label": [n % 2 if label is None else label for n in range(count)],
    }
    made = datasets.Dataset.from_dict(columns)
    return made.cast_column("label", datasets.ClassLabel(names=names)) if names else made


def test_a_saved_copy_with_splits_and_named_classes(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    parts = {"train": texts(20, ["no", "yes"]), "validation": texts(6, ["no", "yes"])}
    hidden = texts(5, label=-1)
    saved = datasets.DatasetDict({**parts, "test": hidden, "other": hidden})
    saved.save_to_disk(str(path))
    task = load(DataSpec(str(path)), 0)
    assert (task.name, task.kind, task.classes) == ("saved", "text", ("no", "yes"))
    assert [len(part) for part in (task.train, task.validation, task.test)] == [16, 6, 4]
    details = task.report["details"]
    assert details["splits_without_labels"] == ["test"]
    assert details["unused_splits"] == ["other"]
    assert isinstance(task.train.inputs[0], str)


def test_a_saved_copy_without_splits(tmp_path: Path) -> None:
    texts(20).save_to_disk(str(tmp_path / "one"))  # type: ignore[attr-defined]
    task = load(DataSpec(str(tmp_path / "one")), 0)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [14, 2, 4]
    assert task.classes == ("0", "1")


def test_a_saved_copy_with_images(tmp_path: Path, photos: Path) -> None:
    files = [str(path) for path in sorted(photos.rglob("*.png"))]
    made = datasets.Dataset.from_dict({"image": files, "label": [0] * 10 + [1] * 10})
    made.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "pictures"))
    task = load(DataSpec(str(tmp_path / "pictures")), 0)
    assert task.kind == "image"
    assert all(isinstance(item, bytes | Path) for item in task.train.inputs)


def test_a_saved_copy_with_a_label_out_of_range(tmp_path: Path) -> None:
    made = texts(20, ["no", "yes"])
    broken = made.map(lambda row: {"label": -1 if row["sentence"] == "text 3" else 0})  # type: ignore[attr-defined]
    broken.save_to_disk(str(tmp_path / "broken"))
    with pytest.raises(
        InputError, match=r"row 4 of .* is -1, out of range for 2 classes: .*0 to 1"
    ):
        load(DataSpec(str(tmp_path / "broken")), 0)


def test_a_saved_copy_of_one_class(tmp_path: Path) -> None:
    texts(20, ["no", "yes"], label=1).save_to_disk(str(tmp_path / "one"))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="has only one class, 'yes'"):
        load(DataSpec(str(tmp_path / "one")), 0)


def test_splits_without_a_training_split(tmp_path: Path) -> None:
    saved = datasets.DatasetDict({"part1": texts(4), "part2": texts(4)})
    saved.save_to_disk(str(tmp_path / "parts"))
    with pytest.raises(InputError, match=r"no split called train \(it has part1, part2\)"):
        load(DataSpec(str(tmp_path / "parts")), 0)


def test_a_damaged_copy(tmp_path: Path) -> None:
    texts(20).save_to_disk(str(tmp_path / "one"))  # type: ignore[attr-defined]
    for path in (tmp_path / "one").glob("*.arrow"):
        path.unlink()
    with pytest.raises(InputError, match=r"is not a complete copy of a data set .*save_to_disk"):
        load(DataSpec(str(tmp_path / "one")), 0)


def test_offline_says_so_in_one_line() -> None:
    with pytest.raises(InputError) as caught:
        load(DataSpec("owner/nothing:small"), 0)
    message = str(caught.value)
    assert message.startswith("'owner/nothing' cannot be reached on the Hugging Face Hub")
    assert "save_to_disk" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("x"),
            r"there is no data set 'owner/name' on the Hugging Face Hub .*check the spelling",
        ),
        (
            ValueError("Config name is missing.\nPlease pick one among: ['a', 'b']"),
            r"'owner/name' has several configurations: write one as owner/name:config.*'b'",
        ),
        (RuntimeError("Dataset scripts are no longer supported"), r"'owner/name' cannot be loaded"),
        (ValueError("no data files"), r"'owner/name' cannot be loaded: no data files"),
    ],
)
def test_what_the_hub_refuses(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match=message) as caught:
        load(DataSpec("owner/name"), 0)
    assert "\n" not in str(caught.value)
