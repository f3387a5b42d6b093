"""Tables of images with texts."""

import json

import numpy as np
import pytest

from flatminima.errors import InputError
from flatminima.training.data import DataSpec, load
from flatminima.training.data.examples import Captioned
from flatminima.training.data.images import decode

pil = pytest.importorskip("PIL.Image")


def images_in(folder, count=10):
    names = []
    for i in range(count):
        pixels = np.full((9, 12, 3), 20 * i, dtype=np.uint8)
        pil.fromarray(pixels).save(folder / f"{i}.png")
        names.append(f"{i}.png")
    return names


@pytest.fixture
def table(tmp_path):
    """Ten images with two captions each, in a CSV file."""
    rows = ["image,caption"]
    for i, name in enumerate(images_in(tmp_path)):
        rows += [f"{name},brightness {i}", f"{name},about {20 * i}"]
    (tmp_path / "pictures.csv").write_text("\n".join(rows))
    return tmp_path / "pictures.csv"


def captioned(path, **settings):
    return load(DataSpec(str(path), task="contrastive", **settings), 0)


def test_a_table_of_captions_is_cut_by_image(table):
    data = captioned(table, validation_fraction=0.2)
    assert (data.task, data.kind, data.classes) == ("contrastive", "captioned", ())
    parts = (data.train, data.validation, data.test)
    names = [{image.name for image in part.inputs.images} for part in parts]
    assert [len(part) for part in names] == [6, 2, 2]
    assert len(set.union(*names)) == 10
    assert [len(part) for part in parts] == [12, 4, 4]
    for part in parts:
        assert isinstance(part.inputs, Captioned)
        for image, text in zip(part.inputs.images, part.inputs.texts, strict=True):
            bright = int(np.asarray(decode(image)).mean())
            assert text in (f"brightness {bright // 20}", f"about {bright}")


def test_a_list_of_captions_is_a_pair_for_each(tmp_path):
    lines = [
        json.dumps({"img": name, "sentences": [f"{name} one", f"{name} two"]})
        for name in images_in(tmp_path)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:7]))
    (tmp_path / "val.jsonl").write_text("\n".join(lines[7:8]))
    (tmp_path / "test.jsonl").write_text("\n".join(lines[8:]))
    data = captioned(tmp_path)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [14, 2, 4]
    assert data.test.inputs.texts == ["8.png one", "8.png two", "9.png one", "9.png two"]
    assert data.report["details"]["images"] == {"train": 7, "validation": 1, "test": 2}


def test_a_parquet_file_with_lists_and_bytes(tmp_path):
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    contents = [(tmp_path / name).read_bytes() for name in images_in(tmp_path)]
    frame = pandas.DataFrame(
        {"image": [{"bytes": b, "path": None} for b in contents], "caption": [["a", "b"]] * 10}
    )
    frame.to_parquet(tmp_path / "pictures.parquet")
    data = captioned(tmp_path / "pictures.parquet", validation_fraction=0.0)
    assert len(data.train) == 16
    assert set(data.train.inputs.texts) == {"a", "b"}


def test_a_saved_copy_of_the_hub(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = [str(tmp_path / name) for name in images_in(tmp_path)]
    rows = {"image": names, "caption": [f"number {i}" for i in range(10)]}
    found = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    found.save_to_disk(str(tmp_path / "saved"))
    data = captioned(tmp_path / "saved")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [7, 1, 2]


def test_the_usual_training_size_and_bad_images_apply(table):
    (table.parent / "3.png").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="images cannot be read"):
        captioned(table)
    data = captioned(table, on_bad_file="skip", train_size=5)
    assert len(data.train) == 5
    assert {entry["file"] for entry in data.report["details"]["skipped"]} == {"3.png"}


@pytest.mark.parametrize(
    ("content", "settings", "words"),
    [
        ("image,caption\n0.png,\n", {}, "row 1 of t.csv, column 'caption', is empty"),
        ("image,words\n0.png,a\n", {}, "is called caption or the like: name it by --text-column"),
        ("image,caption,text\n0.png,a,b\n", {}, "several columns of t.csv may be it"),
        ("image,caption\n0.png,a\n", {"text_column": "captoin"}, "did you mean 'caption'"),
        ("image,caption\n0.png,a\n", {"text_column": "image"}, "cannot be both image and text"),
        ("image,caption\n0.png,a\n1.png,b\n", {}, "2 images are too few to cut off 0.2"),
        ("image,caption\n,a\n", {}, "has no image in column 'image'"),
    ],
)
def test_tables_that_cannot_be(tmp_path, content, settings, words):
    images_in(tmp_path, 2)
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=words):
        captioned(tmp_path / "t.csv", **settings)


def test_both_columns_without_the_task_say_how(table):
    with pytest.raises(InputError, match="or say --task contrastive"):
        load(DataSpec(str(table), image_column="image", text_column="caption"), 0)


def test_an_unknown_task_suggests_the_nearest():
    with pytest.raises(InputError, match="'contrastve': did you mean 'contrastive'"):
        DataSpec(task="contrastve")
