from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flatminima.errors import InputError
from flatminima.training.data import DataSet, DataSpec, load


def every(task: DataSet) -> list[tuple[Any, str]]:
    return sorted(
        (text, task.classes[target])
        for part in (task.train, task.validation, task.test)
        for text, target in zip(part.inputs, part.targets, strict=True)
    )


def test_csv_and_its_split(reviews: Path) -> None:
    task = load(DataSpec(str(reviews)), 0)
    assert (task.name, task.kind, task.classes) == ("reviews", "text", ("bad", "good"))
    assert [len(part) for part in (task.train, task.validation, task.test)] == [14, 2, 4]
    assert ("it is, number 3", "bad") in every(task)
    assert task.report["details"]["columns"] == {"inputs": ["text"], "label": "label"}


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_examples(tmp_path: Path, reviews: Path, suffix: str) -> None:
    frame = pd.read_csv(reviews)
    path = tmp_path / f"copy{suffix}"
    if suffix == ".tsv":
        frame.to_csv(path, sep="\t", index=True)
    elif suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    assert every(load(DataSpec(str(path)), 0)) == every(load(DataSpec(str(reviews)), 0))


def test_a_folder_of_tables(tmp_path: Path, reviews: Path) -> None:
    text = reviews.read_text()
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.csv").write_text(text)
    reviews.unlink()
    task = load(DataSpec(str(tmp_path)), 0)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [20, 20, 20]
    (tmp_path / "train.tsv").touch()
    with pytest.raises(InputError, match=r"several train tables \(train.csv, train.tsv\)"):
        load(DataSpec(str(tmp_path)), 0)


def test_a_folder_of_tables_without_a_training_table(reviews: Path) -> None:
    with pytest.raises(InputError, match=r"no training table: .*\(reviews.csv\), or call it train"):
        load(DataSpec(str(reviews.parent)), 0)


def test_images_of_a_table_are_relative_to_it(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "list.csv"
    rows = [f"photos/{name}/{n}.png,{name}" for name in ("cat", "dog") for n in range(10)]
    path.write_text("image,label\n" + "\n".join(rows))
    task = load(DataSpec(str(path)), 0)
    assert task.kind == "image"
    assert all(Path(str(file)).is_file() for file in task.train.inputs)
    (photos / "dog" / "9.png").unlink()
    with pytest.raises(InputError, match=r"1 of 20 images .*photos/dog/9.png \(missing\)"):
        load(DataSpec(str(path)), 0)
    task = load(DataSpec(str(path), on_bad_file="skip"), 0)
    assert task.report["details"]["skipped"] == [{"file": "photos/dog/9.png", "reason": "missing"}]


def test_a_table_of_numbers_is_standardized_by_its_training_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(5, 3, 60), "b": rng.integers(0, 9, 60), "c": 7.1})
    frame["class"] = np.arange(60) % 3
    path = tmp_path / "numbers.csv"
    frame.to_csv(path, index=False)
    task = load(DataSpec(str(path)), 0)
    train = np.asarray(task.train.inputs)
    assert task.kind == "vector"
    assert train.dtype == np.float32
    assert train.shape == (len(task.train), 3)
    assert train.mean(0) == pytest.approx(np.zeros(3), abs=1e-5)
    assert train.std(0) == pytest.approx([1, 1, 0], abs=1e-5)
    assert task.report["details"]["columns"]["inputs"] == ["a", "b", "c"]
    assert np.asarray(task.test.inputs)[:, 2] == pytest.approx(np.zeros(len(task.test)), abs=1e-5)


def test_pairs_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "\n".join(json.dumps({"one": f"a{n}", "two": f"b{n}", "label": n % 2}) for n in range(20))
    )
    task = load(DataSpec(str(path), text_column="one, two"), 0)
    assert (("a3", "b3"), "1") in every(task)


def test_words_that_mean_missing_elsewhere_are_words_here(tmp_path: Path) -> None:
    path = tmp_path / "words.csv"
    path.write_text("text,label\n" + "NA,null\nnone,NA\n" * 5)
    task = load(DataSpec(str(path)), 0)
    assert task.classes == ("NA", "null")


def test_whole_numbers_are_ordered_by_value(tmp_path: Path) -> None:
    path = tmp_path / "grades.csv"
    path.write_text("text,label\n" + "".join(f"t{n},{(2, 10, 1)[n % 3]}\n" for n in range(30)))
    assert load(DataSpec(str(path)), 0).classes == ("1", "2", "10")
    signs = tmp_path / "signs.csv"
    signs.write_text("text,label\n" + "".join(f"t{n},{(-1, 1)[n % 2]}\n" for n in range(20)))
    assert load(DataSpec(str(signs)), 0).classes == ("-1", "1")


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path, reviews: Path) -> None:
    path = tmp_path / "marked.csv"
    path.write_bytes(b"\xef\xbb\xbf" + reviews.read_bytes())
    assert load(DataSpec(str(path)), 0).classes == ("bad", "good")


BAD_TABLES = [
    ("x.csv", "", "x.csv is empty"),
    ("x.csv", "text,label\n", "x.csv has no rows"),
    ("x.csv", "words,label\na,0\n", r"not clear which column .* --text-column .*words, label"),
    ("x.csv", "text,kind\na,0\n", r"no column of x.csv is called label, .* --label-column"),
    (
        "x.csv",
        "text,label,target\na,0,1\n",
        r"may be the label \(label, target\): .*--label-column",
    ),
    ("x.csv", "text,sentence,label\na,b,1\n", r"may be the input \(text, sentence\): .*--text-col"),
    ("x.csv", "text,image,label\na,b,1\n", r"may be the input \(text, image\): .*--image-column"),
    (
        "x.csv",
        "text,label,label\na,0,1\n",
        r"more than one column called 'label': rename or remove",
    ),
    ("x.csv", "text,label\na,0\nb,\n", r"the label in row 2 of x.csv is missing: fill it in"),
    (
        "x.csv",
        "text,label\na,0\n,1\n,1\n",
        r"row 2 \(and 1 more\) of x.csv, column 'text', is empty",
    ),
    (
        "x.csv",
        "text,label\na,0.5\nb,1.25\n",
        r"row 1 of x.csv is 0.5, which is not a class: .*regr",
    ),
    ("x.csv", "text,label\na,0\nb,-1\nc,1\n", r"x.csv has the label -1, which is out of range"),
    ("x.csv", "text,label\na,0\nb,0\n", r"x.csv has only one class, '0': .* at least two"),
    ("x.csv", "text,label\na,0\nb,0\nc,1\n", r"class '1' has too few samples \(1\)"),
    ("x.csv", "text,label\na,0\nb,c,1\n", r"x.csv is not well-formed: .*line 3.*quote cells"),
    ("x.csv", "text,label\na,b,1\nc,d,0\n", r"x.csv has rows with more cells than its header"),
    ("x.csv", 'text,label\n"a,0\nb,1\n', r"x.csv is not well-formed: "),
    ("x.csv", "a,b,label\n1,2,0\n3,,1\n", r"row 2 of x.csv has no finite number in column 'b'"),
    ("x.csv", "image,label\n,0\nb.png,1\n", r"row 1 of x.csv has no image in column 'image'"),
    ("x.jsonl", '{"text": "a", "label": 0}\n{"text"\n', r"line 2 of x.jsonl is not JSON \(.*colum"),
    ("x.jsonl", "[1]\n", r"line 1 of x.jsonl is a JSON list: write one object per line"),
    (
        "x.jsonl",
        '{"text": 1, "text": 2}\n',
        r"line 1 of x.jsonl has more than one value for 'text'",
    ),
    ("x.jsonl", '{"text": "a", "label": [1]}\n', r"label in row 1 of x.jsonl is a list: give one"),
    ("x.jsonl", '{"text": "a", "label": " "}\n', r"label in row 1 of x.jsonl is empty"),
    ("x.jsonl", '{"text": "a", "label": NaN}\n', r"label in row 1 of x.jsonl is missing"),
    (
        "x.jsonl",
        '{"text": ["a"], "label": 1}\n{"text": "b", "label": 2}\n',
        r"the text in row 1 of x.jsonl, column 'text', is a list: .*--text-column",
    ),
    ("x.parquet", "no parquet", r"x.parquet is not a readable Parquet file \(.*\): write it again"),
    ("x.xlsx", "table", r"x.xlsx is no table this library reads: .*\.csv, \.tsv, \.jsonl"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_TABLES)
def test_bad_tables(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load(DataSpec(str(tmp_path / name)), 0)
    assert "\n" not in str(caught.value)


def test_bad_tables_by_flag(reviews: Path) -> None:
    def message(**flags: Any) -> str:
        with pytest.raises(InputError) as caught:
            load(DataSpec(str(reviews), **flags), 0)
        return str(caught.value)

    assert message(label_column="labl") == (
        "reviews.csv has no column 'labl' (--label-column): did you mean 'label'? "
        "the columns are text, label"
    )
    assert "no column 'body' (--text-column)" in message(text_column="body")
    assert "both --text-column text and --image-column text" in message(
        text_column="text", image_column="text"
    )
    assert "is taken for both input and label" in message(text_column="text", label_column="text")
    assert "names 3 columns" in message(text_column="text,label,other")


def test_a_table_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("text,label\nfine,0\ncafé,1\n".encode("latin-1"))
    with pytest.raises(
        InputError, match=r"latin.csv is not UTF-8: byte 21 \(line 3\) is 0xe9; save as UTF-8"
    ):
        load(DataSpec(str(path)), 0)


def test_a_table_that_may_not_be_read(reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\): check its perm"):
        load(DataSpec(str(reviews)), 0)


def test_a_later_table_must_fit_the_training_table(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "a,x\nb,y\n" * 5)
    (tmp_path / "test.csv").write_text("text,label\na,x\nb,z\n")
    with pytest.raises(InputError, match=r"row 2 of test.csv is 'z', which train.csv never has"):
        load(DataSpec(str(tmp_path)), 0)
    (tmp_path / "test.csv").write_text("words,label\na,x\n")
    with pytest.raises(InputError, match=r"test.csv has no column 'text', which the training tab"):
        load(DataSpec(str(tmp_path)), 0)
    (tmp_path / "test.csv").write_text("text,label\n")
    with pytest.raises(InputError, match=r"test.csv has no rows: add some, or remove it"):
        load(DataSpec(str(tmp_path)), 0)


def test_images_inside_parquet(tmp_path: Path, draw: Callable[..., Path]) -> None:
    content = draw(tmp_path / "one.png").read_bytes()
    cells = [{"bytes": content, "path": None}] * 19 + [{"bytes": b"x", "path": "last.png"}]
    path = tmp_path / "images.parquet"
    pd.DataFrame({"image": cells, "label": [0, 1] * 10}).to_parquet(path)
    with pytest.raises(InputError, match=r"1 of 20 images .*last.png \(not an image\)"):
        load(DataSpec(str(path)), 0)
    task = load(DataSpec(str(path), on_bad_file="skip"), 0)
    assert all(item == content for item in task.train.inputs)
